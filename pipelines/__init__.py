"""The workflow from raw data to a deployed model, as the pipelines of Vertex AI run it: docs/pipelines.md."""
