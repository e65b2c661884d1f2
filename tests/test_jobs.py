"""The job files: complete, checked by the real types and by gcloud's own parser, and in step with the trainers."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import conftest
import pytest
import yaml
from conftest import ROOT
from test_cloud_support import REAL, gcloud_variables, needs_gcloud, script, serving

import vertex_runtime
from vertex_local.job import images, job_file, schema, settings
from vertex_local.tuning import study
from vertex_runtime import arguments

JOBS = ROOT / "jobs"
TRAINERS = ("taxifare", "stackoverflow")
CUSTOM = ("", "-2-workers", "-evaluator", "-reduction-server", "-tpu", "-spot", "-sdist")
TUNING = ("-tuning", "-tuning-2-workers")
CUSTOM_FILES = [f"{trainer}{kind}" for trainer in TRAINERS for kind in CUSTOM] + ["annotated"]
TUNING_FILES = [f"{trainer}{kind}" for trainer in TRAINERS for kind in TUNING]
GIVEN = {"project": "real-project-1", "region": "europe-west4", "bucket": "real-bucket-1"}


def text_of(name: str) -> str:
    return (JOBS / f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> tuple[job_file.JobFile, dict]:
    """Return a file's job (a study's trial job) and its whole message."""
    path = JOBS / f"{name}.yaml"
    if name in TUNING_FILES:
        found = study.load(path, GIVEN)
        return found.job, found.job.fields()
    job = job_file.read(path, GIVEN)
    return job, job.spec_fields()


def trainer_of(name: str) -> str:
    return name.partition("-")[0] if name != "annotated" else "taxifare"


# ------------------------------------------------------------------ what is there


def test_there_is_a_file_for_every_kind_of_job_and_no_other():
    there = {path.stem for path in JOBS.glob("*.yaml") if trainer_of(path.stem) not in {*conftest.TRAINERS} - {*TRAINERS}}
    assert there == {*CUSTOM_FILES, *TUNING_FILES, "settings", "kubernetes-tfjob"}


@pytest.mark.parametrize("name", CUSTOM_FILES + TUNING_FILES)
def test_the_file_is_what_the_service_takes(name):
    job, message = load(name)
    assert job.output == f"gs://real-bucket-1/{name}"
    assert text_of(name).startswith("# "), "each file opens with what it is for"
    assert f"jobs/{name}.yaml" in text_of(name), "and with the command that sends it"
    if [pool.replicas for pool in job.pools if pool.replicas and not pool.is_reduction_server] != [1]:
        assert job.restart_together, "peers of a lost replica fail: all must start again"
        batch = next((int(arg.partition("=")[2]) for arg in job.pools[0].args if arg.startswith("--batch_size=")), None)
        assert batch is None or batch % (1 + job.pools[1].replicas) == 0


@pytest.mark.parametrize("name", CUSTOM_FILES + TUNING_FILES)
def test_project_region_bucket_and_image_stand_in_the_settings_only(name):
    """annotated.yaml also names things of a project that no other file has: by number, or in comments."""
    lines = [line for line in text_of(name).splitlines() if not line.lstrip().startswith("#")]
    values = yaml.safe_load((JOBS / "settings.yaml").read_text())
    for value in (value for name, value in values.items() if name != "tag"):
        assert not [line for line in lines if re.search(rf"(?<![\w$]){re.escape(value)}(?!\w)", line)], value


def test_the_settings_are_those_that_have_flags():
    assert set(yaml.safe_load((JOBS / "settings.yaml").read_text())) == set(settings.NAMES)


# ------------------------------------------------------------------ in step with the trainers


@pytest.mark.parametrize("name", CUSTOM_FILES + TUNING_FILES)
def test_the_trainer_takes_the_arguments(name):
    hyperparameters = importlib.import_module(f"{trainer_of(name)}.trainer.hyperparameters").Hyperparameters
    job, _ = load(name)
    for pool in job.pools:
        if pool.replicas and not pool.is_reduction_server:
            _, options = arguments.parse(hyperparameters, pool.args, "")
            for path in (*options.train_data_path, *options.eval_data_path):  # in the image, or where build_package puts it
                assert (ROOT / re.sub(r"^gs://real-bucket-1/data/(\w+)/", r"\1/tests/data/", path)).is_file()


@pytest.mark.parametrize("name", TUNING_FILES)
def test_the_study_is_of_the_trainers_flags_and_metric(name):
    """A wrong flag fails every trial and a wrong metric makes every trial infeasible, after it was paid for."""
    trainer = trainer_of(name)
    hyperparameters = importlib.import_module(f"{trainer}.trainer.hyperparameters").Hyperparameters
    job, message = load(name)
    objective, maximize = re.search(
        r'^OBJECTIVE, MAXIMIZE = "(\w+)", (True|False)', (ROOT / trainer / "trainer" / "model.py").read_text(), re.MULTILINE
    ).groups()
    assert message["studySpec"]["metrics"] == [{"metricId": objective, "goal": "MAXIMIZE" if maximize == "True" else "MINIMIZE"}]
    workers = sum(pool.replicas for pool in job.pools)

    def flags(parameters: list) -> list[str]:
        found = []
        for parameter in parameters:
            kind = next(key for key in parameter if key.endswith("ValueSpec"))
            values = parameter[kind].get("values") or [parameter[kind]["minValue"], parameter[kind]["maxValue"]]
            if parameter["parameterId"] == "batch_size":
                assert not [value for value in values if value % workers]
            found += [f"--{parameter['parameterId']}={value}" for value in values]
            found += flags([child["parameterSpec"] for child in parameter.get("conditionalParameterSpecs", [])])
        return found

    for flag in flags(message["studySpec"]["parameters"]):
        arguments.parse(hyperparameters, [flag], "")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_sdist_file_names_the_package_of_this_version(trainer):
    (pool,) = load(f"{trainer}-sdist")[0].pools
    assert pool.package_uris == (f"gs://real-bucket-1/packages/{trainer}/vertex_trainer-{vertex_runtime.__version__}.tar.gz",)
    assert pool.module == f"{trainer}.trainer.task" and images.find(pool.image).role == "training"


def test_the_trainers_files_differ_in_names_only():
    for kind in CUSTOM:
        one, other = (
            re.sub(rf"{trainer}|taxi-", "", re.sub(r"^#.*\n", "", text_of(f"{trainer}{kind}"), flags=re.MULTILINE)) for trainer in TRAINERS
        )
        assert one == other, kind


# ------------------------------------------------------------------ the annotated file


def fields(descriptor, seen=()) -> set[str]:
    found = set()
    for field in descriptor.fields:
        found.add(field.json_name)
        kind = field.message_type
        if kind is not None and not kind.full_name.startswith("google.protobuf.") and kind.full_name not in seen:
            found |= fields(kind, (*seen, kind.full_name))
    return found


def test_every_field_of_a_custom_job_is_shown_somewhere():
    from google.cloud.aiplatform_v1.types import custom_job

    shown = "".join(text_of(name) for name in CUSTOM_FILES)
    missing = {name for name in fields(custom_job.CustomJobSpec.pb().DESCRIPTOR) if not re.search(rf"\b{name}\b", shown)}
    assert not missing


ALTERNATIVE = re.compile(r"^(\s*)# ((\w+): \S.*)$")
RIVALS = {"tpuTopology": ("acceleratorType", "acceleratorCount"), "experiment": ("tensorboard",), "pscInterfaceConfig": ("network",)}


def alternatives() -> list[tuple[int, str]]:
    names = {"gpuPartitionSize", "tpuTopology", "reservationAffinity", "lustreMounts", "command", "reservedIpRanges", "pscInterfaceConfig"}
    names |= {"experiment", "experimentRun", "enableDashboardAccess", "persistentResourceId", "protectedArtifactLocationId", "models"}
    lines = enumerate(text_of("annotated").splitlines())
    found = [(number, match[3]) for number, line in lines if (match := ALTERNATIVE.match(line)) and match[3] in names]
    assert {name for _, name in found} == names
    return found


@pytest.mark.parametrize("number, name", alternatives())
def test_every_alternative_in_the_annotated_file_parses(number, name):
    lines = text_of("annotated").splitlines()
    lines[number] = ALTERNATIVE.sub(r"\1\2", lines[number])
    message = yaml.safe_load(settings.render("\n".join(lines), str(JOBS / "annotated.yaml"), GIVEN))
    if name == "reservationAffinity":
        lines = [line for line in lines if not re.match(r"\s+(reservationAffinity:$|reservationAffinityType: NO)", line)]
    else:
        assert name in json.dumps(message)
    for rival in RIVALS.get(name, ()):
        lines = [line for line in lines if not re.match(rf"\s*{rival}: ", line)]
    job_file.parse(settings.render("\n".join(lines), str(JOBS / "annotated.yaml"), GIVEN), "annotated.yaml")


# ------------------------------------------------------------------ on this machine


@pytest.mark.slow
@pytest.mark.multiworker
@pytest.mark.parametrize(
    "name",
    [name for name in CUSTOM_FILES if name.startswith("taxifare") and "tpu" not in name] + ["annotated", "stackoverflow-evaluator"],
)
def test_the_file_runs_here(tmp_path, name):
    """As its own comment says; arguments after -- keep it short. TPU jobs have nothing to run on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if name.endswith("-sdist"):
        script("build_package", f"--trainer={trainer_of(name)}", "--sample_data", "--bucket_root=.vertex_local/buckets", cwd=tmp_path)
        environment["PYTHONPATH"] = ""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from vertex_local.__main__ import main; sys.exit(main())"
    words = ["run", JOBS / f"{name}.yaml", f"--project_dir={ROOT}", "--job_id=1", "--", "--epochs=4"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    output = tmp_path / ".vertex_local" / "buckets" / "your-bucket" / name
    assert (output / "model" / "saved_model.pb").is_file()
    if name.endswith("-evaluator"):
        log = (tmp_path / ".vertex_local" / "jobs" / "1" / "logs" / "workerpool3-0.log").read_text()
        assert "evaluator: step " in log and list((output / "logs" / "eval").iterdir())


# ------------------------------------------------------------------ gcloud

def post_with_gcloud(name: str, folder: Path, *flags: str) -> tuple[dict | None, str]:
    """Send a file's rendered text with the real gcloud to a stand-in; return the body received and what gcloud said."""
    given = dict(flag.removeprefix("--").split("=") for flag in REAL)
    path = folder / "job.yaml"
    path.write_text(job_file.read_text(JOBS / f"{name}.yaml", given))
    group = "hp-tuning-jobs" if name in TUNING_FILES else "custom-jobs"
    with serving() as service:
        words = ["gcloud", "ai", group, "create", "--project=real-project-1", "--region=europe-west4", f"--display-name={name}"]
        done = subprocess.run(
            [*words, f"--config={path}", *flags], env={**os.environ, **gcloud_variables(service.url, folder)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return (service.posted() if service.requests else None), done.stdout + done.stderr


@needs_gcloud
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("taxifare-reduction-server", "annotated", "stackoverflow-tuning") else pytest.mark.slow)
        for name in CUSTOM_FILES + TUNING_FILES
        if not name.endswith("-evaluator")
    ],
)
def test_gcloud_sends_what_the_file_says(tmp_path, name):
    body, said = post_with_gcloud(name, tmp_path)
    assert body is not None, said
    expected = load(name)[1]
    kind = "HyperparameterTuningJob" if name in TUNING_FILES else "CustomJob"
    whole = {**expected, "displayName": name} if name in TUNING_FILES else {"displayName": name, "jobSpec": expected}
    assert schema.to_message(body, kind) == schema.to_message(whole, kind)


