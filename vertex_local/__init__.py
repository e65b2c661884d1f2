"""Vertex AI custom training on this machine: the job's own spec, the service's environment, no Docker, no network.

    python -m vertex_local run jobs/taxifare-2-workers.yaml

As a library, several jobs may run in one process, one thread each:

    from vertex_local.job import job_file
    from vertex_local.local import cluster
    result = cluster.run(job_file.read("jobs/taxifare.yaml").with_args(["--num_evals=2"]), state_dir=".vertex_local")
"""
