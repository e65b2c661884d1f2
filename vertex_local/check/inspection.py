"""The checks of one job in their order: those of its file, then those that build its package and ask its trainer."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..job import images, machines
from ..local import commands, output, packages
from ..tuning.parameters import walk
from . import estimate, probe, requirements
from . import rules as checks
from .rules import ERROR, OK, SKIPPED, WARNING, Case, Finding

STEPS, SECONDS = 1000, 25.0  # the short training's steps, and how long it may take
IN_ALL = 52.0  # seconds for everything: what does not fit into them is left out, and said
_LOAD = "import sys, tensorflow as tf; m = tf.saved_model.load(sys.argv[1]); print(tf.__version__, *sorted(m.signatures))"


@dataclass
class Inspection:
    """One job's checks.

    Attributes:
        cancel: set it to end a training that is measured.
        freeze: a file that says what the image has.
        serving_python: an interpreter with the serving image's TensorFlow, to load the model with.
        file_only: read the job's file alone, build nothing and start nothing.
        measures: train for a moment.
        plan, time: what the checks leave for the estimate.
    """

    case: Case
    scratch: Path
    cancel: threading.Event
    freeze: Path | None
    serving_python: str | None
    file_only: bool
    measures: bool
    plan: dict[str, Any] | None = None
    program: probe.Program | None = None  # the chief's, if it answers
    site: Path | None = None
    served_by: str | None = None

    def __post_init__(self) -> None:
        self.time: estimate.Estimate | str = f"it was not measured ({'--file_only' if self.file_only else '--no_measure'})"
        self.end = time.monotonic() + IN_ALL

    def left(self, most: float) -> float:
        """Return the seconds that the next step may take."""
        return max(1.0, min(most, self.end - time.monotonic()))

    def findings(self) -> Iterator[Finding]:
        """Yield one finding after the other, the quick ones first."""
        case = self.case
        yield from checks.check_machines(case)
        yield from checks.check_images(case)
        yield from checks.check_scheduling(case)
        yield from checks.check_outputs(case)
        yield from checks.check_explanations(case)
        if not self.file_only:
            yield from self.check_package()
            yield from self.check_programs()
            yield from self.check_data()
        yield from checks.check_study(case, self.plan)
        yield from self.check_parameters()
        yield from self.check_time()
        yield from checks.check_serving(case, self.tensorflow(), self.served_by)

    def tensorflow(self) -> str | None:
        """Return the TensorFlow that the job trains with: the prebuilt image's, else that of the interpreter here."""
        found = images.find(self.case.job.pools[0].image)
        if found:
            return found.tensorflow
        code = "import importlib.metadata as m; print(m.version('tensorflow'))"
        done = subprocess.run([self.case.paths.python, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.stdout.strip() or None

    def check_package(self) -> Iterator[Finding]:
        """Build the sdist and compare what it requires with what the image has; look for the packages of the job."""
        case, pool = self.case, self.case.job.pools[0]
        if pool.module is None and not (case.paths.project / "setup.py").is_file():
            yield Finding(SKIPPED, "package", f"{case.paths.project}: has no setup.py, and what the container holds is not known.")
            return
        try:
            package = packages.build(case.paths.project, self.scratch, self._narrowed(), case.paths.python)
            yield from self._requirements(package)
            if pool.module:
                self.site = self.scratch / "site"
                packages.install(package, self.site, case.paths.python)
        except packages.PackageError as error:
            yield Finding(ERROR, "package", case.at(("workerPoolSpecs", 0), str(error)))
            return
        for i, uri in enumerate(pool.package_uris):
            path = ("workerPoolSpecs", 0, "pythonPackageSpec", "packageUris", i)
            if uri.startswith(("gs://", "/gcs/")) and not case.is_here(uri):
                yield Finding(SKIPPED, "package", case.at(path, f"whether {uri} is there: that needs the network."))
                continue
            try:
                packages.locate([uri], case.paths.project, case.paths.buckets)
                yield Finding(OK, "package", case.at(path, f"{uri} is there."))
            except packages.PackageError as error:
                yield Finding(ERROR, "package", case.at(path, str(error)))

    def _narrowed(self) -> str | None:
        """Return the trainer of a package that holds one only, as the module `trainer.task` asks for; its address says which."""
        pool, known = self.case.job.pools[0], commands.trainers(self.case.paths.project)
        if not (pool.module or "").startswith("trainer.") or len(known) < 2:
            return None
        parts = [part for uri in pool.package_uris for part in reversed(uri.split("/"))]
        return next(filter(None, (commands.trainer_in(part, known) for part in parts)), known[0])

    def _requirements(self, package: Path) -> Iterator[Finding]:
        case, pool = self.case, self.case.job.pools[0]
        image = images.find(pool.image)
        has = requirements.constraints(image, self.freeze)
        if not has:
            problem = f"{package.name} was built; what {pool.image} has is not known (--freeze FILE tells: scripts/image_freeze)."
            yield Finding(SKIPPED, "package", case.at(("workerPoolSpecs", 0), problem))
            return
        required, wanted = packages.requirements(package)
        place = ("workerPoolSpecs", 0, "pythonPackageSpec", "executorImageUri") if pool.module else ("workerPoolSpecs", 0)
        bad = list(requirements.clashes(required, wanted, has, image.python if image else None))
        for requirement, problem in bad:
            yield Finding(ERROR, "package", case.at(place, f"{package.name} requires {requirement}, but {problem}"))
        if not bad:
            source = self.freeze or "the few that the documents list"
            summary = f"{package.name}: its requirements clash with none of the image's {len(has)} packages ({source})"
            yield Finding(OK, "package", case.at(place, f"{summary}; names and versions only: without an index nothing is resolved."))

    def check_programs(self) -> Iterator[Finding]:
        """Find each pool's program and let it parse its arguments."""
        case, seen = self.case, set()
        for pool in case.trainers:
            key, task = (pool.image, pool.command, pool.module, pool.args, pool.env), ("workerPoolSpecs", pool.index, pool.task_field)
            if key in seen:
                continue
            seen.add(key)
            try:
                found = probe.program(case, pool.index, self.site, self.scratch)
                if found.ours:
                    probe.ask(found, "flags", self.left(20))
                    yield Finding(OK, "arguments", case.at((*task, "args"), f"{found.name} takes them."))
                    self.program = found if pool.index == 0 else self.program
                else:
                    done = probe.import_plain(found)
                    problem = f"{found.name} was {done}; it knows no --plan, so its arguments and data were not looked at."
                    yield Finding(SKIPPED, "arguments", case.at(task, problem))
            except commands.CommandError as error:
                yield Finding(SKIPPED, "module", case.at(task, str(error)))
            except probe.ProbeError as error:
                field: tuple[object, ...] = ("pythonModule" if pool.module else "imageUri",)
                if error.kind == "arguments":
                    field = ("args", *_argument_of(pool.args, str(error)))
                level = {"time": WARNING, "absent": SKIPPED}.get(error.kind, ERROR)
                yield Finding(level, "arguments" if error.kind == "arguments" else "module", case.at((*task, *field), str(error)))

    def check_data(self) -> Iterator[Finding]:
        """Let the chief's program import its model and read the data that is here."""
        case, found = self.case, self.program
        if found is None:
            return
        pool = case.pools[0]
        path, away = ("workerPoolSpecs", 0, pool.task_field, "args"), checks.remote(case, pool)
        try:
            self.plan = probe.ask(found, "model" if away else "report", self.left(40), devices=machines.devices(pool.machine_fields))
        except probe.ProbeError as error:
            missing = str(error).startswith("TensorFlow cannot be imported")
            level = SKIPPED if missing else WARNING if error.kind == "time" else ERROR
            where = (*path, *_argument_of(pool.args, str(error)))
            yield Finding(level, "module" if error.kind == "import" else "data", case.at(where, str(error)))
            yield from self._findings(path, error.findings)
            return
        yield Finding(OK, "module", case.at(path[:-1], f"{found.name} and its model can be imported."))
        if away:
            yield Finding(SKIPPED, "data", case.at(path, f"{', '.join(away)}: that needs the network."))
        else:
            yield from self._data(path)

    def _data(self, path: tuple[Any, ...]) -> Iterator[Finding]:
        case, plan = self.case, self.plan
        classes, about = plan["classes"], "" if plan["exact"] else "about "
        if len(classes) == 1:
            problem = f"all {about}{plan['rows']:,} training rows have the label {next(iter(classes))!r}: add others."
            yield Finding(ERROR, "labels", case.at(path, problem))
        elif classes:
            rarest = min(classes, key=classes.get)
            yield Finding(OK, "labels", case.at(path, f"{len(classes)} labels, the rarest {rarest!r} in {classes[rarest]:,} rows."))
        findings = [found for found in plan["findings"] if found["check"] != "labels" or len(classes) != 1]  # it is said above
        yield from self._findings(path, findings)
        if not any(found["level"] == "warning" for found in findings):
            problem = "nothing to warn of in bad and equal rows, labels and drift; the trainer's own --data_report shows them."
            yield Finding(OK, "report", case.at(path, problem))
        if plan["bad_rows"]:
            yield Finding(WARNING, "data", case.at(path, f"{plan['bad_rows']:,} bad rows are left out (--bad_rows=skip); mend them."))
        how = ""
        if plan["replicas"] > 1:
            how = f"; {plan['replicas']} replicas take {plan['batch_size'] // plan['replicas']} examples of each batch"
        rows = f"{about}{plan['rows']:,} rows in {len(plan['files'])} file(s) to train on, {plan['evaluation_rows']:,} to evaluate on"
        yield Finding(OK, "data", case.at(path, rows + how))
        steps, total = plan["options"]["checkpoint_steps"], plan["total_steps"]
        if case.job.strategy == "SPOT" and min(steps, total // plan["evaluations"]) >= total:
            problem = (
                f"no checkpoint before the end of {total} steps (--checkpoint_steps={steps}): "
                "a Spot machine's work would be lost; lower it."
            )
            yield Finding(WARNING, "scheduling", case.at(path, problem))

    def _findings(self, path: tuple[Any, ...], findings: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
        """What the trainer's own report on its data warns of; notes on labels stand in a line of the plan already."""
        for found in findings:
            if found["level"] == "warning":
                yield Finding(WARNING, found["check"], self.case.at(path, found["message"]))
            elif found["check"] != "labels":
                yield Finding(OK, found["check"], self.case.at(path, found["message"]))

    def check_parameters(self) -> Iterator[Finding]:
        """Let the trainer parse the study's parameters at the ends of their ranges, and divide its batches."""
        case, found = self.case, self.program
        if case.study is None or found is None:
            return
        bad, places = set(), {parameter.id: parameter.place for parameter in walk(case.study.parameters)}
        for row in checks.samples(case.study):
            if self.left(20) < 3:
                yield Finding(SKIPPED, "parameters", f"{case.job.name}: not all values of the parameters: the time was up.")
                return
            values, wrong = self._parse([(parameter.id, value) for parameter, value in row if parameter.id not in bad])
            if "batch_size" in places.keys() - bad - wrong.keys() and (problem := self._batch_problem(values.get("batch_size"))):
                wrong["batch_size"] = problem
            bad |= wrong.keys()
            for name, problem in wrong.items():
                yield Finding(ERROR, "parameters", case.in_file(places[name], problem))
        if not bad:
            problem = f"{found.name} takes the ends of {', '.join(places)}."
            yield Finding(OK, "parameters", case.in_file(("studySpec", "parameters"), problem))

    def _parse(self, values: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return (the hyperparameters that the trainer made of a trial's flags, what it said to those that it refused)."""
        wrong: dict[str, str] = {}
        while True:
            flags = {name: f"--{name}={value}" for name, value in values if name not in wrong}
            try:
                return probe.ask(self.program, "flags", self.left(20), *flags.values())["hyperparameters"], wrong
            except probe.ProbeError as error:
                if not flags:
                    return {}, wrong
                named = [name for name in flags if f"--{name}" in str(error).partition(";")[0]]
                wrong[max(named or list(flags), key=len)] = str(error)

    def _batch_problem(self, batch: int | None) -> str | None:
        plan = self.plan or {}
        if batch and batch % plan.get("replicas", 1):
            return f"{batch} does not divide by the {plan['replicas']} replicas; leave it out."
        if batch and batch > plan.get("rows", batch):
            return f"{batch} is more than the {plan['rows']} training rows; leave it out."
        return None

    def check_time(self) -> Iterator[Finding]:
        """Train for a moment, load the model with the serving TensorFlow if there is one, and compare with the timeout."""
        case, found = self.case, self.program
        if self.file_only or not self.measures:
            return
        if found is None or self.plan is None:
            self.time = "the trainer could not be asked"
            return
        plan = self.plan if "total_steps" in self.plan else None
        try:
            measured = probe.measure(found, plan, self.scratch, STEPS, self.left(SECONDS), max(SECONDS, self.left(IN_ALL)), self.cancel)
        except probe.ProbeError as error:
            self.time = str(error)
            yield Finding(WARNING, "time", f"{case.job.name}: not measured: {error}")
            return
        if self.serving_python:
            yield self._served(measured.model)
        if plan is None:
            self.time = f"the data is not here; {measured.examples_per_second:,.0f} examples/s on {measured.on}"
            return
        self.time = estimate.duration(case, plan, measured)
        if self.time.high and self.time.high > case.job.timeout:
            problem = f"{case.job.timeout:g}s, but the job may take up to {self.time.high:,.0f} s; raise it."
            yield Finding(WARNING, "time", case.at(("scheduling", "timeout"), problem))

    def _served(self, model: str | None) -> Finding:
        if model is None:
            return Finding(SKIPPED, "serving", "--serving_python: the short training did not come to an export.")
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run([self.serving_python, "-c", _LOAD, model], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
        if done.returncode:
            reason = output.last_error(done.stderr.splitlines())
            return Finding(
                ERROR,
                "serving",
                f"--serving_python {self.serving_python}: cannot load the exported model: {reason}. Train with its TensorFlow.",
            )
        self.served_by, *names = done.stdout.split()
        problem = f"TensorFlow {self.served_by} loads the exported model, with {', '.join(names)}."
        return Finding(OK, "serving", f"--serving_python: {problem}")


def _argument_of(args: Sequence[str], message: str) -> list[int]:
    """Return the place of the argument that a trainer's message is about; none where it is about none of the file's."""
    names = [re.match(r"--[\w-]+", arg) for arg in args]
    return [i for i, name in enumerate(names) if name and re.search(rf"{name[0].replace('-', '_')[2:]}\b", message)][-1:]
