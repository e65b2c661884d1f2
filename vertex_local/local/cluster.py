"""Run a job on this machine: every replica a process with the service's environment.

`run` blocks, keeps no global state, installs no signal handler, and may run in several threads at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..job import buckets
from ..job.spec import JobSpec
from . import commands, environment, jobs, lifecycle, packages
from .kills import Kill
from .ports import Ports
from .process import Replica
from .report import Quiet


@dataclass(frozen=True)
class _Wish:
    """How a job shall run: absolute paths, the interpreter for `python` and `python3`, and what else its replicas get."""

    state: Path
    buckets: Path
    project: Path
    python: str
    kills: Sequence[Kill]
    trial: str | None
    variables: Mapping[str, str]


@dataclass(frozen=True)
class _Plan:
    command: commands.Command
    packages: list[Path]


def run(
    job: JobSpec,
    *,
    state_dir: str | Path = ".vertex_local",
    bucket_root: str | Path | None = None,
    project_dir: str | Path = ".",
    job_id: str | None = None,
    python: str | None = None,
    with_index: bool = False,
    kills: Sequence[Kill] = (),
    trial: str | None = None,
    variables: Mapping[str, str] | None = None,
    announce: Collection[str] = (),
    report: Quiet | None = None,
    cancel: threading.Event | None = None,
    grace: float = lifecycle.GRACE,
) -> jobs.Result:
    """Run `job` to its end and return how it went; raise a ValueError for a job that cannot be started.

    Args:
        bucket_root: where `gs://bucket/x` lies as `bucket/x`; by default `<state_dir>/buckets`.
        project_dir: the checkout: its Dockerfile, and where containers start.
        python: the interpreter for `python` and `python3`; by default the one that runs this.
        trial: a tuning trial's id: the job's directories and variables are that trial's.
        variables: more for every replica, such as a training pipeline's `AIP_TRAINING_DATA_URI`.
        announce: pools such as `workerpool2` that are in the cluster but not started; a Reduction Server never is.
        cancel: set it to end the job.
    """
    wish = _wish(state_dir, bucket_root, project_dir, python, kills, trial, variables)
    report = report or Quiet()
    output = None if job.output is None else buckets.to_path(job.output, wish.buckets)
    plans = _plans(job, wish, announce)
    _check_kills(kills, job, plans)
    result, ports = jobs.create(wish.state, job_id), Ports()
    try:
        result.write()
        (result.folder / "spec.yaml").write_text(job.text, encoding="utf-8")
        report.say(f"job {result.job_id}: {job.name}, in {result.folder}")
        if job.output:
            (wish.buckets / job.output[len("gs://") :].partition("/")[0]).mkdir(parents=True, exist_ok=True)
        sites = _install(plans, result.folder, wish.python, with_index, report)
        replicas = _replicas(job, plans, sites, output, wish, result, ports, report)
        lifecycle.Cluster(job, replicas, result, report, cancel or threading.Event(), grace).run()
    except BaseException as error:
        if result.state == jobs.RUNNING:
            result.state = jobs.FAILED if isinstance(error, Exception) else jobs.CANCELLED
            result.error = str(error) or type(error).__name__
        raise
    finally:
        ports.release()
        result.end = time.time()
        result.write()
    return result


def _wish(
    state_dir: str | Path, bucket_root: str | Path | None, project_dir: str | Path, python: str | None,
    kills: Sequence[Kill], trial: str | None, variables: Mapping[str, str] | None,
) -> _Wish:  # fmt: skip
    state, project = Path(os.path.abspath(state_dir)), Path(os.path.abspath(project_dir))
    if not project.is_dir():
        raise ValueError(f"--project_dir: there is no folder {project}.")
    program = sys.executable if python is None else shutil.which(python)
    if program is None:
        raise ValueError(f"--python: {python} is not a program that can be run.")
    root = Path(os.path.realpath(bucket_root or state / "buckets"))
    return _Wish(state, root, project, os.path.abspath(program), kills, trial, variables or {})


def _plans(job: JobSpec, wish: _Wish, announce: Collection[str]) -> dict[int, _Plan]:
    """Return what each pool that is started runs."""
    others = [f"workerpool{i}" for i, pool in enumerate(job.pools) if i and pool.replicas]
    for name in announce:
        if name not in others:
            raise ValueError(f"--announce: got {name!r}; it takes a pool beside the chief's: {', '.join(others) or 'none here'}.")
    return {
        i: _Plan(
            commands.for_pool(pool, wish.python, wish.project, wish.buckets),
            packages.locate(pool.package_uris, wish.project, wish.buckets),
        )
        for i, pool in enumerate(job.pools)
        if pool.replicas and not pool.is_reduction_server and f"workerpool{i}" not in announce
    }


def _check_kills(kills: Sequence[Kill], job: JobSpec, plans: Collection[int]) -> None:
    known = [f"workerpool{i}-{n}" for i in plans for n in range(job.pools[i].replicas)]
    for i, kill in enumerate(kills):
        if kill.replica not in known:
            raise ValueError(f"--kill {kill}: no such replica is started; there are {', '.join(known)}.")
        if kill.replica in [other.replica for other in kills[:i]]:
            raise ValueError(f"--kill {kill}: {kill.replica} is named twice, and only its first attempt can be killed.")


def _install(plans: Mapping[int, _Plan], folder: Path, python: str, with_index: bool, report: Quiet) -> dict[int, Path]:
    """Install each distinct list of packages once and return every pool's folder with them."""
    sites: dict[int, Path] = {}
    for i, plan in plans.items():
        same = [sites[j] for j in sites if plans[j].packages == plan.packages]
        if same:
            sites[i] = same[0]
        elif plan.packages:
            sites[i] = folder / "packages" / str(i) / "site"
            sites[i].mkdir(parents=True)
            packages.install(plan.packages, sites[i], python, with_index, report.say)
    return sites


