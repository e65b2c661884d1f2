"""Vertex AI custom training on this machine: the job's own spec, the service's environment, no Docker, no network.

    python -m vertex_local run jobs/taxifare-2-workers.yaml

As a library, several jobs may run in one process, one thread each:

    from vertex_local import cluster, spec
    result = cluster.run(spec.load("jobs/taxifare.yaml", ["--num_evals=2"]), state_dir=".vertex_local")
"""
