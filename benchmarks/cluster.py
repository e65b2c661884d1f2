#!/usr/bin/env python3
"""Steps per second on several workers of this machine, beside legacy `tf_keras` `fit` under the same strategy.

Every worker is a process of its own; they find each other by `TF_CONFIG` on localhost. Arms take turns, every ratio is of
two figures of the same run. The baseline needs the package tf_keras of TensorFlow's minor version. About 20 minutes:

    python benchmarks/cluster.py --folder /tmp/cluster-benchmark --json cluster.json

Global batch 1024. The MLP (15-64-32-1, 3,137 weights) is trained by `vertex_runtime`'s loop on rows in memory; taxifare's
networks, the lab's and the default one (at its own batch, without a baseline), by the real trainer's command line, from CSV
files. Both baselines get ready-made features in memory.
"""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import processes
from processes import ROOT, Failed, Run, Spread, busy_seconds, measure_chosen, parser, print_table, run, said, trainer, windows
from taxi_rows import generate

BATCH, DEFAULT_BATCH = 1024, 240
LAB = ("--features=lab", "--nbuckets", 10, "--nnsize", "32 8", "--lr", 0.001)
ROWS = 200_000
BASELINE = "tf_keras fit, 2 workers"
LEAST_RATIO, MOST_MILLISECONDS, MOST_STARTUP = 5.0, 2.0, 2.0
TIMEOUT = 900.0  # seconds for a cluster


def worker(args: Namespace, mode: str, steps: int, *flags: object) -> list[str]:
    """Return the command of one process of `cluster_worker.py`; `steps` make a window."""
    words = (mode, "--steps", max(1, round(steps * args.scale)), "--windows", args.windows, *flags)
    return [sys.executable, str(ROOT / "benchmarks" / "cluster_worker.py"), *map(str, words)]


def together(command: Sequence[str], workers: int, folder: Path) -> list[Run]:
    """Run a command as every worker of a cluster on this machine; one alone gets no `TF_CONFIG`.

    Raises:
        Failed: a worker ended with an error or the time is up; the others are ended.
    """
    addresses = free_addresses(workers)
    places = [folder / f"worker-{i}" for i in range(workers)]
    running: list[subprocess.Popen[bytes]] = []
    busy, children, begun = busy_seconds(), _children_seconds(), time.time()
    with ExitStack() as held:
        for i, place in enumerate(places):
            shutil.rmtree(place, ignore_errors=True)
            task = {"type": "worker" if i else "chief", "index": max(0, i - 1)}
            config = json.dumps({"cluster": {"chief": addresses[:1], "worker": addresses[1:]}, "task": task})
            running.append(processes.start(command, place, {"TF_CONFIG": config} if workers > 1 else None))
            held.callback(running[-1].wait)
            held.callback(running[-1].kill)
        while any(process.poll() is None for process in running):
            if time.time() - begun > TIMEOUT or any(process.poll() for process in running):
                break
            time.sleep(0.02)
    seconds, used = time.time() - begun, _children_seconds() - children
    found = [said(place) for place in places]
    if failed := [i for i, process in enumerate(running) if process.returncode]:
        shown = "\n".join(f"--- worker {i}, ended with {running[i].returncode}:\n{found[i][0][-1500:]}" for i in failed)
        raise Failed(f"{' '.join(command)}\n{shown}")
    foreign = max(0.0, busy_seconds() - busy - used) / seconds
    return [Run(begun, seconds, 0, foreign, 0, *each) for each in found]


