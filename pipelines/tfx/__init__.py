"""The pipeline from TFRecord to a pushed model by TFX, for any trainer of this project: README.md."""