def _replicas(
    job: JobSpec, plans: Mapping[int, _Plan], sites: Mapping[int, Path], output: str | None, wish: _Wish,
    result: jobs.Result, ports: Ports, report: Quiet,
) -> list[Replica]:  # fmt: skip
    """Place every replica in the cluster, and return those to start; says what each of them runs."""
    members = [
        environment.Member(i, index, f"localhost:{ports.take()}", ports.take())
        for i, pool in enumerate(job.pools)
        for index in range(pool.replicas)
    ]
    replicas = []
    for member in members:
        who = f"{member.name} ({member.role} {member.index}, {member.address})"
        if member.pool not in plans:
            report.say(f"{who}: announced to the others, not started")
            continue
        service = environment.service_variables(job, members, member, result.job_id, output, wish.trial)
        service.update(wish.variables)
        replica = _replica(member, plans[member.pool].command, sites.get(member.pool), service, wish, result.folder)
        report.say(f"{who} $ cd {shlex.quote(str(replica.cwd))} && {shlex.join(replica.argv)}")
        replicas.append(replica)
        result.outputs = {name: value for name, value in service.items() if name.endswith("_DIR")}
    return replicas


def _replica(
    member: environment.Member, command: commands.Command, site: Path | None, service: Mapping[str, str],
    wish: _Wish, folder: Path,
) -> Replica:  # fmt: skip
    """Return a replica ready to start: the caller's environment, then the image's and the spec's, then the service's."""
    name = member.name
    events, log = folder / "events" / f"{name}.jsonl", folder / "logs" / f"{name}.log"
    env = {"PYTHONUNBUFFERED": "1", **environment.inherited(os.environ), **command.env, **service}
    env |= {"TRAINER_EVENTS": str(events), "VERTEX_LOCAL_BUCKET_ROOT": str(wish.buckets)}
    env["PATH"] = os.pathsep.join((os.path.dirname(wish.python), env.get("PATH", os.defpath)))
    if site is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), env.get("PYTHONPATH"))))
    if wish.trial is not None:
        metrics = folder / "metrics" / name
        metrics.mkdir(parents=True)
        env["CLOUD_ML_HP_METRIC_FILE"] = str(metrics / "output.metrics")
    cwd = command.cwd
    if cwd is None:
        cwd = folder / "work" / name
        cwd.mkdir()
    kill = next((kill for kill in wish.kills if kill.replica == name), None)
    return Replica(member, command.argv, cwd, env, log, events, kill)