def free_addresses(count: int) -> list[str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


Way = Callable[[], tuple[list[Run], list[float]]]  # gives the processes and milliseconds per step of each window of the chief


def in_turn(args: Namespace, arm: str, ways: Mapping[str, Way]) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Measure in so many rounds; return the medians of each round by name, and every measurement."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    notes = []
    for _ in range(args.repeats):
        for name, way in ways.items():
            runs, values = way()
            found[name].append(Spread(values).median)
            notes.append({"name": name, "values": values, "foreign": runs[0].foreign})
            print(f"  {arm}, {name}: {Spread(values):.2f}, foreign CPU {runs[0].foreign:.2f}", file=sys.stderr)
    return found, notes


def mlp(args: Namespace) -> list[dict[str, Any]]:
    """Milliseconds per step of the MLP: one process, 2 and 4 workers, and the baseline."""
    found, notes = in_turn(args, "mlp", {
        "1 process": partial(workers, args, 1, "loop", 4096),
        "2 workers": partial(workers, args, 2, "loop", 2048),
        BASELINE: partial(workers, args, 2, "fit", 100),
        "4 workers": partial(workers, args, 4, "loop", 512),
    })  # fmt: skip
    report("MLP 15-64-32-1", args.repeats, found, f", at most {MOST_MILLISECONDS:g} ms more")
    return notes


def lab(args: Namespace) -> list[dict[str, Any]]:
    """Milliseconds per step of the lab's taxifare network, by the trainer's command line, and of the baseline."""
    found, notes = in_turn(args, "lab", {
        "1 process": partial(taxifare, args, 1, BATCH, LAB),
        "2 workers": partial(taxifare, args, 2, BATCH, LAB),
        BASELINE: partial(workers, args, 2, "fit", 100, "--network=lab"),
        "4 workers": partial(taxifare, args, 4, BATCH, LAB),
    })  # fmt: skip
    report("taxifare, the lab's network", args.repeats, found)
    return notes


def default(args: Namespace) -> list[dict[str, Any]]:
    """Milliseconds per step of the default taxifare network at its default batch."""
    found, notes = in_turn(args, "default", {str(count): partial(taxifare, args, count, DEFAULT_BATCH, ()) for count in (1, 2, 4)})
    table = [(count, f"{Spread(values):.3f}") for count, values in found.items()]
    title = f"taxifare, the default network, global batch {DEFAULT_BATCH}, {args.repeats} fresh runs each"
    print_table(title, ("processes", "ms/step, median [range]"), table)
    return notes


def workers(args: Namespace, count: int, *words: object) -> tuple[list[Run], list[float]]:
    """Run so many processes of `cluster_worker.py`."""
    runs = together(worker(args, *words), count, args.folder / "logs")
    return runs, runs[0].last_line()["milliseconds"]


def taxifare(args: Namespace, workers: int, batch: int, flags: Sequence[object]) -> tuple[list[Run], list[float]]:
    """Train by the trainer's command line, as so many processes."""
    train, valid = generate(args.folder, ROWS)
    output, count = args.folder / "output", args.windows + 1
    steps = max(128, round({1: 4096, 2: 1536}.get(workers, 512) * args.scale))
    shutil.rmtree(output, ignore_errors=True)
    # Several workers train without XLA, so the one they are compared with does, too.
    command = trainer(
        "taxifare", "--train_data_path", train, "--eval_data_path", valid, "--output_dir", output, *flags, "--batch_size", batch,
        "--num_examples_to_train_on", steps * count * batch, "--num_evals", count, "--jit_compile=no",
    )  # fmt: skip
    runs = together(command, workers, args.folder / "logs")
    shutil.rmtree(output)
    return runs, [1000 * batch / rate for rate in windows(runs[0].events, batch)[0]]


def report(title: str, repeats: int, found: Mapping[str, Sequence[float]], more_goal: str = "") -> None:
    """Print milliseconds per step, the ratio to the baseline and the distance from one process, round by round."""
    table = []
    for name, values in found.items():
        ratio = Spread([theirs / mine for mine, theirs in zip(values, found[BASELINE])])
        more = Spread([mine - one for mine, one in zip(values, found["1 process"])])
        goal = f"ratio at least {LEAST_RATIO:g}{more_goal}" if name == "2 workers" else ""
        steps = Spread([1000 / value for value in values])
        table.append((name, f"{Spread(values):.3f}", f"{steps:,.0f}", f"{ratio:.1f}", f"{more:.2f}", goal))
    header = ("arm", "ms/step, median [range]", "steps/s", "steps/s : baseline's", "ms more than 1 process", "goal")
    print_table(f"{title}, global batch {BATCH}, {repeats} fresh runs each", header, table)


def startup(args: Namespace) -> dict[str, Any]:
    """Seconds from `vertex_local run` of 3 replicas to the job's first step, beside the same trainers started directly."""
    import yaml

    from vertex_local.job import job_file

    job = yaml.safe_load(job_file.read_text(ROOT / "jobs" / "taxifare-2-workers.yaml"))
    job["workerPoolSpecs"][1]["replicaCount"] = 2
    arguments = job["workerPoolSpecs"][0]["containerSpec"]["args"]
    spec, state, output = args.folder / "job.json", args.folder / "state", args.folder / "output"
    spec.write_text(json.dumps(job))
    names = ("vertex_local run", "its slowest trainer", "difference", "3 trainers directly", "difference to those", "1 trainer alone")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats):
        shutil.rmtree(state, ignore_errors=True)
        command = [sys.executable, "-m", "vertex_local", "run", spec, "--state_dir", state, "--project_dir", ROOT, "--job_id", "startup"]
        done = run([*map(str, command)], args.folder / "logs")
        attempts = json.loads((state / "jobs" / "startup" / "result.json").read_text())["replicas"]
        firsts = {path.stem: _first_step(path) for path in (state / "jobs" / "startup" / "events").glob("*.jsonl")}
        own = max(firsts[name] - replica["attempts"][0]["start"] for name, replica in attempts.items())
        shutil.rmtree(output, ignore_errors=True)
        direct = together(trainer("taxifare", *arguments, "--output_dir", output), 3, args.folder / "logs")
        shutil.rmtree(output, ignore_errors=True)
        alone = together(trainer("taxifare", *arguments, "--output_dir", output), 1, args.folder / "logs")
        whole, beside = max(firsts.values()) - done.start, max(each.until("step") for each in direct)
        for name, value in zip(names, (whole, own, whole - own, beside, whole - beside, alone[0].until("step"))):
            found[name].append(value)
    shutil.rmtree(output, ignore_errors=True)
    rows = [(name, f"{Spread(found[name]):.2f}", f"at most {MOST_STARTUP:g}" * ("difference" in name)) for name in names]
    print_table(f"To the first step of taxifare, 3 replicas, {args.repeats} runs", ("what", "seconds, median [range]", "goal"), rows)
    return found


