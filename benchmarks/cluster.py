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

import argparse
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import ROOT, SERVICE_VARIABLES, Failed, Run, Spread, _busy_seconds, machine, print_table, run, trainer, windows
from taxi_rows import generate

BATCH, DEFAULT_BATCH = 1024, 240
LAB = ("--features=lab", "--nbuckets", 10, "--nnsize", "32 8", "--lr", 0.001)
ROWS = 200_000
ARMS = ("mlp", "lab", "default", "startup", "collective")
BASELINE = "tf_keras fit, 2 workers"
LEAST_RATIO, MOST_MILLISECONDS, MOST_STARTUP = 5.0, 2.0, 2.0


@dataclass(frozen=True)
class Bench:
    """What every measurement needs to know."""

    folder: Path
    repeats: int
    windows: int
    scale: float
    results: dict[str, Any]

    def worker(self, mode: str, steps: int, *flags: object) -> list[str]:
        """Return the command of one process of `cluster_worker.py`; `steps` make a window."""
        words = (mode, "--steps", max(1, round(steps * self.scale)), "--windows", self.windows, *flags)
        return [sys.executable, str(ROOT / "benchmarks" / "cluster_worker.py"), *map(str, words)]

    def note(self, arm: str, name: str, values: Sequence[float], runs: Sequence[Run]) -> float:
        """Keep a process's measurements and return their median."""
        entry = {"name": name, "values": list(values), "foreign": runs[0].foreign}
        self.results.setdefault(arm, []).append(entry)
        print(f"  {arm}, {name}: {Spread(tuple(values)):.2f}, foreign CPU {runs[0].foreign:.2f}", file=sys.stderr)
        return Spread(tuple(values)).median


