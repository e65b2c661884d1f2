"""Compiled Vertex pipelines on this machine: read, checked, and run by KFP's own local runner in an environment of its own."""