@needs_gcloud
def test_gcloud_refuses_an_empty_pool(tmp_path):
    """Why scripts/submit_job sends jobs with an evaluator by REST; if this fails, gcloud has learnt it."""
    body, said = post_with_gcloud("taxifare-evaluator", tmp_path)
    assert body is None and "Exactly one of fields [pythonPackageSpec, containerSpec]" in said


# ------------------------------------------------------------------ the table of images


def test_every_training_image_is_past_and_the_warning_says_so():
    today = date(2026, 11, 21)
    for image in images.IMAGES:
        for host in ("us", "europe", "asia"):
            uri = image.uri.replace("us-", f"{host}-", 1) + ":latest"
            assert images.find(uri) is image
            said = images.warning(uri, today)
            assert image.role == "serving" or "past its end of availability" in said
            assert said is None or said.count("\n") == 0


@pytest.mark.parametrize(
    "uri, today, expected",
    [
        ("us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest", date(2026, 7, 10), "(2025-07-11), available until 2026-07-11"),
        ("us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest", date(2026, 7, 11), "past its end of availability (2026-07-11)"),
        ("us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-11.py310", date(2026, 11, 21), "a day before 2026-08-22"),
        ("europe-docker.pkg.dev/vertex-ai/prediction/tf2-gpu.2-15:latest", date(2026, 11, 21), "available until 2027-01-14"),
        ("europe-docker.pkg.dev/vertex-ai/prediction/tf2-gpu.2-15:latest", date(2027, 1, 14), "past its end of availability"),
        ("us-docker.pkg.dev/vertex-ai-restricted/prediction/tf_opt-cpu.2-17:latest", date(2026, 11, 21), None),
        ("us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-99.py310:latest", date(2026, 11, 21), "not among the prebuilt images known"),
        ("us-central1-docker.pkg.dev/p/trainers/taxifare:v1", date(2026, 11, 21), None),
        ("us-docker.pkg.dev/vertex-ai-restricted/training/reductionserver:latest", date(2026, 11, 21), None),
        ("tf-cpu.2-17.py310", date(2026, 11, 21), None),
    ],
)  # fmt: skip
def test_what_the_warning_says(uri, today, expected):
    said = images.warning(uri, today)
    assert said is None if expected is None else expected in said


def test_the_documents_show_the_table_of_images():
    """Each image of vertex_local/job/images.py with the end of its availability, and no other."""
    text = (ROOT / "docs" / "vertex-ai.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"`((?:tf|tf2|tf_opt)-\*\.[\w.-]+)` ([\w-]+)", text))
    names = {image: re.sub("-(cpu|gpu|tpu)[.]", "-*.", image.uri.rpartition("/")[2]) for image in images.IMAGES}
    ends = {image: str(image.availability_end or ("past" if image.gone else "open")) for image in images.IMAGES}
    assert shown == {(names[image], ends[image]) for image in images.IMAGES}
