"""The local job service, `python -m vertex_local serve`: Vertex AI's API on this machine, over REST and gRPC."""
