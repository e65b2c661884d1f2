"""What is kept of a run: `run.json`, its nodes in ML Metadata, and its run in Vertex AI Experiments."""
