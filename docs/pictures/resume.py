"""A kill and its resume as a timeline: three jobs run on this machine, and what they wrote down is drawn.

The same job runs unbroken, with `kill -9` at a step between two checkpoints, and with SIGTERM, as a Spot machine gets it. The
local service starts what was killed again, by its rules. Times and steps are those of the runtime's events, losses those of
TensorBoard's files; the final weights are compared before anything is drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drawing import LINE, MARGIN, Box, Picture

from vertex_local.errors import UserError
from vertex_local.job import job_file
from vertex_local.local import cluster, jobs, kills
from vertex_local.local.plan import RunOptions
from vertex_local.local.report import Lines
from vertex_local.metadata.event_files import LogReader

REPLICA = "workerpool0-0"
EVALUATIONS, EVERY, STEPS = 24, 2000, 48_000  # an evaluation, and with it a checkpoint, every 2,000 steps
KILLED_AT = 25_800  # 1,800 steps after a checkpoint
RUNS = (("unbroken", "", "blue"), ("kill -9", "KILL", "red"), ("SIGTERM", "TERM", "purple"))
BATCH = 240
WIDTH, LEFT = 600, 112  # pixels: of the picture, and of what stands left of the axis
Scale = Callable[[float], float]  # from seconds to pixels


# ------------------------------------------------------------------ the runs


def measure(root: Path, folder: Path) -> dict[str, Any]:
    """Run the three jobs in `folder` and return what is drawn of them.

    Args:
        root: the checkout.

    Raises:
        UserError: a job failed, was not killed where it should have been, or the final weights differ.
    """
    flags = [
        f"--num_evals={EVALUATIONS}", f"--num_examples_to_train_on={STEPS * BATCH}", f"--checkpoint_steps={EVERY}",
        f"--scalar_steps={EVERY}",
    ]  # fmt: skip
    runs = []
    for name, sent, _ in RUNS:
        job = job_file.read(root / "jobs" / "taxifare-spot.yaml").with_output(f"gs://pictures/{sent or 'unbroken'}").with_args(flags)
        drawn = [kills.parse(f"{REPLICA}@step={KILLED_AT},signal={sent}")] if sent else []
        options = RunOptions(state_dir=folder / "state", project_dir=root, kills=drawn)
        result = cluster.run(job, options, report=Lines(sys.stdout))
        if not result.succeeded or not all(result.kills.values()):
            raise UserError(f"{name}: {result.state}, {result.error}, kills {result.kills}; see {result.folder}.")
        runs.append({"name": name, **told(result)})
    weights = {run["weights"] for run in runs}
    if len(weights) != 1:
        raise UserError(f"the final weights differ: {', '.join(sorted(weights))}; nothing is drawn.")
    return {"steps": STEPS, "runs": runs}


def told(result: jobs.Result) -> dict[str, Any]:
    """Return what a job wrote down: times are seconds since its start.

    Returns:
        attempts: each with the times at which it starts, trains its first step, its last one, and ends, and the step it came to;
        checkpoints: [time, step] of each; losses: [time, step, loss] at each evaluation; resumed: the step it went on from;
        weights: the SHA-256 of the final ones.
    """
    replica = result.replicas[REPLICA]
    zero = replica["attempts"][0]["start"]
    events = [json.loads(line) for line in (result.folder / "events" / f"{REPLICA}.jsonl").read_text().splitlines()]
    attempts = []
    for attempt in replica["attempts"]:
        steps = [event for event in events if event["phase"] == "step" and attempt["start"] <= event["time"] <= attempt["end"]]
        times = [attempt["start"], steps[0]["time"], steps[-1]["time"], attempt["end"]]
        attempts.append({**dict(zip(("start", "first", "last", "end"), seconds(times, zero))), "step": steps[-1]["step"]})
    resumed = re.findall(r"resuming from step (\d+) of", Path(replica["log"]).read_text())
    scalars = LogReader(Path(result.outputs["AIP_TENSORBOARD_LOG_DIR"])).scalars()
    losses = sorted((scalar.time, scalar.step, scalar.value) for scalar in scalars if (scalar.run, scalar.tag) == ("train", "loss"))
    return {
        "attempts": attempts,
        "checkpoints": [[*seconds([event["time"]], zero), event["step"]] for event in events if event["phase"] == "checkpoint"],
        "losses": [[*seconds([time], zero), step, round(loss, 4)] for time, step, loss in losses],
        "resumed": int(resumed[-1]) if resumed else None,
        "weights": checksum(Path(result.outputs["AIP_CHECKPOINT_DIR"])),
    }


def seconds(times: Sequence[float], zero: float) -> list[float]:
    """Return times as seconds since `zero`, to the hundredth."""
    return [round(time - zero, 2) for time in times]


def checksum(checkpoints: Path) -> str:
    """Return the SHA-256 of the model's weights in the newest checkpoint: names, shapes and bytes."""
    import tensorflow as tf

    prefix = str(max(checkpoints.glob("ckpt-*.index"))).removesuffix(".index")
    reader, digest = tf.train.load_checkpoint(prefix), hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        if name.startswith("model/"):
            value = reader.get_tensor(name)
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------ the picture


