"""What answers rest on: by Shapley values and by gradients, against what can be told exactly, as a command, in the local service."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import forked
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from test_cloud_support import call
from test_serve_support import Service

from vertex_runtime import explain, predict
from vertex_runtime.evaluation import explaining

SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
TRIP = {
    "pickup_datetime": "2010-03-23 06:49:00+00:00", "pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.78,
    "dropoff_latitude": 40.64, "passenger_count": 1,
}  # fmt: skip


def saved(folder: Path, function, **specs) -> str:
    """Save a function of named inputs as a model with a signature, and return its folder."""
    module = tf.Module()
    concrete = tf.function(function).get_concrete_function(**{name: tf.TensorSpec(*spec, name) for name, spec in specs.items()})
    tf.saved_model.save(module, str(folder), signatures={"serving_default": concrete})
    return str(folder)


def spec_of(paths: int = 10, **inputs) -> dict:
    return {"parameters": {"sampledShapleyAttribution": {"pathCount": paths}}, "metadata": {"inputs": inputs}}


def number(baseline: float) -> dict:
    return {"inputBaselines": [baseline], "modality": "numeric"}


def brute_force(function, instance: dict, baseline: dict) -> dict[str, float]:
    """Return Shapley values by their definition: the mean over all orders."""
    orders = list(itertools.permutations(instance))
    shares = dict.fromkeys(instance, 0.0)
    for order in orders:
        row = dict(baseline)
        before = function(**row)
        for name in order:
            row[name] = instance[name]
            shares[name] += (function(**row) - before) / len(orders)
            before = function(**row)
    return shares


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> str:
    """A model of four numbers that act together."""

    def serve(a, b, c, d):
        return {"y": a * b + tf.maximum(c, d) - 0.5 * a * d}

    return saved(tmp_path_factory.mktemp("product"), serve, **{name: ([None], tf.float64) for name in "abcd"})


def test_few_inputs_are_shared_out_exactly(product):
    instance, baseline = {"a": 2.0, "b": 3.0, "c": -1.0, "d": 4.0}, {"a": 1.0, "b": 0.0, "c": 0.5, "d": 0.0}
    explainer = explain.Explainer(predict.load_signature(product), spec_of(**{name: number(value) for name, value in baseline.items()}))
    (found,) = explainer.explain([instance])

    def value(a, b, c, d):
        return a * b + max(c, d) - 0.5 * a * d

    assert found["attributions"] == pytest.approx(brute_force(value, instance, baseline))
    assert found["baseline_output_value"] == value(**baseline) and found["instance_output_value"] == value(**instance)
    assert found["standard_error"] == 0.0 and found["approximation_error"] < 1e-12
    assert (found["output_name"], found["output_index"]) == ("y", [])


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> str:
    """A model of twelve numbers, linear but for one pair."""

    def serve(**x):
        return {"y": tf.add_n([(i + 1) * x[f"x{i}"] for i in range(12)]) + 6 * x["x0"] * x["x11"]}

    return saved(tmp_path_factory.mktemp("many"), serve, **{f"x{i}": ([None], tf.float64) for i in range(12)})


def test_many_inputs_are_shared_out_by_random_orders(many):
    signature, instance = predict.load_signature(many), {f"x{i}": 1.0 for i in range(12)}
    wanted = {f"x{i}": i + 1.0 + 3 * (i in (0, 11)) for i in range(12)}
    for paths in (1, 3, 10, 50):
        explainer = explain.Explainer(signature, spec_of(paths, **{name: number(0.0) for name in instance}))
        (found,) = explainer.explain([instance])
        assert sum(found["attributions"].values()) == pytest.approx(found["instance_output_value"] - found["baseline_output_value"])
        assert found["approximation_error"] < 1e-12, "complete, however few orders"
        if paths > 1:  # an order and its reverse share an interaction of two evenly
            pairs = paths - paths % 2
            assert found["attributions"] == pytest.approx(wanted, abs=3.001 * (paths - pairs) / paths), paths
    first, again = (explainer.explain([instance, instance], seed) for seed in (0, 0))
    assert first == again


def test_words_are_inputs_of_their_own(tmp_path):
    def serve(text):
        words = tf.strings.split(text)
        found = tf.reduce_sum(tf.cast(words == "tax", tf.float32), 1) * 2 - tf.reduce_sum(tf.cast(words == "free", tf.float32), 1)
        return {"score": found}

    folder = saved(tmp_path / "m", serve, text=([None], tf.string))
    spec = spec_of(text={"inputBaselines": [""], "modality": "text"})
    explainer = explain.Explainer(predict.load_signature(folder), spec)
    long = " ".join(["tax"] + ["and"] * 200)
    found = explainer.explain([{"text": "a tax  free day"}, {"text": "tax"}, {"text": ""}, {"text": long}])
    assert found[0]["attributions"]["text"] == pytest.approx([0, 2, -1, 0])
    assert found[1]["attributions"]["text"] == pytest.approx([2.0]) and found[2]["attributions"]["text"] == [0.0]
    shares = found[3]["attributions"]["text"]
    assert len(shares) == 201 and sum(shares) == pytest.approx(2.0) and shares[0] == pytest.approx(0.5), "four words share a place"


def test_parts_of_an_image_are_inputs_of_their_own(tmp_path):
    def serve(image_bytes):
        pixels = tf.map_fn(lambda one: tf.io.decode_png(one, 1), image_bytes, fn_output_signature=tf.TensorSpec([8, 8, 1], tf.uint8))
        return {"bright": tf.reduce_mean(tf.cast(pixels[:, :2, :2, 0], tf.float32), [1, 2])}

    folder = saved(tmp_path / "m", serve, image_bytes=([None], tf.string))
    explainer = explain.Explainer(predict.load_signature(folder), spec_of(image_bytes={"modality": "image"}))
    pixels = np.full((8, 8, 1), 10, np.uint8)
    pixels[:2, :2] = 170
    content = base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    (found,) = explainer.explain([{"image_bytes": {"b64": content}}])
    grid = np.array(found["attributions"]["image_bytes"])
    assert grid.shape == (4, 4) and grid[0, 0] == pytest.approx(150.0) and np.abs(grid).sum() == pytest.approx(150.0)
    with pytest.raises(ValueError, match="^0: .*image does not decode"):
        explainer.explain([{"image_bytes": {"b64": base64.b64encode(b"no image").decode()}}])


def test_of_classes_the_likeliest_is_explained(tmp_path):
    def serve(x, n):
        return {"scores": tf.stack([-x, x, tf.cast(n, tf.float32)], 1), "label": tf.where(x > 0, "up", "down")}

    folder = saved(tmp_path / "m", serve, x=([None], tf.float32), n=([None], tf.int64))
    spec = spec_of(x=number(0.0), n=number(1.0))
    spec["metadata"]["outputs"] = {"scores": {"outputTensorName": "scores", "indexDisplayNameMapping": ["down", "up", "other"]}}
    explainer = explain.Explainer(predict.load_signature(folder), spec)
    up, other = explainer.explain([{"x": 3.0, "n": 0}, {"x": -2.0, "n": 7}])
    assert (up["output_index"], up["output_display_name"], up["attributions"]) == ([1], "up", {"x": 3.0, "n": 0.0})
    assert other["output_display_name"] == "other" and other["baseline_output_value"] == 1.0, "a baseline of a whole number"


def test_specs_that_do_not_fit_are_named(product):
    signature = predict.load_signature(product)
    for spec, says in (
        (spec_of(e=number(0.0)), "names the input e; the model takes a, b, c, d"),
        (spec_of(paths=51), "pathCount takes 1 to 50; got 51"),
        (spec_of(a={"inputBaselines": [1.0, 2.0]}), "a has 2 baselines; one is used"),
        (spec_of(a={"inputBaselines": ["x"]}), "a must be a number; got \"x\" as its baseline"),
        ({"metadata": {"outputs": {"z": {}}}}, "names the output z; the model has y"),
    ):
        with pytest.raises(ValueError, match=says):
            explain.Explainer(signature, spec)
    with pytest.raises(ValueError, match="^1: lacks d"):
        explain.Explainer(signature, spec_of()).explain([{"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 1, "c": 1}])


# ------------------------------------------------------------------ integrated gradients


def gradients_of(steps: int = 50, **inputs) -> dict:
    return {"parameters": {"integratedGradientsAttribution": {"stepCount": steps}}, "metadata": {"inputs": inputs}}


def by_gradients(folder: str, instances: list, steps: int = 50, **inputs) -> list[dict]:
    return explain.Explainer(predict.load_signature(folder), gradients_of(steps, **inputs)).explain(instances)


def test_gradients_of_a_linear_model_are_its_weights(tmp_path):
    weights = np.array([2.0, -3.0, 0.5])

    def serve(x, b):
        return {"y": tf.reduce_sum(x * weights, 1) + 4 * b + 1}

    folder = saved(tmp_path / "m", serve, x=([None, 3], tf.float64), b=([None], tf.float64))
    x, b = [1.0, 2.0, -4.0], 0.25
    baseline = [0.5, 0.0, 1.0]
    (found,) = by_gradients(folder, [{"x": x, "b": b}], 1, x={"inputBaselines": [baseline]}, b=number(-1.0))
    assert found["attributions"]["x"] == pytest.approx(weights * (np.array(x) - baseline))
    assert found["attributions"]["b"] == pytest.approx(5.0)
    assert found["approximation_error"] < 1e-12, "one step is enough of a line"
    assert found["baseline_output_value"] == pytest.approx(weights @ baseline - 4 + 1) and found["output_index"] == []


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[str, list[np.ndarray]]:
    """A network of Keras with a softmax, as `model.export` leaves it, and its weights."""
    keras = tf.keras
    keras.utils.set_random_seed(3)
    given = [keras.Input((), name=name) for name in ("a", "b")]
    hidden = keras.layers.Dense(8, "tanh")(keras.ops.stack(given, axis=1))
    model = keras.Model(given, keras.layers.Dense(3, "softmax")(hidden))
    folder = str(tmp_path_factory.mktemp("network"))
    model.export(folder, verbose=False, input_signature=[[tf.TensorSpec([None], tf.float32, name) for name in ("a", "b")]])
    return folder, model.get_weights()


def test_gradients_of_a_keras_network_are_what_numpy_finds(network):
    folder, weights = network
    w1, b1, w2, b2 = (each.astype(np.float64) for each in weights)

    def scores(x):
        e = np.exp(np.tanh(x @ w1 + b1) @ w2 + b2)
        return e / e.sum(-1, keepdims=True)

    baseline, point = np.array([0.5, -1.0]), np.array([2.0, 3.0])
    best = int(scores(point).argmax())
    places = (np.arange(20_000) + 0.5) / 20_000
    way = baseline + places[:, None] * (point - baseline)
    slopes = [(scores(way + step)[:, best] - scores(way - step)[:, best]) / 2e-5 for step in 1e-5 * np.eye(2)]
    wanted = (point - baseline) * np.mean(slopes, 1)
    names = ("a", "b")
    inputs = {name: number(value) for name, value in zip(names, baseline)}
    (found,) = by_gradients(folder, [dict(zip(names, point))], **inputs)
    assert found["attributions"] == pytest.approx(dict(zip(names, wanted)), abs=1e-5) and found["output_index"] == [best]
    assert sum(found["attributions"].values()) == pytest.approx(found["instance_output_value"] - found["baseline_output_value"], abs=1e-5)
    errors = [by_gradients(folder, [dict(zip(names, point))], steps, **inputs)[0]["approximation_error"] for steps in (2, 100)]
    assert errors[1] < 1e-4 < errors[0], "it says how near the sum is, and more steps bring it nearer"
    many = by_gradients(folder, [dict(zip(names, point * i / 100)) for i in range(1, 101)], 100, **inputs)  # several batches
    assert len(many) == 100 and many[-1]["attributions"] == pytest.approx(found["attributions"], abs=1e-5)


def mixed(folder: Path) -> str:
    def serve(x, n, word):
        bucket = tf.cast(tf.raw_ops.Bucketize(input=x, boundaries=[0.0, 1.0]), tf.float64)
        return {"y": x**2 * tf.cast(n, tf.float64) + 10 * bucket + tf.cast(tf.strings.length(word), tf.float64)}

    return saved(folder, serve, x=([None], tf.float64), n=([None], tf.int64), word=([None], tf.string))


def test_what_has_no_gradient_stays_as_it_is_given_or_is_refused(tmp_path):
    folder = mixed(tmp_path / "m")
    row = {"x": 3.0, "n": 2, "word": "four"}
    text = {"modality": "categorical", "inputBaselines": ["one"]}
    (found,) = by_gradients(folder, [row], x=number(0.5), word=text)
    assert found["attributions"] == {"x": pytest.approx(2 * (9 - 0.25))}, "n and word are the instance's own"
    assert found["baseline_output_value"] == 0.5**2 * 2 + 10 + 4 and found["instance_output_value"] == 18 + 20 + 4
    assert found["approximation_error"] == pytest.approx(10 / 27.5), "the way through the buckets has no gradient, and that shows"
    for inputs, says in (
        ({"x": number(0.0), "n": number(1)}, "0: n takes int64, along which there is no gradient: leave it out of .*sampledShapley"),
        ({"word": {}}, "0: word takes string"),
        ({"word": text}, "none of the inputs n, word, x is numeric"),
        ({"x": {"inputBaselines": [None]}}, "x has a baseline that is no number"),
        ({"z": number(0.0)}, "names the input z"),
    ):
        with pytest.raises(ValueError, match=says):
            by_gradients(folder, [row], **inputs)
    for steps in (0, 101):
        with pytest.raises(ValueError, match=f"stepCount takes 1 to 100; got {steps}"):
            by_gradients(folder, [row], steps, x=number(0.0))
    with pytest.raises(ValueError, match="^1: x is missing or no finite number"):
        by_gradients(folder, [row, {**row, "x": None}], x=number(0.0))
    steps = saved(tmp_path / "steps", lambda x: {"y": tf.cast(tf.cast(x, tf.int64), tf.float64)}, x=([None], tf.float64))
    with pytest.raises(ValueError, match="0: .*y has no gradient along x"):
        by_gradients(steps, [{"x": 1.0}], x=number(0.0))


# ------------------------------------------------------------------ real trainers


@pytest.fixture(scope="module")
def models(tmp_path_factory, trained) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for trainer in ("taxifare", "stackoverflow"):
        shutil.copytree(trained(trainer), folder / trainer)
    return folder


def test_baselines_are_of_the_training_rows_and_of_the_sdks_types(models):
    taxi, words = (explain.load_spec(str(models / name / "model")) for name in ("taxifare", "stackoverflow"))
    inputs = taxi["metadata"]["inputs"]
    fares = np.loadtxt(ROOT / "taxifare/tests/data/taxi-train.csv", delimiter=",", usecols=(2, 3))
    for name, column in (("pickup_longitude", fares[:, 0]), ("pickup_latitude", fares[:, 1])):
        assert inputs[name]["inputBaselines"][0] in np.round(column, 5) and inputs[name]["modality"] == "numeric"
        assert (column < inputs[name]["inputBaselines"][0]).mean() == pytest.approx(0.5, abs=0.01)
    assert inputs["pickup_datetime"]["modality"] == "categorical" and inputs["passenger_count"]["inputBaselines"] == [1.0]
    assert words["metadata"]["inputs"]["text"] == {"inputTensorName": "text", "modality": "text", "inputBaselines": [""]}
    assert "python" in words["metadata"]["outputs"]["scores"]["indexDisplayNameMapping"]
    from vertex_submit import explanation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = explanation.options(words, "sampled_shapley")
        assert given["explanation_metadata"].inputs["text"].input_baselines == [""]
        assert given["explanation_parameters"].sampled_shapley_attribution.path_count == 10
        given = explanation.options(taxi, "integrated_gradients")
        assert given["explanation_parameters"].integrated_gradients_attribution.step_count == 50
        assert set(given["explanation_metadata"].inputs) == set(TRIP) - {"pickup_datetime"}
        with pytest.raises(explanation.ExplanationError, match="none of the inputs text is numeric. Use sampled_shapley"):
            explanation.options(words, "integrated_gradients")


@pytest.mark.parametrize("how", ["module", "script"])
def test_the_command_explains_lines(models, how):
    model = str(models / "taxifare" / "model")
    script = str(ROOT / "vertex_runtime/predict.py")
    command = [forked.python("tensorflow"), *(["-m", "vertex_runtime.explain", model] if how == "module" else [script, model, "--explain"])]
    text = f"{json.dumps(TRIP)}\n\n{json.dumps({**TRIP, 'passenger_count': 2})}\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT) if how == "module" else ""}
    run = {"env": env, "cwd": ROOT if how == "module" else models, "capture_output": True, "text": True}
    done = subprocess.run(command, input=text, **run)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 2, done.stderr
    fares = predict.answer(predict.load_signature(model), [TRIP])
    assert lines[0]["instance_output_value"] == pytest.approx(fares[0], rel=1e-6) and set(lines[0]["attributions"]) == set(TRIP)
    gap = lines[0]["instance_output_value"] - lines[0]["baseline_output_value"]
    assert sum(lines[0]["attributions"].values()) == pytest.approx(gap) and lines[0]["attributions"]["dropoff_longitude"] > 1
    if how == "module":  # the same code says it to the script
        done = subprocess.run(command, input=text + '{"pickup_longitude": 1}\n', **run)
        assert done.returncode == 2 and done.stderr.startswith("error: line 4: lacks ") and done.stderr.count("\n") == 1


def test_the_command_takes_a_method(models, monkeypatch, capsys):
    model = str(models / "taxifare" / "model")
    for flag, columns in (("--steps=20", set(TRIP) - {"pickup_datetime"}), ("--paths=3", set(TRIP))):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(TRIP)))
        assert explain.main([model, flag]) == 0 and set(json.loads(capsys.readouterr().out)["attributions"]) == columns
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(TRIP)))
    assert explain.main([model, "--steps=0"]) == 2 and capsys.readouterr().err == "error: --steps takes 1 to 100; got 0\n"


@pytest.mark.parametrize("main", [explain.main, predict.main])
def test_a_model_that_is_not_there_is_an_error_without_instances_too(main, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([str(tmp_path)]) == 2 and "holds no SavedModel" in capsys.readouterr().err


def test_a_model_without_baselines_says_so(product):
    with pytest.raises(ValueError, match="has no assets.extra/explanation.json with baselines. Export it anew"):
        explain.print_lines(product, ["{}"])
    assert explaining.total([[1.0, 2.0], 3.0]) == 6.0 and explaining.by_size({"a": 1.0, "b": [-2.0, -1.0]})[0] == ("b", -3.0)


# ------------------------------------------------------------------ the local service


@pytest.fixture(scope="module")
def service(tmp_path_factory, models):
    started = Service(tmp_path_factory.mktemp("serve"), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1")
    for name in ("taxifare", "stackoverflow"):
        shutil.copytree(models / name / "model", started.state / "buckets" / "my-bucket" / name / "model")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def sdk(service):
    aiplatform = pytest.importorskip("google.cloud.aiplatform")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name, value in service.endpoint.environment().items():
            patch.setenv(name, value)
        aiplatform.init(**service.init_arguments)
        yield aiplatform


def overriding(**override) -> dict:
    return {"instances": [TRIP], "explanationSpecOverride": override}


@pytest.mark.slow
def test_the_sdk_is_told_what_answers_rest_on(service, sdk, models):
    from google.cloud.aiplatform import explain as types

    spec = explain.load_spec(str(models / "taxifare" / "model"))
    model = sdk.Model.upload(
        display_name="taxi", artifact_uri="gs://my-bucket/taxifare/model", serving_container_image_uri=SERVING,
        explanation_metadata=types.ExplanationMetadata.from_json(json.dumps(spec["metadata"])),
        explanation_parameters=types.ExplanationParameters.from_json(json.dumps(spec["parameters"])),
    )  # fmt: skip
    assert model.to_dict()["explanationSpec"]["parameters"] == {"sampledShapleyAttribution": {"pathCount": 10}}
    endpoint = model.deploy(machine_type="n1-standard-2")
    answer = endpoint.explain([TRIP, {**TRIP, "passenger_count": 2}])
    (direct,) = explain.Explainer(predict.load_signature(str(models / "taxifare" / "model")), spec).explain([TRIP])
    attribution = answer.explanations[0].attributions[0]
    assert len(answer.explanations) == len(answer.predictions) == 2
    assert attribution.instance_output_value == pytest.approx(answer.predictions[0])
    assert dict(attribution.feature_attributions) == pytest.approx(direct["attributions"], rel=1e-5)
    total = sum(attribution.feature_attributions.values())
    assert total == pytest.approx(attribution.instance_output_value - attribution.baseline_output_value) and attribution.output_name
    assert answer.deployed_model_id == endpoint.list_models()[0].id
    override = {"metadata": {"inputs": {"pickup_longitude": {"inputBaselines": [TRIP["pickup_longitude"]]}}}}
    name = endpoint.resource_name.rpartition("/")[2]
    base = "/v1/projects/my-project/locations/us-central1"
    gradients = overriding(parameters={"integratedGradientsAttribution": {"stepCount": 50}})
    found = service.call("POST", f"/endpoints/{name}:explain", gradients, base=base)
    wanted = {**gradients_of(), "metadata": spec["metadata"]}
    (told,) = explain.Explainer(predict.load_signature(str(models / "taxifare" / "model")), wanted).explain([TRIP])
    said = found["explanations"][0]["attributions"][0]
    assert said["featureAttributions"] == pytest.approx(told["attributions"], rel=1e-4)
    assert "pickup_datetime" not in said["featureAttributions"]
    assert said["approximationError"] == pytest.approx(told["approximation_error"], rel=1e-2)
    found = service.call("POST", f"/endpoints/{name}:explain", {"instances": [TRIP], "explanationSpecOverride": override}, base=base)
    assert found["explanations"][0]["attributions"][0]["featureAttributions"]["pickup_longitude"] == 0.0
    for body, code, says in (
        ({"instances": []}, 400, "instances takes a list"),
        ({"instances": [{"a": 1}]}, 400, "lacks"),
        ({"instances": [TRIP], "deployedModelId": "77"}, 404, "has no deployed model '77'"),
        (overriding(parameters={"xraiAttribution": {"stepCount": 5}}), 501, "xraiAttribution"),
        (overriding(metadata={"inputs": {"z": {"inputBaselines": [1]}}}), 400, "names the input z"),
    ):
        assert says in str(service.call("POST", f"/endpoints/{name}:explain", body, code=code, base=base)), body


@pytest.mark.slow
def test_words_by_a_spec_of_the_deployment_alone(service, sdk, models):
    """Without metadata: inputs and baselines are those that the exporter left."""
    from google.cloud.aiplatform import explain as types

    model = sdk.Model.upload(display_name="words", artifact_uri="gs://my-bucket/stackoverflow/model", serving_container_image_uri=SERVING)
    text = {"text": "How do I sort a python dictionary"}
    plain = model.deploy(machine_type="n1-standard-2")
    with pytest.raises(Exception, match="without an explanationSpec; give one"):
        plain.explain([text])
    parameters = types.ExplanationParameters({"sampled_shapley_attribution": {"path_count": 20}})
    endpoint = sdk.Endpoint.create("words")
    outputs = {"scores": {"output_tensor_name": "scores"}}
    metadata = types.ExplanationMetadata({"inputs": {}, "outputs": outputs})
    model.deploy(endpoint=endpoint, machine_type="n1-standard-2", explanation_parameters=parameters, explanation_metadata=metadata)
    attribution = endpoint.explain([text]).explanations[0].attributions[0]
    shares = list(attribution.feature_attributions["text"])
    assert len(shares) == 7 and max(range(7), key=shares.__getitem__) == 5, "python tells most"
    assert math.isclose(sum(shares), attribution.instance_output_value - attribution.baseline_output_value, rel_tol=1e-6)


PATHS = {"sampledShapleyAttribution": {"pathCount": 5}}


@pytest.mark.parametrize(
    "spec, code, says",
    [
        ({"parameters": {"topK": 1}}, 501, "model.explanationSpec.parameters.topK is not supported"),
        ({"parameters": {}}, 400, "sampledShapleyAttribution is required, or integratedGradientsAttribution"),
        ({"parameters": {"integratedGradientsAttribution": {"stepCount": 101}}}, 400, "stepCount takes 1 to 100; got 101"),
        ({"parameters": {"integratedGradientsAttribution": {"stepCount": 9, "smoothGradConfig": {"noisySampleCount": 3}}}}, 501,
         "integratedGradientsAttribution.smoothGradConfig is not supported"),
        ({"parameters": {"integratedGradientsAttribution": {"stepCount": 9, "blurBaselineConfig": {"maxBlurSigma": 1}}}}, 501,
         "integratedGradientsAttribution.blurBaselineConfig is not supported"),
        ({"parameters": {"sampledShapleyAttribution": {"pathCount": 99}}}, 400, "pathCount takes 1 to 50; got 99"),
        ({"parameters": {"xraiAttribution": {"stepCount": 3}}}, 501, "xraiAttribution is not supported"),
        ({"parameters": PATHS, "metadata": {"inputs": {"x": {"encoding": "BAG_OF_FEATURES"}}}}, 501, "encoding: IDENTITY alone"),
        ({"parameters": PATHS, "metadata": {"inputs": {"x": {"inputBaselines": [1, 2]}}}}, 501, "one baseline is supported"),
    ],
)  # fmt: skip
def test_a_spec_that_is_not_worked_out_here_is_refused_at_the_upload(service, spec, code, says):
    folder = {"displayName": "m", "artifactUri": "gs://my-bucket/taxifare/model", "containerSpec": {"imageUri": SERVING}}
    model = {**folder, "explanationSpec": spec}
    error = service.call("POST", "/models:upload", {"model": model}, code=code, base="/v1/projects/my-project/locations/us-central1")
    assert says in str(error), error


def test_deploy_with_explanations(service, models, tmp_path):
    from vertex_submit import deploy

    (tmp_path / "rows.jsonl").write_text(json.dumps(TRIP) + "\n")
    place, method = ("--project=my-project", "--region=us-central1", "--bucket=my-bucket"), "--explain_method=integrated_gradients"
    flags = (*place, "--explain", method, "--instances=rows.jsonl")
    where = ("--artifact_uri=gs://my-bucket/taxifare/model", f"--api_endpoint={service.endpoint.url}", "--model_display_name=explained")
    done = call(deploy.main, ROOT / "jobs" / "taxifare.yaml", *flags, *where, cwd=tmp_path, env=service.endpoint.environment())
    assert "--explain: Vertex AI has deprecated explanations since 2026-03-16 and" in done.stderr
    assert "assets.extra/explanation.json" in done.stdout and " -> " in done.stdout
    base = "/v1/projects/my-project/locations/us-central1"
    (model,) = [each for each in service.call("GET", "/models", base=base)["models"] if each["displayName"] == "explained"]
    spec = model["explanationSpec"]
    assert spec["metadata"]["inputs"]["passenger_count"]["inputBaselines"] == [1] and "pickup_datetime" not in spec["metadata"]["inputs"]
    assert spec["parameters"] == {"integratedGradientsAttribution": {"stepCount": 50}}
    (endpoint,) = [each for each in service.call("GET", "/endpoints", base=base)["endpoints"] if each["displayName"] == "taxifare"]
    found = service.call("POST", f"/endpoints/{endpoint['name'].rpartition('/')[2]}:explain", {"instances": [TRIP]}, base=base)
    attribution = found["explanations"][0]["attributions"][0]
    gap = attribution["instanceOutputValue"] - attribution["baselineOutputValue"]
    assert abs(sum(attribution["featureAttributions"].values()) - gap) == pytest.approx(attribution["approximationError"] * gap)
    lone = call(deploy.main, ROOT / "jobs" / "taxifare.yaml", *place, method, cwd=tmp_path, code=2)
    assert "--explain_method: is for explanations; give --explain, too" in lone.stderr
    (service.state / "buckets" / "my-bucket" / "bare").mkdir()
    bare = ("--artifact_uri=gs://my-bucket/bare", *where[1:])
    done = call(deploy.main, ROOT / "jobs" / "taxifare.yaml", *flags, *bare, cwd=tmp_path, env=service.endpoint.environment(), code=2)
    assert "--explain: there is no gs://my-bucket/bare/assets.extra/explanation.json with baselines" in done.stderr
