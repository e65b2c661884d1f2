"""Run a job on this machine: every replica a process with the service's environment.

`run` blocks, keeps no global state, installs no signal handler, and may run in several threads at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..job import buckets, job_file
from ..job.job_file import JobFile
from ..job.pools import Pool
from ..metadata import lineage
from . import debugging, devices, job_record, jobs, lifecycle, packages, plan
from .containers import Containers
from .engines import find_engine
from .environment import DIRECTORIES, Member
from .kills import Kill
from .plan import Planner, ReplicaPlan, RunOptions
from .ports import Ports
from .process import Replica
from .report import Quiet
from .store import Store, Taken

# Makes the plan of one replica, given that replica and all replicas of the cluster.
Planned = Callable[[Member, Sequence[Member]], ReplicaPlan]


def run(
    job: JobFile, options: RunOptions | None = None, *, report: Quiet | None = None, cancel: threading.Event | None = None, **changes: Any
) -> jobs.Result:
    """Run `job` to its end and return how it went.

    Args:
        cancel: set it to end the job.
        changes: options by name, over those of `options`.

    Raises:
        UserError: the job cannot be started.
    """
    options, report = dataclasses.replace(options or RunOptions(), **changes), report or Quiet()
    paths, pools = options.paths(), plan.started(job, options.announce)
    containers = _containers(options, paths, report)
    files = _checked(job, options, paths, pools, containers)
    result, ports = jobs.create(paths.state, options.job_id), Ports()
    with job_record.held(result.folder), kept(job, options, result), jobs.recorded(result), contextlib.closing(ports):
        (result.folder / "spec.yaml").write_text(job.text(), encoding="utf-8")
        report.say(f"job {result.job_id}: {job.name}, in {result.folder}")
        for missing in devices.not_imitated(job):
            report.say(f"note: not imitated here: {missing}")
        if job.output:
            (paths.buckets / job.output[len("gs://") :].partition("/")[0]).mkdir(parents=True, exist_ok=True)
        planner = Planner(job, options, paths, result.folder, result.job_id, ports.take)
        replicas = _replicas(planner, pools, _planned(planner, files, containers, report), report)
        result.outputs = {name: value for name, value in replicas[0].plan.env.items() if name in DIRECTORIES}
        lifecycle.Cluster(job, replicas, result, report, cancel or threading.Event(), options.grace).run()
    return result


def _checked(
    job: JobFile, options: RunOptions, paths: plan.Paths, pools: Sequence[Pool], containers: Containers | None
) -> dict[int, list[Path]]:  # fmt: skip
    """Check all that can be checked before the job has a folder; return the package files of each pool."""
    _check_addresses(job, pools, paths.buckets)
    for pool in pools if containers is None else ():
        plan.command_of(pool, paths)
    files = {pool.index: packages.locate(pool.package_uris, paths.project, paths.buckets) for pool in pools}
    _check_kills(options.kills, pools)
    _check_debug(options.debug, pools, paths, containers)
    return files


def _check_addresses(job: JobFile, pools: Sequence[Pool], root: Path) -> None:
    """Check that every `gs://…` of a job has a place below `root`."""
    path: tuple = ("baseOutputDirectory", "outputUriPrefix")
    try:
        if job.output:
            buckets.to_path(job.output, root)
        for pool in pools:
            path = ("workerPoolSpecs", pool.index)
            for text in (*pool.command, *pool.args, *pool.package_uris, *(value for _, value in pool.env)):
                buckets.localize(text, root)
    except buckets.BucketError as error:
        raise job.spec_error(path, str(error)) from None


def _names(pools: Sequence[Pool]) -> list[str]:
    return [f"workerpool{pool.index}-{n}" for pool in pools for n in range(pool.replicas)]


def _check_debug(debug: debugging.Debug | None, pools: Sequence[Pool], paths: plan.Paths, containers: Containers | None) -> None:
    if debug is None:
        return
    debugging.check(debug, _names(pools), paths.python if containers is None else None)
    if containers is None:  # an image's command is known once there is the image
        pool = next(pool for pool in pools if debug.replica in _names([pool]))
        debugging.wrap(plan.command_of(pool, paths).argv, debugging.PORT)


def _check_kills(kills: Sequence[Kill], pools: Sequence[Pool]) -> None:
    known = _names(pools)
    for i, kill in enumerate(kills):
        if kill.replica not in known:
            raise UserError(f"--kill {kill}: no such replica is started; there are {', '.join(known)}.")
        if kill.replica in [other.replica for other in kills[:i]]:
            raise UserError(f"--kill {kill}: {kill.replica} is named twice, and only its first attempt can be killed; keep one.")


def _containers(options: RunOptions, paths: plan.Paths, report: Quiet) -> Containers | None:
    """Return what starts replicas in containers; None if they run as processes."""
    if options.containers is None:
        return None
    wanted = None if options.containers == "auto" else options.containers
    return Containers(find_engine(wanted, report.say), paths.project, options.build_args or {})


def _planned(planner: Planner, files: Mapping[int, Sequence[Path]], containers: Containers | None, report: Quiet) -> Planned:
    """Make the image of each pool, or install its packages, and return the function that plans a replica."""
    if containers is not None:
        images = {index: containers.image(planner.job.pools[index], found) for index, found in files.items()}
        return lambda member, members: planner.container(member, members, images[member.pool], containers)
    state, python, with_index = planner.paths.state, planner.paths.python, planner.options.with_index
    sites = {index: packages.site(found, state, python, with_index, report.say) for index, found in files.items() if found}
    return lambda member, members: planner.replica(member, members, sites.get(member.pool))


def _replicas(planner: Planner, pools: Sequence[Pool], planned: Planned, report: Quiet) -> list[Replica]:
    """Give every replica its address, report what each one runs, and return those to start."""
    members, indices, replicas = planner.members(), {pool.index for pool in pools}, []
    kills = {kill.replica: kill for kill in planner.options.kills}
    for member in members:
        who = f"{member.name} ({member.role} {member.index}, {member.address})"
        if member.pool not in indices:
            report.say(f"{who}: announced to the others, not started")
            continue
        found = planned(member, members)
        report.say(f"{who} {found}")
        replicas.append(Replica(found, planner.folder, kills.get(member.name)))
    return replicas


@contextlib.contextmanager
def kept(job: JobFile, options: RunOptions, result: jobs.Result) -> Iterator[None]:
    """Record the job in the store, while it runs and afterwards, if the options ask for it."""
    if not options.record:
        yield
        return
    kind = job_file.COLLECTIONS[job.kind]
    name = f"projects/{options.google_project}/locations/{options.region}/{kind}/{result.job_id}"
    document = {"displayName": job.display_name, **job.fields()}
    with contextlib.closing(Store(result.folder.parents[1])) as store:
        (result.folder / jobs.STOP).unlink(missing_ok=True)  # left by an earlier run of a continued study
        try:
            job_record.add(store, name, kind, document)
            job_record.running(store, name)
        except Taken:  # a continued study
            job_record.reopen(store, name, document)
        try:
            with lineage.kept(store, name, job.display_name, job.output, options.paths().buckets, print):
                yield
        finally:
            state = result.state.removeprefix("JOB_STATE_")
            error = {"code": 3, "message": result.error or "the job failed"} if state == job_record.FAILED else None
            job_record.end(store, name, state, error)
