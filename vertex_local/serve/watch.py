"""Compare an endpoint's requests with the rows that its model was trained on, and warn of differences.

    python -m vertex_local watch taxifare
    python -m vertex_local watch taxifare --follow --run 'scripts/submit_job jobs/taxifare.yaml'

The service keeps a sample of the requests (docs/registry.md); the model has a profile of its training rows. For each column
it prints the distance, from 0 (alike) to 1, and the distance that chance alone explains. A column above both that and
--threshold drifts; the exit code is then 3. --follow goes on, and starts --run or --pipeline when columns begin to drift.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cli
from ..errors import UserError, quoted
from ..job import buckets
from ..local import environment, records, store
from . import samples

DRIFTS = 3  # the exit code if columns drift
DRIFT = 0.1  # the distance from which the data report and the evaluation also warn


@dataclass(frozen=True)
class Drift:
    """The comparison for one deployed model: how many instances it got, and each column's distance and chance."""

    deployed: Mapping[str, Any]
    rows: int
    columns: Mapping[str, Mapping[str, float]]

    def over(self, threshold: float) -> list[str]:
        """Return the columns that drift, by falling distance."""
        found = [name for name, said in self.columns.items() if said["distance"] >= threshold and said["distance"] > said["chance"]]
        return sorted(found, key=lambda name: -self.columns[name]["distance"])


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = records.parser("watch", __doc__)
    parser.add_argument("endpoint", metavar="ENDPOINT", help="its id, full name or display name")
    distance = cli.number("a distance from 0 to 1", lambda value: 0 <= value <= 1)
    parser.add_argument("--threshold", metavar="X", type=distance, default=DRIFT, help="warn from this distance on (default: %(default)s)")
    parser.add_argument("--last", metavar="N", type=cli.whole(1), default=20_000, help="the newest instances only (default: %(default)s)")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--every", metavar="SECONDS", type=cli.whole(1), default=60, help="for --follow: between looks (default: 60)")
    parser.add_argument("--run", metavar="COMMAND", help="start this in a shell when columns drift: $WATCH_COLUMNS names them")
    parser.add_argument("--pipeline", metavar="SPEC", help="run this compiled pipeline when columns drift")
    parser.add_argument("--parameter", metavar="NAME=VALUE", action="append", default=[], help="for --pipeline; repeatable")
    parser.add_argument("--bucket_root", metavar="DIR", help="the service's folder for gs:// (default: STATE_DIR/buckets)")
    parser.add_argument("--python", metavar="PATH", default=sys.executable, help="interpreter for the comparison (default: this one)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the distances and return the exit code: DRIFTS if a column is above the threshold."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _watch(args, cancel))


def _watch(args: argparse.Namespace, cancel: threading.Event) -> int:
    _check(args)
    state, before, shown, drifted = Path(args.state_dir).resolve(), set[str](), None, False
    while True:
        with _opened(state, args.state_dir) as kept:
            endpoint = _find(kept, args.endpoint)
            looks = list(_looks(kept, endpoint, state, args))
        now = {f"{look.deployed['id']} {name}" for look in looks for name in look.over(args.threshold)}
        said = (sum(look.rows for look in looks), now)
        if said != shown:  # with --follow, print only new numbers
            for look in looks:
                _show(look, args.threshold)
            shown = said
        drifted = drifted or bool(now)
        if now - before:
            _start(args, endpoint, sorted({each.partition(" ")[2] for each in now}))
        before = now
        if not args.follow or cancel.wait(args.every):
            return DRIFTS if drifted else 0


def _check(args: argparse.Namespace) -> None:
    if args.run and args.pipeline:
        raise UserError("--run: give it or --pipeline, not both.")
    if args.parameter and not args.pipeline:
        raise UserError("--parameter: is for --pipeline; give that, too.")
    cli.check_interpreter(args.python)
    if args.pipeline and not Path(args.pipeline).is_file():
        raise UserError(f"--pipeline: there is no file {args.pipeline}; compile the pipeline first.")


@contextlib.contextmanager
def _opened(state: Path, name: str) -> Iterator[store.Store]:
    if not (state / store.FILE).is_file():
        raise UserError(f"--state_dir: no service has run in {name} yet. Name the folder of one.")
    with contextlib.closing(store.Store(state)) as kept:
        yield kept


