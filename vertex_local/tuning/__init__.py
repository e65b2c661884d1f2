"""Hyperparameter tuning jobs on this machine: `python -m vertex_local tune`."""
