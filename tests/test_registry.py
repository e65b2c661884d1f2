"""Promotion, roll-back and evaluations: the scripts and the real SDK against the local service."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys

import pytest
from conftest import ROOT
from test_cloud_support import call, script
from test_gate import SIGNATURE, evaluation, paired
from test_serve_support import Service, lead_sdk, write_object

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from google.cloud import aiplatform  # noqa: E402

from vertex_submit import promote  # noqa: E402

SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
PARENT = "/v1/projects/your-project/locations/us-central1"
# Stands in for the process that holds a SavedModel, and answers with that one's folder; a model called `broken` does not come up.
SERVES = f"""#!{sys.executable}
import json, sys
folder = sys.argv[3]
if "broken" in folder:
    sys.exit("error: no luck")
for line in sys.stdin:
    print(json.dumps({{"predictions": [folder.rpartition("/")[2]] * len(json.loads(line)["instances"])}}), flush=True)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    program = folder / "serves"
    program.write_text(SERVES)
    program.chmod(0o755)
    started = Service(folder, f"--project_dir={ROOT}", f"--python={program}")
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def sdk(service, monkeypatch):
    lead_sdk(service, monkeypatch)


@pytest.fixture
def model(service, request) -> Model:
    return Model(service, re.sub(r"\W|_", "-", request.node.name)[:60])


class Model:
    """A model with three versions whose files differ, its evaluation's file, and what the scripts make of it."""

    def __init__(self, service: Service, name: str):
        self.service, self.name = service, name
        self.uris = [self._files(version) for version in ("v1", "v2", "v3")]
        first = self.upload(self.uris[0])
        self.number = first.name
        self.uploaded = [first, *(self.upload(uri, parent_model=first.resource_name) for uri in self.uris[1:])]

    def _files(self, version: str) -> str:
        write_object(self.service, f"models-bucket/{self.name}/{version}/variables/data", version)
        uri = write_object(self.service, f"models-bucket/{self.name}/{version}/saved_model.pb", version)
        return uri.removesuffix("/saved_model.pb")

    def upload(self, uri: str, **options) -> aiplatform.Model:
        return aiplatform.Model.upload(display_name=self.name, artifact_uri=uri, serving_container_image_uri=SERVING, **options)

    def evaluated(self, folder, version: int, champion: int | None = None, **changed):
        """Write the evaluation of a version, against a champion's if there is one, and return its path."""
        against = {**evaluation()["against"], "model": self.uris[champion - 1]} if champion else None
        made = {**evaluation(model=self.uris[version - 1], against=against), **changed}
        path = folder / f"{self.name}-{version}.json"
        path.write_text(json.dumps(made))
        return path

    def promote(self, folder, version: int, champion: int | None = None, *flags: object, code: int = 0, **changed):
        path = self.evaluated(folder, version, champion, **changed)
        return call(promote.main, f"{self.name}@{version}", f"--evaluation={path}", *flags, cwd=folder, code=code)

    def rollback(self, folder, *flags: object, code: int = 0, version: str = ""):
        return call(promote.main, "--rollback", f"{self.name}{version}", *flags, cwd=folder, code=code)

    @property
    def aliases(self) -> dict[str, str]:
        """The versions by their aliases, without the default one."""
        found = self.uploaded[0].versioning_registry.list_versions()
        return {alias: each.version_id for each in found for alias in each.version_aliases if alias != "default"}


# ------------------------------------------------------------------ aliases


def test_promotion_and_rollback_move_the_aliases(model, tmp_path):
    model.upload(model.uris[0], parent_model=model.uploaded[0].resource_name, version_aliases=["challenger"])  # version 4, as 1
    assert model.aliases == {"challenger": "4"}
    path = model.evaluated(tmp_path, 1)
    done = call(promote.main, model.number, f"--evaluation={path}", "--threshold=3.0", cwd=tmp_path)
    assert model.aliases == {"champion": "4"}, "without a version the challenger is promoted, and is none any more"
    assert done.stdout.endswith(f"/models/{model.number}@4 is the champion\n")
    model.promote(tmp_path, 2, 1)
    assert model.aliases == {"champion": "2", "previous-champion": "4"}
    again = model.promote(tmp_path, 2, 1)
    assert "nothing to do" in again.stdout and model.aliases == {"champion": "2", "previous-champion": "4"}
    model.promote(tmp_path, 3, 2)
    assert model.aliases == {"champion": "3", "previous-champion": "2"}
    model.rollback(tmp_path)
    assert model.aliases == {"champion": "2", "rolled-back": "3"}
    assert "nothing to do" in model.rollback(tmp_path).stdout, "repeated, it does not go back to what was rolled back"
    model.rollback(tmp_path, version="@4")
    assert model.aliases == {"champion": "4", "rolled-back": "2"}
    model.promote(tmp_path, 2, 1)
    assert model.aliases == {"champion": "2", "previous-champion": "4"}, "what was rolled back may be promoted again"


