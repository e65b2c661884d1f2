"""The pipeline in KFP: `python -m pipelines.kfp.compile` writes the file that `scripts/submit_pipeline` sends."""
