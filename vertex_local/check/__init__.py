"""What `python -m vertex_local check` looks at before anything is paid for."""