def test_a_change_that_broke_off_is_finished_by_the_same_command(model, tmp_path):
    model.promote(tmp_path, 1)
    registry = model.uploaded[0].versioning_registry
    registry.add_version_aliases(["previous-champion"], "1")  # as far as a promotion of version 2 came
    model.promote(tmp_path, 2, 1)
    assert model.aliases == {"champion": "2", "previous-champion": "1"}
    registry.add_version_aliases(["rolled-back"], "2")  # as far as a roll-back came
    model.rollback(tmp_path)
    assert model.aliases == {"champion": "1", "rolled-back": "2"}


def test_a_dry_run_changes_nothing(model, tmp_path):
    model.promote(tmp_path, 1)
    done = model.promote(tmp_path, 2, 1, "--dry_run")
    assert done.stdout.splitlines() == [
        "would do: import the evaluation into version 2",
        "would do: alias previous-champion to version 1",
        "would do: alias champion to version 2",
    ]
    assert model.aliases == {"champion": "1"} and not model.uploaded[1].list_model_evaluations()


def test_the_scripts_by_themselves(model, tmp_path):
    path = model.evaluated(tmp_path, 1)
    environment = model.service.endpoint.environment()
    done = script("promote", f"{model.name}@1", f"--evaluation={path}", cwd=tmp_path, env=environment)
    assert "do: alias champion to version 1" in done.stdout and model.aliases == {"champion": "1"}
    done = script("rollback", model.name, cwd=tmp_path, env=environment, code=2)
    assert "no version of projects/" in done.stderr and done.stderr.count("\n") == 1


# ------------------------------------------------------------------ the gate


def test_what_the_gate_refuses_is_not_promoted(model, tmp_path):
    model.promote(tmp_path, 1)
    worse = {**paired(0.3, 0.001), "model": model.uris[0]}
    done = model.promote(tmp_path, 2, 1, "--threshold=2.5", "--most_skew=0.05", code=promote.REFUSED, against=worse)
    assert done.stderr.count("\n") == 1 and "@2 is not promoted: rmse is 3, must be 2.5 or less; " in done.stderr
    assert "place 0.09" in done.stderr and "above that of" in done.stderr
    assert model.aliases == {"champion": "1"} and not model.uploaded[1].list_model_evaluations(), "nothing was changed"


def test_an_evaluation_must_be_of_the_very_model_and_against_the_champion(model, tmp_path):
    other = model.promote(tmp_path, 1, code=2, model=model.uris[1])
    assert f"is of {model.uris[1]}, whose files are not those of version 1" in other.stderr
    gone = model.promote(tmp_path, 1, code=2, model=str(tmp_path / "gone"))
    assert "whose files are not those of version 1" in gone.stderr
    model.promote(tmp_path, 1)
    assert "was made against no other model; the champion is version 1" in model.promote(tmp_path, 2, code=2).stderr
    assert f"was made against {model.uris[2]}" in model.promote(tmp_path, 2, 3, code=2).stderr
    assert model.aliases == {"champion": "1"}


def test_a_copy_with_the_same_files_is_the_same_model(model, tmp_path):
    """As a job sees it under /gcs, and as it lies on this machine before it is copied into a bucket."""
    model.promote(tmp_path, 1, model=model.uris[0].replace("gs://", "/gcs/") + "/")
    copied = model.service.state / "buckets" / model.uris[1].removeprefix("gs://")
    model.promote(tmp_path, 2, 1, model=str(copied))
    assert model.aliases["champion"] == "2"
    (copied / "variables" / "data").write_text("v9")
    elsewhere = tmp_path / "v3"
    elsewhere.mkdir()
    (elsewhere / "saved_model.pb").write_text("v3")
    assert "whose files are not those" in model.promote(tmp_path, 3, 2, model=str(elsewhere), code=2).stderr, "a file is missing"