def _find(kept: store.Store, name: str) -> dict[str, Any]:
    """Return the endpoint of that id, full name or display name."""
    found = [each for each in kept.list("endpoints") if name in (each["name"], each["name"].rpartition("/")[2], each.get("displayName"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"ENDPOINT: several are called {quoted(name)}: give the full name, {' or '.join(each['name'] for each in found)}.")
    known = ", ".join(f"{each['name'].rpartition('/')[2]} ({each.get('displayName', '')})" for each in kept.list("endpoints")) or "none"
    raise UserError(f"ENDPOINT: there is no endpoint {quoted(name)} here; give one of {known}.")


# ------------------------------------------------------------------ one look


def _looks(kept: store.Store, endpoint: Mapping[str, Any], state: Path, args: argparse.Namespace) -> Iterator[Drift]:
    """Yield the comparison for each deployed model that has had requests."""
    asked: dict[str, list[Any]] = {}
    for each in samples.read(state, endpoint["name"]):
        asked.setdefault(each["deployedModelId"], []).append(each["instance"])
    deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
    if not deployed:
        raise UserError(f"ENDPOINT: {endpoint['name']} has no deployed model; deploy one first.")
    if not set(asked) & set(deployed) and not args.follow:
        print(f"{endpoint['name']}: no request of its deployed models is kept yet", flush=True)
    root = args.bucket_root or state / "buckets"
    for number, each in deployed.items():
        if number in asked:
            uri = _version(kept, each)["artifactUri"]
            yield Drift(each, *_compared(args.python, buckets.to_path(uri, root), asked[number][-args.last :]))


def _version(kept: store.Store, deployed: Mapping[str, Any]) -> dict[str, Any]:
    record = kept.get(deployed["model"].partition("@")[0]) or {"versions": {}}
    found = record["versions"].get(deployed["modelVersionId"])
    if found is None:
        raise UserError(f"ENDPOINT: its model {deployed['model']}@{deployed['modelVersionId']} has been deleted; deploy another.")
    return found


def _compared(python: str, model: str, instances: Sequence[Any]) -> tuple[int, dict[str, Any]]:
    """Return how many instances there are, and the drift of each column, computed by another process."""
    text = "".join(json.dumps(each) + "\n" for each in instances)
    env = environment.importing_this(os.environ)
    done = subprocess.run([python, "-m", "vertex_runtime.profile", model], input=text, env=env, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"ENDPOINT: its requests cannot be compared: {said.removeprefix('error: ')}")
    found = json.loads(done.stdout)
    return found["rows"], found["columns"]


def _show(look: Drift, threshold: float) -> None:
    """Print the numbers of each column, and one line on stderr for each that drifts."""
    over, name = look.over(threshold), look.deployed.get("displayName", "")
    print(f"{name} (deployed model {look.deployed['id']}, version {look.deployed['modelVersionId']}): {look.rows:,} instances")
    width = max(map(len, [*look.columns, "column"]))
    print(f"  {'column':{width}}  distance  by chance")
    for column, said in sorted(look.columns.items(), key=lambda each: -each[1]["distance"]):
        print(f"  {column:{width}}  {said['distance']:8.3f}  {said['chance']:9.3f}{'  drifts' if column in over else ''}")
    sys.stdout.flush()
    if over:
        listed = ", ".join(f"{column} {look.columns[column]['distance']:.3f}" for column in over)
        print(
            f"warning: what {name} is asked is not what it was trained on: {listed} (threshold {threshold:g}): train on newer rows",
            file=sys.stderr,
        )


# ------------------------------------------------------------------ what a drift starts


def _start(args: argparse.Namespace, endpoint: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Run the command or pipeline of the flags to its end, if there is one."""
    if args.pipeline:
        words = [sys.executable, "-m", "vertex_local", "pipeline", args.pipeline, f"--state_dir={args.state_dir}"]
        words += [f"--bucket_root={args.bucket_root}"] if args.bucket_root else []
        words += [word for each in args.parameter for word in ("--parameter", each)]
    elif args.run:
        words = ["/bin/sh", "-c", args.run]
    else:
        return
    print(f"start: {args.run or ' '.join(words[1:])}", flush=True)
    about = {"WATCH_COLUMNS": ",".join(columns), "WATCH_ENDPOINT": endpoint["name"]}
    code = subprocess.run(words, env={**environment.importing_this(os.environ), **about}, stdin=subprocess.DEVNULL).returncode
    if code and not args.follow:
        raise OSError(f"{'--pipeline' if args.pipeline else '--run'}: it ended with {code}.")
    print(f"it ended with {code}", flush=True)
