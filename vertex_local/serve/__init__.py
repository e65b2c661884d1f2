"""The local job service: `python -m vertex_local serve`."""
