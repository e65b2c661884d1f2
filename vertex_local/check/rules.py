"""What can be told of a job from its file alone: machines, images, scheduling, outputs, and the study against its trainer."""

from __future__ import annotations

import glob
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ..job import buckets, deprecations, images, job_file, machines, settings
from ..job.job_file import JobFile
from ..job.pools import Pool
from ..local.plan import Paths
from ..tuning import study as studies
from ..tuning.parameters import Parameter, walk
from ..tuning.study import Study

OK, WARNING, ERROR, SKIPPED = "ok", "warning", "error", "not looked at"
_WEEK = 604800


@dataclass(frozen=True)
class Finding:
    """One line of the report: how it stands, what was checked, and file:line, field, value and remedy."""

    level: str
    check: str
    message: str


@dataclass(frozen=True)
class Case:
    """The job to check, and where `gs://` lies on this machine."""

    job: JobFile
    study: Study | None
    settings: Mapping[str, str]
    paths: Paths
    today: date
    has_all_buckets: bool = False  # --bucket_root was given: what is not there is missing, else it may be in the cloud
    variables: Mapping[str, str] = field(default_factory=dict)  # of a managed data set that was exported for the check

    @property
    def pools(self) -> list[Pool]:
        """The pools in use."""
        return [pool for pool in self.job.pools if pool.replicas]

    @property
    def trainers(self) -> list[Pool]:
        """The pools that run a trainer, which a Reduction Server does not."""
        return [pool for pool in self.pools if pool.trains]

    @property
    def workers(self) -> int:
        """How many replicas train together."""
        return sum(pool.replicas for pool in self.pools if pool.index < 2)

    def at(self, path: Sequence[Any], problem: str) -> str:
        """Return "file:line: field: problem" for a field of the CustomJobSpec."""
        return str(self.job.spec_error(tuple(path), problem))

    def in_file(self, path: Sequence[Any], problem: str) -> str:
        """Return the same for a field that the file has beside the CustomJobSpec, such as a study's."""
        return str(self.job.error(tuple(path), problem))

    def is_local(self, uri: str) -> bool:
        """Tell whether the bucket of a `gs://` address is a folder of this machine."""
        return (self.paths.buckets / re.sub("^(gs://|/gcs/)", "", uri).partition("/")[0]).is_dir()

    def is_here(self, uri: str) -> bool:
        """Tell whether what a `gs://` address names, wildcards too, is on this machine or must be."""
        return self.is_local(uri) and (self.has_all_buckets or bool(glob.glob(buckets.to_path(uri, self.paths.buckets))))


def load(
    path: str | Path, given: Mapping[str, str], extra: Sequence[str], paths: Paths, today: date, has_all_buckets: bool = False
) -> Case:  # fmt: skip
    """Read a job's file; `extra` goes after the arguments of every pool that runs a trainer.

    Raises:
        UserError: it cannot be read as a job: file, line, field and remedy.
    """
    job = job_file.read(path, given, tuple(job_file.COLLECTIONS)).with_args(extra)
    study = studies.of(job) if job.kind == job_file.TUNING else None
    return Case(job, study, settings.load(Path(path).parent, given), paths, today, has_all_buckets)


def check_machines(case: Case) -> Iterator[Finding]:
    """Machine types, their accelerators, and images that go with them."""
    for pool in case.pools:
        path, machine = ("workerPoolSpecs", pool.index, "machineSpec"), pool.machine_fields
        if found := machines.problem(machine):
            yield Finding(ERROR, "machine", case.at((*path, found[0]), found[1]))
            continue
        kind, size = machines.kind(machine), machines.vcpus(machine)
        if size is None and kind != "tpu":
            problem = f"{machine['machineType']} is not known here: see that the region has it and training takes it."
            yield Finding(WARNING, "machine", case.at((*path, "machineType"), problem))
        if kind == "tpu" and (len(case.pools) > 1 or pool.replicas > 1):
            yield Finding(
                ERROR,
                "machine",
                case.at(path, "a TPU job has one pool of one replica, whatever the size of the slice; leave out the others."),
            )
        elif kind == "tpu" and case.study:
            yield Finding(ERROR, "machine", case.at(path, "tuning jobs take no TPUs; use GPUs or CPUs."))
        image = images.find(pool.image)
        if image and kind != "tpu" and image.accelerator != kind:
            idle = "its GPUs would stay idle" if kind == "gpu" else "it is made for other machines"
            problem = f"{pool.image} is the {image.accelerator} image, but the machine has {kind.upper()}s: {idle}; take tf-{kind}."
            yield Finding(WARNING, "machine", case.at(path[:2], problem))
        count = f", {size} vCPUs" if size else ""
        yield Finding(OK, "machine", case.at(path, f"{pool.replicas} x {machines.describe(machine)}{count}"))
    reducers = [pool.index for pool in case.pools if pool.is_reduction_server]
    if reducers and any(machines.kind(pool.machine_fields) != "gpu" for pool in case.trainers if pool.index < 2):
        problem = "a Reduction Server serves NCCL only: give chief and workers GPUs, or leave the pool out."
        yield Finding(ERROR, "machine", case.at(("workerPoolSpecs", reducers[0]), problem))


