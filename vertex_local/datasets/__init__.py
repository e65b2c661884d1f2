"""Managed data sets on this machine: read from their sources, split, and exported as the service does for a training pipeline."""
