"""What a replica runs: command, environment, folder and packages, from the job's message and the options of a run.

`run` starts replicas by these plans, `check` asks trainers questions by them, and `tune` prints a trial's command line.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, quoted
from ..job import buckets, settings
from ..job.job_file import JobFile
from ..job.pools import Pool
from . import commands, debugging, environment
from .containers import Containers
from .debugging import Debug
from .engines import Image, Launcher
from .environment import Identity, Member
from .kills import Kill

GRACE = 15.0  # seconds that the others get to leave once the chief is done


@dataclass(frozen=True)
class Paths:
    """Where jobs find what they need on this machine, all of it absolute; `python` runs for `python` and `python3`."""

    state: Path
    buckets: Path
    project: Path
    python: str


@dataclass(frozen=True)
class RunOptions:
    """How jobs run on this machine.

    Attributes:
        state_dir: where jobs have their folders.
        bucket_root: where `gs://bucket/x` lies as `bucket/x`; by default `<state_dir>/buckets`.
        project_dir: the checkout: its Dockerfile, and where containers start.
        python: the interpreter for `python` and `python3`; by default the one that runs this.
        with_index: install what a job's packages require and the interpreter does not have.
        job_id: the job's name; by default a number made of the time.
        trial: a tuning trial's id: the job's directories and variables are that trial's.
        variables: further ones for every replica, such as a training pipeline's `AIP_TRAINING_DATA_URI`.
        announce: pools such as `workerpool2` that are in the cluster but not started; a Reduction Server never is.
        kills: which replicas are ended where.
        grace: seconds for the others to leave once the chief is done.
        google_project, region: the job's project and region, for its replicas and in the store.
        containers: start replicas in containers by this engine, or by the first that works for "auto"; None starts processes.
        build_args: for the project's own image, such as BASE_IMAGE.
        cloud_credentials: let replicas have the caller's credentials and reach the cloud.
        debug: the replica that waits for a debugger to attach.
        record: keep the job in the store, for `list` and the job service, which keeps its own jobs there itself.
    """

    state_dir: str | Path = ".vertex_local"
    bucket_root: str | Path | None = None
    project_dir: str | Path = "."
    python: str | None = None
    with_index: bool = False
    job_id: str | None = None
    trial: str | None = None
    variables: Mapping[str, str] | None = None
    announce: Collection[str] = ()
    kills: Sequence[Kill] = ()
    grace: float = GRACE
    google_project: str = environment.PROJECT
    region: str = environment.REGION
    containers: str | None = None
    build_args: Mapping[str, str] | None = None
    cloud_credentials: bool = False
    debug: Debug | None = None
    record: bool = False

    def known_under(self, job: JobFile, given: Mapping[str, str] | None = None) -> RunOptions:
        """Return the options with the project and region of the settings beside the job's file; `given` settings come first."""
        values = settings.load(Path(job.name).parent, given)
        project, region = values.get("project", self.google_project), values.get("region", self.region)
        return dataclasses.replace(self, google_project=project, region=region)

    def paths(self) -> Paths:
        """Return the paths that the options name.

        Raises:
            UserError: there is no such checkout or interpreter, or buckets would lie in a file.
        """
        state, project = Path(os.path.abspath(self.state_dir)), Path(os.path.abspath(self.project_dir))
        if not project.is_dir():
            raise UserError(f"--project_dir: there is no folder {project}. Name the checkout.")
        program = sys.executable if self.python is None else shutil.which(self.python)
        if program is None:
            raise UserError(f"--python: {self.python} is not a program that can be run. Name an interpreter.")
        root = Path(os.path.realpath(self.bucket_root or state / "buckets"))
        if root.exists() and not root.is_dir():
            raise UserError(f"--bucket_root: {root} is a file. Name a folder.")
        return Paths(state, root, project, os.path.abspath(program))


@dataclass(frozen=True)
class ReplicaPlan:
    """One replica ready to start; `notes` are what to say when it starts, because it waits for somebody."""

    member: Member
    argv: tuple[str, ...]
    cwd: Path
    env: dict[str, str]
    launcher: Launcher | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.launcher is not None:
            return f"$ {shlex.join(self.argv)}  # in {self.launcher.engine.name}'s container of {self.launcher.image.name}"
        return f"$ cd {shlex.quote(str(self.cwd))} && {shlex.join(self.argv)}"


