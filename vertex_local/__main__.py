"""Rehearse on this machine what the service would do: `python -m vertex_local COMMAND --help` tells more of each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": ("vertex_local.local.run", "run a custom job's file: every replica a process with the service's environment"),
    "check": ("vertex_local.check.command", "look at a job's file, package, flags, data, machines, images before you pay; time and price"),
    "tune": ("vertex_local.tuning.tune", "run a hyperparameter tuning job's file: trials in parallel, searched by Optuna"),
    "pipeline": ("vertex_local.pipelines.command", "run a compiled pipeline: its steps here, its training as jobs of the local service"),
    "list": ("vertex_local.local.list_jobs", "the jobs of this machine: id, kind, state, name, start, duration"),
    "logs": ("vertex_local.local.show_logs", "what a job's replicas printed; -f follows it while it runs"),
    "stop": ("vertex_local.local.stop_job", "ask whoever runs a job to end it in order"),
    "compare": ("vertex_local.local.compare", "in what two jobs or runs differ: parameters, data, code, environment, metrics, times"),
    "lineage": ("vertex_local.metadata.show_lineage", "where a model comes from: run, job, parameters, commit, every file of its data"),
    "clean": ("vertex_local.local.clean", "remove the folders of jobs that are over; never outputs in buckets"),
    "copy": ("vertex_submit.copy_files", "copy files to Cloud Storage or from there: parallel, resumed, compared by checksum"),
    "doctor": ("vertex_submit.doctor.command", "before your first job: what is missing here and in the project, and what mends it"),
    "env": ("vertex_local.serve.env", "print the lines that lead gcloud and Python programs to the running service"),
    "console": ("vertex_local.console.command", "print an address that opens the running service's console in a browser"),
    "serve": ("vertex_local.serve.command", "a job service on this machine that answers gcloud and the Python SDK"),
    "watch": ("vertex_local.serve.watch", "compare what an endpoint is asked with its model's training rows; warn, start a pipeline"),
}
# Of setup.py, which a command needs.
EXTRAS = {name: "serve" for name in ("console", "env", "lineage", "pipeline", "serve", "watch")} | {"tune": "tune"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        try:
            command = importlib.import_module(COMMANDS[argv[0]][0])
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("vertex_"):
                raise
            extra = EXTRAS.get(argv[0], "cloud")
            print(f"error: {argv[0]} needs the package {error.name}: pip install '.[{extra}]'.", file=sys.stderr)
            return 2
        return command.main(argv[1:])
    lines = "\n".join(f"  {name:8s} {what}" for name, (_, what) in COMMANDS.items())
    usage = f"usage: python -m vertex_local COMMAND [--help] …\n\n{__doc__}\n\n{lines}"
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"{usage}\n\nerror: {f'no command {argv[0]!r}' if argv else 'give a command'}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