def check_images(case: Case) -> Iterator[Finding]:
    """Prebuilt images past their end, and settings that still are placeholders."""
    seen = set()
    for pool in case.pools:
        path = ("workerPoolSpecs", pool.index, pool.task_field, "executorImageUri" if pool.is_package else "imageUri")
        if pool.image in seen:
            continue
        seen.add(pool.image)
        if problem := images.warning(pool.image, case.today):
            yield Finding(WARNING, "image", case.at(path, problem))
        elif not images.find(pool.image):
            yield Finding(SKIPPED, "image", case.at(path, f"whether {pool.image} is in its registry: that needs the network."))
        else:
            yield Finding(OK, "image", case.at(path, f"{pool.image} is among the prebuilt images, none of its dates past."))
    if left := [name for name in settings.PLACEHOLDERS if name in json.dumps(case.job.fields())]:
        problem = f"placeholders are left, {' and '.join(left)}: good for local runs only; write your own into settings.yaml."
        yield Finding(WARNING, "settings", f"{case.job.name}: {problem}")


def check_explanations(case: Case) -> Iterator[Finding]:
    """A training pipeline's model that is to be registered with explanations, which the service ends."""
    if case.job.kind == job_file.PIPELINE and case.job.message.model_to_upload.HasField("explanation_spec"):
        path = ("modelToUpload", "explanationSpec")
        yield Finding(WARNING, "explanation", case.in_file(path, deprecations.explanations(case.today)))


def check_serving(case: Case, tensorflow: str | None, loaded_by: str | None = None) -> Iterator[Finding]:
    """Whether the serving image of the settings can be expected to load what this TensorFlow exports.

    `loaded_by` is the TensorFlow that was seen to load it.
    """
    uri = case.settings.get("serving")
    if not uri:
        return
    where, image = f"setting serving ({Path(case.job.name).parent / 'settings.yaml'})", images.find(uri)
    if image is None:
        if re.search(r"vertex-ai(-restricted)?/prediction/", uri):
            known = sorted({row.tensorflow for row in images.IMAGES if row.role == "serving"}, key=_version)
            problem = f"there is no serving image {uri}: TensorFlow {', '.join(known)} are served; or serve with a container of your own."
            yield Finding(ERROR, "serving", f"{where}: {problem}")
        return
    if problem := images.warning(uri, case.today):
        yield Finding(WARNING, "serving", f"{where}: {problem}")
    tried = loaded_by if loaded_by and _version(loaded_by) <= _version(image.tensorflow) else None
    if tensorflow and _version(tensorflow) > _version(image.tensorflow) and not tried:
        problem = (
            f"trained with TensorFlow {tensorflow}, served with {image.tensorflow} ({uri}): newer operations may not load there, which "
            f"was not tried; --serving_python PATH tries it with a TensorFlow {image.tensorflow}, or serve with a container of your own."
        )
        yield Finding(WARNING, "serving", f"{where}: {problem}")
    elif tensorflow:
        how = f"as TensorFlow {tried} did" if tried else "being as new; that it loads was not tried"
        yield Finding(OK, "serving", f"{where}: TensorFlow {image.tensorflow} ({uri}) should load what {tensorflow} exports, {how}.")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def check_scheduling(case: Case) -> Iterator[Finding]:
    """Restarts, timeouts, Spot and FLEX_START."""
    strategy, path = case.job.strategy, ("scheduling",)
    has_timeout = case.job.spec.scheduling.HasField("timeout")
    if case.workers > 1 and not case.job.restart_together:
        why = "disableRetries is true" if case.job.disable_retries else "it is false"
        problem = f"{why}, with {case.workers} workers: the peers of a lost one wait for it in vain; set it to true"
        problem += ", without disableRetries." if case.job.disable_retries else "."
        yield Finding(WARNING, "scheduling", case.at((*path, "restartJobOnWorkerRestart"), problem))
    if not has_timeout:
        yield Finding(
            WARNING,
            "scheduling",
            case.at((*path, "timeout"), "is not given: a job that hangs is paid for seven days; give one, such as 7200s."),
        )
    elif case.job.timeout > _WEEK:
        level = ERROR if strategy == "FLEX_START" else WARNING
        yield Finding(level, "scheduling", case.at((*path, "timeout"), f"takes at most the documented 7 days; got {case.job.timeout:g}s."))
    if strategy in ("SPOT", "FLEX_START"):
        if not case.job.output and not any("--output_dir" in arg for arg in case.job.pools[0].args):
            problem = f"{strategy} without baseOutputDirectory: a machine that is taken away takes its checkpoints along; give one."
            yield Finding(ERROR, "scheduling", case.at((*path, "strategy"), problem))
        if strategy == "SPOT" and case.job.disable_retries:
            problem = "SPOT with disableRetries: the first machine taken away ends the job; leave disableRetries out."
            yield Finding(ERROR, "scheduling", case.at((*path, "disableRetries"), problem))
    if strategy == "SPOT" and any(_is_tpu_pod(pool.machine_fields) for pool in case.pools):
        yield Finding(ERROR, "scheduling", case.at((*path, "strategy"), "TPU pods are not to be had as Spot VMs; use STANDARD."))
    if strategy == "FLEX_START":
        found = {(m.get("machineType"), m.get("acceleratorType")) for m in (pool.machine_fields for pool in case.pools)}
        if len(found) > 1 or not str(next(iter(found))[1]).startswith(machines.FLEXIBLE):
            problem = f"FLEX_START takes one machine type for all pools, with one of {', '.join(machines.FLEXIBLE)}."
            yield Finding(ERROR, "scheduling", case.at((*path, "strategy"), problem))
    if strategy == "STANDARD" and has_timeout:
        yield Finding(OK, "scheduling", case.at((*path, "timeout"), f"{case.job.timeout:g}s, STANDARD"))