@pytest.mark.parametrize("flags, text", [
    (["m@1"], "--evaluation: is required"), (["m@1", "--evaluation=gone.json"], "gone.json: cannot be read"),
    (["--rollback", "m", "--threshold=1"], "--threshold: is for a promotion"), (["m@1", "--threshold=x"], "invalid float value"),
    (["--rollback", "nothing"], "MODEL: there is no model 'nothing'"), (["--rollback", 'a"b'], "MODEL: there is no model 'a\"b'"),
    (["--rollback", "projects/p/models/1"], "MODEL: takes an id or projects/P/locations/L/models/ID"),
    (["--rollback", "m", "--machine_type=n1-standard-4"], "--machine_type: is for --endpoint"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path, flags, text):
    done = call(promote.main, *flags, cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and text in done.stderr


def test_more_mistakes_about_versions_and_endpoints(model, tmp_path):
    path = model.evaluated(tmp_path, 1)
    done = call(promote.main, model.name, f"--evaluation={path}", cwd=tmp_path, code=2)
    assert "has no version 'challenger'; give one of 3 (default), 2, 1" in done.stderr
    done = call(promote.main, f"{model.name}@1", f"--evaluation={path}", "--endpoint=nowhere", cwd=tmp_path, code=2)
    assert "--endpoint: there is no endpoint 'nowhere'" in done.stderr
    done = call(promote.main, f"{model.name}@1", f"--evaluation={path}", "--significance=2", cwd=tmp_path, code=2)
    assert "--significance: takes a probability" in done.stderr
    model.upload(model.uris[0])
    assert "several models are called" in model.rollback(tmp_path, code=2).stderr


# ------------------------------------------------------------------ traffic


def test_the_endpoints_traffic_goes_with_the_champion(model, tmp_path):
    endpoint = aiplatform.Endpoint.create(display_name=model.name)
    answers = lambda: set(endpoint.predict(["x"]).predictions)  # noqa: E731
    model.promote(tmp_path, 1, None, f"--endpoint={model.name}", "--machine_type=n1-standard-4")
    assert answers() == {"v1"} and model.aliases == {"champion": "1"}
    done = model.promote(tmp_path, 2, 1, f"--endpoint={endpoint.name}")
    assert answers() == {"v2"} and "do: deploy version 2 on projects/" in done.stdout
    old, new = sorted(endpoint.list_models(), key=lambda each: each.model_version_id)
    assert endpoint.traffic_split == {new.id: 100} and new.dedicated_resources == old.dedicated_resources, "on the same machines"
    assert f"gcloud ai endpoints undeploy-model {endpoint.name} --project=" in done.stdout and old.id in done.stdout
    done = model.rollback(tmp_path, f"--endpoint={endpoint.resource_name}")
    assert answers() == {"v1"} and "deploy" not in done.stdout.partition("is the champion")[0], "it was still deployed"
    assert "nothing to do" in model.rollback(tmp_path, f"--endpoint={endpoint.name}").stdout
    model.promote(tmp_path, 3, 1, f"--endpoint={endpoint.name}")
    first = next(each.id for each in endpoint.list_models() if each.model_version_id == "1")
    endpoint.undeploy(first)
    done = model.rollback(tmp_path, f"--endpoint={endpoint.name}")
    assert answers() == {"v1"} and "do: deploy version 1 on" in done.stdout, "undeployed meanwhile, it is deployed again"
    assert model.aliases == {"champion": "1", "rolled-back": "3"}


def test_other_models_keep_their_share(model, tmp_path, request):
    other = Model(model.service, f"{model.name}-other")
    endpoint = aiplatform.Endpoint.create(display_name=model.name)
    other.uploaded[0].deploy(endpoint=endpoint, machine_type="n1-standard-2")
    done = model.promote(tmp_path, 1, None, f"--endpoint={endpoint.name}", code=2)
    assert "gives all its traffic to other models" in done.stderr and not model.aliases, "nothing was changed"
    model.uploaded[0].deploy(endpoint=endpoint, traffic_percentage=60, machine_type="n1-standard-2")
    model.promote(tmp_path, 2, None, f"--endpoint={endpoint.name}")
    shares = {each.display_name + each.model_version_id: endpoint.traffic_split.get(each.id, 0) for each in endpoint.list_models()}
    assert shares == {f"{other.name}1": 40, f"{model.name}1": 0, f"{model.name}2": 60}


def test_a_model_that_cannot_be_deployed_changes_nothing(model, tmp_path):
    endpoint = aiplatform.Endpoint.create(display_name=model.name)
    model.promote(tmp_path, 1, None, f"--endpoint={endpoint.name}")
    model.uris.append(model._files("broken"))
    model.upload(model.uris[3], parent_model=model.uploaded[0].resource_name)
    done = model.promote(tmp_path, 4, 1, f"--endpoint={endpoint.name}", code=1)
    assert done.stderr.count("\n") == 1 and "no luck" in done.stderr and "Done: nothing. Not done: deploy version 4 on" in done.stderr
    assert model.aliases == {"champion": "1"} and endpoint.predict(["x"]).predictions == ["v1"]


# ------------------------------------------------------------------ evaluations


def test_a_promotion_imports_the_evaluation_once(model, tmp_path):
    slices = [{"column": "hour", "value": value, "rows": 10 + value, "metrics": {"rmse": 9.0 - value}} for value in range(60)]
    slices[0]["value"] = "[0..5)"
    metrics = {"rmse": 3.0, "mae": 2.0, "r2": 0.5, "median_error": 1.0, "worst": float("inf")}
    for _ in range(2):
        model.promote(tmp_path, 1, slices=slices, metrics=metrics, data={"files": [{"path": "gs://b/eval.csv"}], "rows": 500})
    (found,) = model.uploaded[0].list_model_evaluations()
    assert dict(found.metrics) == {"rootMeanSquaredError": 3.0, "meanAbsoluteError": 2.0, "rSquared": 0.5}
    resource = found.gca_resource
    assert resource.metrics_schema_uri.endswith("/regression_metrics_1.0.0.yaml") and resource.display_name == "rmse 3.0"
    assert resource.metadata["metrics"]["median_error"] == 1.0 and resource.metadata["evaluation_dataset_path"] == ["gs://b/eval.csv"]
    assert list(resource.slice_dimensions) == ["slice"]
    assert model.uploaded[0].get_model_evaluation().resource_name == found.resource_name
    assert aiplatform.Model(f"{model.number}@1").get_model_evaluation(found.name).display_name == "rmse 3.0"
    assert not model.uploaded[1].list_model_evaluations(), "an evaluation is of one version"
    kept = list(found.api_client.list_model_evaluation_slices(request={"parent": found.resource_name, "page_size": 30}))
    assert len(kept) == 50 and {each.metrics_schema_uri for each in kept} == {resource.metrics_schema_uri}
    by_value = {each.slice_.value: each for each in kept}
    assert by_value["hour=[0..5)"].slice_.slice_spec.configs["hour"].value.string_value == "[0..5)"
    assert by_value["hour=7"].slice_.slice_spec.configs["hour"].value.float_value == 7.0
    assert dict(by_value["hour=7"].metrics) == {"rootMeanSquaredError": 2.0, "rows": 17.0}
    one = found.api_client.get_model_evaluation_slice(name=by_value["hour=7"].name)
    assert one == by_value["hour=7"]
    model.uploaded[0].delete()
    assert not model.service.call("GET", "/models", base=PARENT).get(model.number)
    model.service.call("GET", found.resource_name.partition("us-central1")[2], code=404, base=PARENT)


@pytest.mark.parametrize("kind, schema", [("binary", "classification"), ("multilabel", "classification"), ("other", None)])
def test_each_kind_has_its_schema(model, tmp_path, kind, schema):
    metrics = {"rmse": 1.0, "auc": 0.9, "pr_auc": 0.8, "log_loss": 0.3}
    done = model.promote(tmp_path, 1, kind=kind, metrics=metrics)
    found = model.uploaded[0].list_model_evaluations()
    if schema:
        assert found[0].gca_resource.metrics_schema_uri.endswith(f"/{schema}_metrics_1.0.0.yaml")
        assert {"auRoc": 0.9, "auPrc": 0.8, "logLoss": 0.3}.items() <= dict(found[0].metrics).items()
    else:
        assert not found and "no schema for evaluations of the kind other" in done.stderr
    assert model.aliases == {"champion": "1"}


def test_evaluations_are_checked_as_the_service_does(model):
    schema = "gs://google-cloud-aiplatform/schema/modelevaluation/regression_metrics_1.0.0.yaml"
    good = {"displayName": "e", "metricsSchemaUri": schema, "metrics": {"rSquared": 0.5}}

    def imported(code: int = 200, version: str = "", **changed) -> dict:
        body = {"modelEvaluation": {key: value for key, value in {**copy.deepcopy(good), **changed}.items() if value is not None}}
        return model.service.call("POST", f"/models/{model.number}{version}/evaluations:import", body, code, base=PARENT)

    assert imported(400, metrics=None)["error"]["message"].startswith("modelEvaluation.metrics is required")
    assert "takes an object" in imported(400, metrics=[1])["error"]["message"]
    assert "takes one of the schemata" in imported(400, metricsSchemaUri="gs://mine/x.yaml")["error"]["message"]
    assert "has no version" in imported(404, "@9")["error"]["message"]
    made = imported(version="@2")
    path = "/models/" + made["name"].partition("/models/")[2]
    versioned = path.replace("/evaluations", "@2/evaluations")
    assert model.service.call("GET", versioned, base=PARENT) == model.service.call("GET", path, base=PARENT) == made
    assert model.service.call("GET", f"/models/{model.number}/evaluations", base=PARENT) == {}
    assert len(model.service.call("GET", f"/models/{model.number}@2/evaluations", base=PARENT)["modelEvaluations"]) == 1
    one = {"slice": {"dimension": "slice", "value": "x"}, "metrics": {"rSquared": 0.1}}

    def slices(code: int, *several: dict) -> dict:
        return model.service.call("POST", f"{path}/slices:batchImport", {"modelEvaluationSlices": list(several)}, code, base=PARENT)

    assert "modelEvaluationSlices is required" in slices(400)["error"]["message"]
    assert "may have 50 slices; got 51" in slices(400, *[one] * 51)["error"]["message"]
    assert "modelEvaluationSlices[1].slice.dimension" in slices(400, one, {**one, "slice": {"value": "y"}})["error"]["message"]
    spec = {"dimension": "annotationSpec", "value": "class"}
    assert len(slices(200, one, {**one, "slice": spec})["importedModelEvaluationSlices"]) == 2
    found = model.service.call("GET", f"{path}/slices?filter=slice.dimension%3DannotationSpec", base=PARENT)
    assert [each["slice"]["value"] for each in found["modelEvaluationSlices"]] == ["class"]
    model.service.call("DELETE", f"/models/{model.number}@2:deleteVersion", base=PARENT)
    model.service.call("GET", path, code=404, base=PARENT)


def test_another_signature_than_the_champions_is_refused(model, tmp_path):
    model.promote(tmp_path, 1)
    own = {**SIGNATURE, "outputs": {"price": {"dtype": "float32", "shape": [None]}}}
    done = model.promote(tmp_path, 2, 1, signature=own, code=promote.REFUSED)
    assert "its outputs differ" in done.stderr and "lacks fare, adds price" in done.stderr


# ------------------------------------------------------------------ with what a trainer evaluates


@pytest.mark.slow
def test_from_two_trained_models_to_a_champion(service, tmp_path, run_trainer):
    """The evaluation that the runtime writes is the one that the gate and the registry take."""
    folders, sample = {}, ROOT / "taxifare" / "tests" / "data" / "taxi-valid.csv"
    for name, examples in (("short", 480), ("long", 24_000)):
        run_trainer("taxifare", "--num_evals=1", f"--num_examples_to_train_on={examples}", f"--output_dir={name}", cwd=tmp_path)
        folders[name] = service.state / "buckets" / "models-bucket" / "trained" / name
        shutil.copytree(tmp_path / name / "model", folders[name])
    options = {"display_name": "trained", "serving_container_image_uri": SERVING}
    first = aiplatform.Model.upload(artifact_uri="gs://models-bucket/trained/short", **options)
    aiplatform.Model.upload(
        artifact_uri="gs://models-bucket/trained/long", parent_model=first.resource_name, version_aliases=["challenger"], **options
    )

    def evaluated(model: str, against: str = "") -> str:
        flags = [f"--evaluate={folders[model]}", f"--eval_data_path={sample}", f"--output_dir=of-{model}"]
        run_trainer("taxifare", *flags, *([f"--against={folders[against]}"] if against else []), cwd=tmp_path)
        return f"--evaluation=of-{model}/evaluation.json"

    alone = evaluated("short")
    refused = call(promote.main, "trained@1", alone, "--threshold=0.1", cwd=tmp_path, code=promote.REFUSED)
    assert re.search(r"is not promoted: rmse is [\d.]+, must be 0.1 or less\.", refused.stderr)
    call(promote.main, "trained@1", alone, "--threshold=50", "--most_skew=0.5", cwd=tmp_path)
    call(promote.main, "trained", evaluated("long", "short"), "--most_skew=0.5", cwd=tmp_path)
    (kept,) = aiplatform.Model(f"{first.resource_name}@champion").list_model_evaluations()
    written = json.loads((tmp_path / "of-long" / "evaluation.json").read_text())
    assert kept.metrics["rootMeanSquaredError"] == written["metrics"]["rmse"] and written["against"]["paired"]["p_value"] < 0.05
    back = call(promote.main, "trained@1", evaluated("short", "long"), cwd=tmp_path, code=promote.REFUSED)
    assert "above that of" in back.stderr and "on the same 400 rows" in back.stderr