@dataclass(frozen=True)
class Planner:
    """Makes the plans of one job's replicas; `folder` is the job's own, and `take_port` returns a port of this machine for it."""

    job: JobFile
    options: RunOptions
    paths: Paths
    folder: Path
    job_id: str
    take_port: Callable[..., int]

    def members(self) -> list[Member]:
        """Return all replicas with their addresses in the cluster."""
        return [
            Member(pool.index, index, f"localhost:{self.take_port()}", self.take_port())
            for pool in self.job.pools
            for index in range(pool.replicas)
        ]

    def replica(self, member: Member, members: Sequence[Member], site: Path | None = None) -> ReplicaPlan:
        """Return what one replica runs, and make its folders.

        The environment is the caller's, then the image's and the job's, then the service's. `site` holds the packages of
        a pythonPackageSpec.
        """
        command = command_of(self.job.pools[member.pool], self.paths)
        env = self._environment(member, members, environment.inherited(os.environ, self.options.cloud_credentials), command.env)
        env["PATH"] = os.pathsep.join((os.path.dirname(self.paths.python), env.get("PATH", os.defpath)))
        if site is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), env.get("PYTHONPATH"))))
        cwd = command.cwd or self.folder / "work" / member.name
        cwd.mkdir(parents=True, exist_ok=True)
        plan = ReplicaPlan(member, command.argv, cwd, env)
        return self._debugged(plan, ("-m", "debugpy"), debugging.in_process(self.paths.project, site))

    def container(self, member: Member, members: Sequence[Member], image: Image, engine: Containers) -> ReplicaPlan:
        """Return what one replica runs in a container of `image`, which gets nothing of the caller's environment."""
        command = commands.for_pool(self.job.pools[member.pool], "python3", self.paths.project, self.paths.buckets, image)
        env = self._environment(member, members, {"HOME": "/tmp"}, command.env)
        readable = environment.service_files(env, self.paths.state)
        launcher = engine.launcher(image, self.folder, self.paths.buckets, member.name, readable)
        if self.options.debug is not None:
            launcher = dataclasses.replace(launcher, mounts=[*launcher.mounts, debugging.mount()])
        plan = ReplicaPlan(member, command.argv, self.folder, env, launcher)
        return self._debugged(plan, (str(debugging.INSIDE),), debugging.in_container(image.workdir, self.paths.buckets))

    def _debugged(self, plan: ReplicaPlan, debugpy: Sequence[str], folders: Mapping[str, str]) -> ReplicaPlan:
        """Return the plan, changed to run under the debugger if its replica is the one to be debugged."""
        debug = self.options.debug
        if debug is None or plan.member.name != debug.replica:
            return plan
        port = debugging.choose_port(debug, self.take_port)
        found = debugging.launch_configuration(debug.replica, port, folders)
        notes = debugging.instructions(debug.replica, found, self.folder / "launch.json", self.paths.project)
        env = {**plan.env, **debugging.VARIABLES}
        return dataclasses.replace(plan, argv=debugging.wrap(plan.argv, port, debugpy), env=env, notes=tuple(notes))

    def _environment(
        self, member: Member, members: Sequence[Member], surroundings: Mapping[str, str], own: Mapping[str, str]
    ) -> dict[str, str]:  # fmt: skip
        """Return a replica's variables: its surroundings', then its image's and job's `own`, then the service's; later ones win."""
        options, output = self.options, self.job.output and buckets.to_path(self.job.output, self.paths.buckets)
        of = Identity(self.job_id, output, options.trial, options.google_project, options.region)
        clients = {} if options.cloud_credentials else environment.client_variables(self.paths.state, self.folder)
        return {
            **clients,
            "PYTHONUNBUFFERED": "1",
            **surroundings,
            **{name: clients[name] for name in environment.CERTIFICATES if name in clients},
            **own,
            **environment.service_variables(self.job, members, member, of),
            **(options.variables or {}),
            **self._of_folder(member.name),
        }

    def _of_folder(self, name: str) -> dict[str, str]:
        found = {
            "TRAINER_EVENTS": str(self.folder / "events" / f"{name}.jsonl"),
            "VERTEX_LOCAL_BUCKET_ROOT": str(self.paths.buckets),
        }
        if self.options.debug is not None:
            found[debugging.VARIABLE] = self.options.debug.replica
        if self.options.trial is not None:
            metrics = metric_file(self.folder, name)
            metrics.parent.mkdir(parents=True, exist_ok=True)
            found["CLOUD_ML_HP_METRIC_FILE"] = str(metrics)
        return found


def metric_file(folder: Path, replica: str) -> Path:
    """Return where a replica of a trial's job writes its metrics."""
    return folder / "metrics" / replica / "output.metrics"


def command_of(pool: Pool, paths: Paths) -> commands.Command:
    """Return the command of each replica of a pool."""
    return commands.for_pool(pool, paths.python, paths.project, paths.buckets)


def started(job: JobFile, announce: Collection[str] = ()) -> list[Pool]:
    """Return the pools whose replicas are started here.

    Raises:
        UserError: `announce` names the chief's pool, or one that the job does not have.
    """
    others = [f"workerpool{pool.index}" for pool in job.pools if pool.index and pool.replicas]
    for name in announce:
        if name not in others:
            known = ", ".join(others) or "none here"
            raise UserError(f"--announce: got {quoted(name)}; it takes a pool beside the chief's: {known}.")
    return [pool for pool in job.pools if pool.trains and f"workerpool{pool.index}" not in announce]


def command_line(job: JobFile, paths: Paths) -> str:
    """Return the chief's command to type in the checkout; its module is named from there, so that it needs no PYTHONPATH."""
    found = command_of(job.pools[0], dataclasses.replace(paths, python="python"))
    argv, path = list(found.argv), found.env.get("PYTHONPATH", "")
    if argv[:2] == ["python", "-m"] and path:
        file = Path(*argv[2].split(".")).with_suffix(".py")
        entries = [Path(entry) for entry in path.split(os.pathsep)]
        inside = [entry.relative_to(paths.project) for entry in entries if entry.is_relative_to(paths.project)]
        named = [".".join((*entry.parts, argv[2])) for entry in inside if (paths.project / entry / file).is_file()]
        argv[2], path = (named[0], "") if named else (argv[2], path)
    return f"{f'PYTHONPATH={shlex.quote(path)} ' if path else ''}{shlex.join(argv)}"