def draw(record: Mapping[str, Any]) -> Picture:
    """Draw the curves of the three runs over one bar for each, all over the same seconds."""
    runs = record["runs"]
    end = max(run["attempts"][-1]["end"] for run in runs)
    picture = Picture("A run of taxifare: unbroken, killed by kill -9 and resumed, ended by SIGTERM and resumed.", width=WIDTH)
    scale = (WIDTH - LEFT - MARGIN - 4) / end

    def x(time: float) -> float:
        return round(LEFT + time * scale, 1)

    _curves(picture, runs, x)
    for run, (_, _, look) in zip(runs, RUNS):
        _bar(picture, run, look, x)
    _axis(picture, end, x)
    same = len({run["weights"] for run in runs}) == 1
    said, look = ("Final weights are the same, bit for bit", "green-text") if same else ("Final weights differ", "red-text")
    picture.text(said, MARGIN, picture.y + LINE, 400, look, "start")
    picture.text(f"sha256 {runs[0]['weights'][:12]}…", WIDTH - MARGIN, picture.y + LINE, 190, "code", "end")
    picture.space(LINE + 4)
    return picture


def _curves(picture: Picture, runs: Sequence[Mapping[str, Any]], x: Scale) -> None:
    """Draw the loss of each run by its logarithm, for the first one lies far above the others; dots lead over a restart."""
    top, high = picture.y, 118
    values = [loss for run in runs for _, _, loss in run["losses"]]
    least, most = min(values), max(values)

    def y(loss: float) -> float:
        return round(top + high - math.log(loss / least) / math.log(most / least) * (high - 4), 1)

    for value in (most, least):
        picture.text(f"{value:.2f}", LEFT - 10, y(value) + 6, 60, "soft", "end")
    picture.text("loss", MARGIN, top + high / 2, 80, "bold", "start")
    picture.text("log scale", MARGIN, top + high / 2 + LINE, 90, "soft", "start")
    picture.line([(LEFT, top), (LEFT, top + high + 4)], "rule", head=False)
    for run, (_, _, look) in zip(runs, RUNS):
        points = [(x(time), y(loss)) for time, _, loss in run["losses"]]
        before = sum(time <= run["attempts"][0]["end"] for time, _, _ in run["losses"])
        for part in (points[:before], points[before:]):
            if len(part) > 1:
                picture.line(part, f"{look}-line", head=False)
        if 0 < before < len(points):
            picture.line(points[before - 1 : before + 1], f"{look}-line dotted", head=False)
    picture.y = top + high + 14


def _bar(picture: Picture, run: Mapping[str, Any], look: str, x: Scale) -> None:
    """Draw a run: starting, training, and, where it was killed, what is trained again."""
    top, high = picture.y, 26
    picture.text(run["name"], MARGIN, top + 18.5, LEFT - MARGIN - 6, "bold", "start")

    def part(name: str, start: float, end: float, look: str) -> None:
        picture.rectangle(Box(start, top, end - start, high), look, 4)
        if end - start > 90:
            picture.text(name, (start + end) / 2, top + 18.5, end - start)

    for attempt in run["attempts"]:
        start, first, last, ended = (x(attempt[name]) for name in ("start", "first", "last", "end"))
        part("start" if attempt is run["attempts"][0] else "resume", start, first, "card")
        part("training", first, last, look)
        if attempt is run["attempts"][-1]:
            part("export", last, ended, "card")
    if run["resumed"] is None:
        said = f"{run['attempts'][0]['step']:,} steps in {run['attempts'][-1]['end']:.0f} s"
    else:
        said = _killed(picture, run, x, top, high)
    picture.text(said, LEFT, top + high + LINE * 0.75, WIDTH - LEFT - 10, "soft", "start")
    picture.y = top + high + LINE + 8


def _killed(picture: Picture, run: Mapping[str, Any], x: Scale, top: float, high: float) -> str:
    """Mark the last checkpoint and the kill, and return what was lost."""
    killed = run["attempts"][0]
    lost = killed["step"] - run["resumed"]
    saved = next(time for time, step in reversed(run["checkpoints"]) if step == run["resumed"] and time <= killed["end"])
    if lost:
        picture.rectangle(Box(x(saved), top, x(killed["end"]) - x(saved), high), "lost", 0)
    middle, place = top + high / 2, x(killed["end"])
    picture.dot(x(saved), top, "green")
    for way in (1, -1):
        picture.line([(place - 6, middle - 6 * way), (place + 6, middle + 6 * way)], "cross", head=False)
    lose = f"{lost:,} steps lost" if lost else "nothing lost"
    return f"✕ at {killed['step']:,}, ● saved {run['resumed']:,}: {lose}"


def _axis(picture: Picture, end: float, x: Scale) -> None:
    """Draw the seconds that all above have in common."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200) if end / step <= 8)
    top = picture.y
    picture.line([(LEFT, top), (x(end), top)], "rule", head=False)
    for tick in range(0, int(end) + 1, step):
        picture.line([(x(tick), top), (x(tick), top + 5)], "rule", head=False)
        picture.text(str(tick), x(tick), top + 21, 40, "soft")
    picture.text("seconds", MARGIN, top + 21, 80, "soft", "start")
    picture.y = top + 26
