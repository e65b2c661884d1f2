"""ML Metadata on this machine: artifacts, executions, contexts and their links, and the records that runs leave there."""
