"""Packages, images and jobs on their way to Vertex AI: what `scripts/submit_job` and its like call."""