def together(command: Sequence[str], workers: int, folder: Path, timeout: float = 900) -> list[Run]:
    """Run a command as every worker of a cluster on this machine; one alone gets no `TF_CONFIG`.

    Raises:
        Failed: a worker ended with an error or the time is up; the others are ended.
    """
    addresses = free_addresses(workers)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SERVICE_VARIABLES)}
    environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    places = [folder / f"worker-{i}" for i in range(workers)]
    running: list[subprocess.Popen[bytes]] = []
    busy, children, start = _busy_seconds(), _children_seconds(), time.time()
    with ExitStack() as held:
        for i, place in enumerate(places):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            own = environment | {"TRAINER_EVENTS": str(place / "events.jsonl")}
            if workers > 1:
                task = {"type": "worker" if i else "chief", "index": max(0, i - 1)}
                own["TF_CONFIG"] = json.dumps({"cluster": {"chief": addresses[:1], "worker": addresses[1:]}, "task": task})
            output = held.enter_context(open(place / "output.txt", "wb"))
            running.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=output, stderr=output, stdin=subprocess.DEVNULL))
            held.callback(running[-1].wait)
            held.callback(running[-1].kill)
        while any(process.poll() is None for process in running):
            late = time.time() - start > timeout
            if late or any(process.poll() for process in running):
                break
            time.sleep(0.02)
    seconds, used = time.time() - start, _children_seconds() - children
    texts = [(place / "output.txt").read_text(errors="replace") for place in places]
    if failed := [i for i, process in enumerate(running) if process.returncode]:
        shown = "\n".join(f"--- worker {i}, ended with {running[i].returncode}:\n{texts[i][-1500:]}" for i in failed)
        raise Failed(f"{' '.join(command)}\n{shown}")
    foreign = max(0.0, _busy_seconds() - busy - used) / seconds
    events = [place / "events.jsonl" for place in places]
    lines = [[json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [] for path in events]
    return [Run(start, seconds, 0, foreign, 0, text, found) for text, found in zip(texts, lines)]


def free_addresses(count: int) -> list[str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def mlp(bench: Bench) -> None:
    """Milliseconds per step of the MLP: one process, 2 and 4 workers, and the baseline."""
    commands = {
        "1 process": (1, bench.worker("loop", 4096)),
        "2 workers": (2, bench.worker("loop", 2048)),
        BASELINE: (2, bench.worker("fit", 100)),
        "4 workers": (4, bench.worker("loop", 512)),
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(bench.repeats):
        for name, (workers, command) in commands.items():
            runs = together(command, workers, bench.folder / "logs")
            found[name].append(bench.note("mlp", name, runs[0].last_line()["milliseconds"], runs))
    report("MLP 15-64-32-1", bench, found)


def lab(bench: Bench) -> None:
    """Milliseconds per step of the lab's taxifare network, by the trainer's command line, and of the baseline."""
    found: dict[str, list[float]] = {"1 process": [], "2 workers": [], BASELINE: [], "4 workers": []}
    for _ in range(bench.repeats):
        for name in found:
            if name == BASELINE:
                runs = together(bench.worker("fit", 100, "--network=lab"), 2, bench.folder / "logs")
                values = runs[0].last_line()["milliseconds"]
            else:
                runs, values = taxifare(bench, int(name[0]), BATCH, LAB)
            found[name].append(bench.note("lab", name, values, runs))
    report("taxifare, the lab's network", bench, found)


def default(bench: Bench) -> None:
    """Milliseconds per step of the default taxifare network at its default batch."""
    found: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(bench.repeats):
        for workers, each in found.items():
            runs, values = taxifare(bench, workers, DEFAULT_BATCH, ())
            each.append(bench.note("default", f"{workers} processes", values, runs))
    table = [(workers, f"{Spread(tuple(values)):.3f}") for workers, values in found.items()]
    title = f"taxifare, the default network, global batch {DEFAULT_BATCH}, {bench.repeats} fresh runs each"
    print_table(title, ("processes", "ms/step, median [range]"), table)


def taxifare(bench: Bench, workers: int, batch: int, flags: Sequence[object]) -> tuple[list[Run], list[float]]:
    """Train by the trainer's command line; return the processes and milliseconds per step of each window of the chief."""
    train, valid = generate(bench.folder, ROWS)
    output, count = bench.folder / "output", bench.windows + 1
    steps = max(128, round({1: 4096, 2: 1536}.get(workers, 512) * bench.scale))
    shutil.rmtree(output, ignore_errors=True)
    # Several workers train without XLA, so the one they are compared with does, too.
    command = trainer(
        "taxifare", "--train_data_path", train, "--eval_data_path", valid, "--output_dir", output, *flags, "--batch_size", batch,
        "--num_examples_to_train_on", steps * count * batch, "--num_evals", count, "--jit_compile=no",
    )
    runs = together(command, workers, bench.folder / "logs")
    shutil.rmtree(output)
    return runs, [1000 * batch / rate for rate in windows(runs[0].events, batch)[0]]


def report(title: str, bench: Bench, found: dict[str, list[float]]) -> None:
    """Print milliseconds per step, the ratio to the baseline and the distance from one process, round by round."""
    table = []
    for name, values in found.items():
        ratio = Spread(tuple(theirs / mine for mine, theirs in zip(values, found[BASELINE])))
        more = Spread(tuple(mine - one for mine, one in zip(values, found["1 process"])))
        goal = ""
        if name == "2 workers":
            goal = f"ratio at least {LEAST_RATIO:g}" + (f", at most {MOST_MILLISECONDS:g} ms more" if "MLP" in title else "")
        steps = Spread(tuple(1000 / value for value in values))
        table.append((name, f"{Spread(tuple(values)):.3f}", f"{steps:,.0f}", f"{ratio:.1f}", f"{more:.2f}", goal))
    header = ("arm", "ms/step, median [range]", "steps/s", "steps/s : baseline's", "ms more than 1 process", "goal")
    print_table(f"{title}, global batch {BATCH}, {bench.repeats} fresh runs each", header, table)


def startup(bench: Bench) -> None:
    """Seconds from `vertex_local run` of 3 replicas to the job's first step, beside the same trainers started directly."""
    import yaml

    sys.path.insert(0, str(ROOT))
    from vertex_local.job import job_file

    job = yaml.safe_load(job_file.read_text(ROOT / "jobs" / "taxifare-2-workers.yaml"))
    job["workerPoolSpecs"][1]["replicaCount"] = 2
    arguments = job["workerPoolSpecs"][0]["containerSpec"]["args"]
    spec, state, output = bench.folder / "job.json", bench.folder / "state", bench.folder / "output"
    spec.write_text(json.dumps(job))
    names = ("vertex_local run", "its slowest trainer", "difference", "3 trainers directly", "difference to those", "1 trainer alone")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(bench.repeats):
        shutil.rmtree(state, ignore_errors=True)
        command = [sys.executable, "-m", "vertex_local", "run", spec, "--state_dir", state, "--project_dir", ROOT, "--job_id", "startup"]
        done = run([*map(str, command)], bench.folder / "logs")
        attempts = json.loads((state / "jobs" / "startup" / "result.json").read_text())["replicas"]
        firsts = {path.stem: _first_step(path) for path in (state / "jobs" / "startup" / "events").glob("*.jsonl")}
        own = max(firsts[name] - replica["attempts"][0]["start"] for name, replica in attempts.items())
        shutil.rmtree(output, ignore_errors=True)
        direct = together(trainer("taxifare", *arguments, "--output_dir", output), 3, bench.folder / "logs")
        shutil.rmtree(output, ignore_errors=True)
        alone = together(trainer("taxifare", *arguments, "--output_dir", output), 1, bench.folder / "logs")
        whole, beside = max(firsts.values()) - done.start, max(each.until("step") for each in direct)
        for name, value in zip(names, (whole, own, whole - own, beside, whole - beside, alone[0].until("step"))):
            found[name].append(value)
    shutil.rmtree(output, ignore_errors=True)
    rows = [(name, f"{Spread(tuple(found[name])):.2f}", f"at most {MOST_STARTUP:g}" * ("difference" in name)) for name in names]
    print_table(f"To the first step of taxifare, 3 replicas, {bench.repeats} runs", ("what", "seconds, median [range]", "goal"), rows)
    bench.results["startup"] = found


def _first_step(path: Path) -> float:
    events = map(json.loads, path.read_text().splitlines())
    return next(event["time"] for event in events if event["phase"] == "step")


def collective(bench: Bench) -> None:
    """Milliseconds of bare collectives, which `docs/scaling.md` builds on, for 2, 3 and 4 workers."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(bench.repeats):
        for workers in (1, 2, 3, 4):
            runs = together(bench.worker("collective", 1), workers, bench.folder / "logs")
            for kind, sizes in runs[0].last_line().items():
                for size, values in sizes.items():
                    found.setdefault((kind, int(size), workers), []).append(Spread(tuple(values)).median)
    what = {"dense": "all-reduce of floats", "rows": "gather of rows of 20 floats", "update": "subtracting rows of 20 floats"}
    order = sorted(found, key=lambda key: (key[0], key[1], key[2]))
    table = [(what[kind], f"{size:,}", workers, f"{Spread(tuple(found[kind, size, workers])):.3f}") for kind, size, workers in order]
    print_table("Collectives on localhost", ("what", "how many", "workers", "ms, median [range]"), table)
    bench.results["collective"] = [{"kind": k, "size": s, "workers": w, "milliseconds": v} for (k, s, w), v in found.items()]


def main() -> None:
    """Measure what `--arms` names and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="working directory: generated data (kept), logs, outputs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="what to measure")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind, taking turns")
    parser.add_argument("--windows", type=int, default=3, help="windows that count, of each process")
    parser.add_argument("--scale", type=float, default=1.0, help="length of the windows; 1: about a second or two")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    print(f"machine: {results['machine']}")
    bench = Bench(folder, args.repeats, args.windows, args.scale, results)
    for arm in args.arms:
        {"mlp": mlp, "lab": lab, "default": default, "startup": startup, "collective": collective}[arm](bench)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
