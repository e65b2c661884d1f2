"""ML Metadata on this machine: artifacts, executions, contexts and the links between them, and what is recorded there of runs."""