def _is_tpu_pod(machine: Mapping[str, Any]) -> bool:
    return machines.kind(machine) == "tpu" and machines.devices(machine) > 8


def check_outputs(case: Case) -> Iterator[Finding]:
    """Whether there is a place to write to, and where it is local, whether it can be written."""
    path, output = ("baseOutputDirectory", "outputUriPrefix"), case.job.output
    if output is None:
        if not any("--output_dir" in arg for arg in case.job.pools[0].args):
            problem = "is not given, nor is --output_dir: the model would be lost with the machine; give gs://bucket/folder."
            yield Finding(ERROR, "outputs", case.at(("baseOutputDirectory",), problem))
        return
    if not case.is_local(output):
        bucket = output[len("gs://") :].partition("/")[0]
        problem = f"whether {output} can be written: that needs the network (no bucket {bucket} under {case.paths.buckets})."
        yield Finding(SKIPPED, "outputs", case.at(path, problem))
        return
    folder = Path(buckets.to_path(output, case.paths.buckets))
    if problem := _unwritable(folder):
        problem = f"{output} cannot be written: {problem}; make it writable, or choose another folder."
        yield Finding(ERROR, "outputs", case.at(path, problem))
        return
    if (folder / "checkpoints").is_dir() and not case.study:
        yield Finding(
            WARNING,
            "outputs",
            case.at(
                path, f"{output} holds an earlier run, from whose checkpoints this job would go on; choose another folder to begin anew."
            ),
        )
    yield Finding(OK, "outputs", case.at(path, f"{output} can be written (in {case.paths.buckets})."))


def _unwritable(folder: Path) -> str | None:
    """Return why files cannot be made in `folder`, which need not exist yet; leaves nothing behind."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        return f"{there} is a file"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return f"{there}: {error.strerror}"
    return None


def check_study(case: Case, plan: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The study's metric against what the trainer reports; `plan` is what the trainer said of itself."""
    study = case.study
    if study is None:
        return
    if study.max_failed == 0:
        problem = "is 0: the first trial that fails ends the whole job; allow some, such as 3."
        yield Finding(WARNING, "study", case.in_file(("maxFailedTrialCount",), problem))
    if plan is None or "metrics" not in plan:
        problem = f"whether the trainer reports {study.metrics[0].id}: it did not say what it reports."
        yield Finding(SKIPPED, "metric", f"{case.job.name}: {problem}")
        return
    for i, metric in enumerate(study.metrics):
        path, reported = ("studySpec", "metrics", i, "metricId"), ", ".join(plan["metrics"])
        if metric.id not in plan["metrics"]:
            problem = (
                f"{metric.id!r} is never reported: the trainer reports {reported}; without it every trial is infeasible; name one of these."
            )
            yield Finding(ERROR, "metric", case.in_file(path, problem))
        elif metric.maximize != plan["maximize"]:
            goal = "MAXIMIZE" if plan["maximize"] else "MINIMIZE"
            problem = f"the trainer takes {metric.id} to be better the {'larger' if plan['maximize'] else 'smaller'} it is; write {goal}."
            yield Finding(ERROR, "metric", case.in_file((*path[:-1], "goal"), problem))
        else:
            yield Finding(OK, "metric", case.in_file(path, f"{metric.id} is what the trainer reports"))


def samples(study: Study) -> list[list[tuple[Parameter, str]]]:
    """Return sets of values to try the trainer's parser with: together they hold every end and every listed value."""
    columns = [(parameter, _values(parameter)) for parameter in walk(study.parameters)]
    return [[(parameter, values[i % len(values)]) for parameter, values in columns] for i in range(max(len(v) for _, v in columns))]


def _values(parameter: Parameter) -> list[str]:
    """Return texts as the service passes them: discrete values are doubles."""
    if parameter.kind == "integer":
        return [str(int(parameter.low)), str(int(parameter.high))]
    values = parameter.values or (parameter.low, parameter.high)
    return [value if isinstance(value, str) else repr(float(value)) for value in values[:20]]


def remote(case: Case, pool: Pool) -> list[str]:
    """Return the `gs://` addresses in a pool's arguments and variables that are not on this machine."""
    text = "\n".join((*pool.args, *(value for _, value in pool.env)))
    return [uri for uri in re.findall(r"(?:gs://|(?<![\w.])/gcs/)[^\s,;\"']+", text) if not case.is_here(uri)]
