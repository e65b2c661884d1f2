"""Compiled Vertex pipelines on this machine: read, checked, and run by KFP's local runner in a virtual environment of its own."""
