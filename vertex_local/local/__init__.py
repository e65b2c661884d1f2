"""Jobs on this machine: what each replica runs, its processes, restarts, the record of how it went."""
