"""`python -m vertex_local doctor`: what on this machine and in the project would keep a first job from being sent."""