def _first_step(path: Path) -> float:
    events = map(json.loads, path.read_text().splitlines())
    return next(event["time"] for event in events if event["phase"] == "step")


def collective(args: Namespace) -> list[dict[str, Any]]:
    """Milliseconds of bare collectives, which `docs/scaling.md` builds on, for 2, 3 and 4 workers."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(args.repeats):
        for workers in (1, 2, 3, 4):
            runs = together(worker(args, "collective", 1), workers, args.folder / "logs")
            for kind, sizes in runs[0].last_line().items():
                for size, values in sizes.items():
                    found.setdefault((kind, int(size), workers), []).append(Spread(values).median)
    what = {"dense": "all-reduce of floats", "rows": "gather of rows of 20 floats", "update": "subtracting rows of 20 floats"}
    table = [(what[kind], f"{size:,}", workers, f"{Spread(values):.3f}") for (kind, size, workers), values in sorted(found.items())]
    print_table("Collectives on localhost", ("what", "how many", "workers", "ms, median [range]"), table)
    return [{"kind": k, "size": s, "workers": w, "milliseconds": v} for (k, s, w), v in found.items()]


def main() -> None:
    """Measure what `--arms` names and print a table for each."""
    made = parser(__doc__)
    made.add_argument("--windows", type=int, default=3, help="windows that count, of each process")
    made.add_argument("--scale", type=float, default=1.0, help="length of the windows; 1: about a second or two")
    measure_chosen(made, {"mlp": mlp, "lab": lab, "default": default, "startup": startup, "collective": collective})


if __name__ == "__main__":
    main()
