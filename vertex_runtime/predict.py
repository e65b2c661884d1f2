"""Ask an exported model for predictions in the service's JSON: `{"instances": [...]}` in, `{"predictions": [...]}` out.

Needs TensorFlow and the exported folder, nothing else of this project.
"""

from __future__ import annotations

import argparse
import base64
import gc
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BATCH = 1024


def load_signature(directory: str) -> Any:
    """Load the `serving_default` signature of a SavedModel.

    Raises:
        ValueError: the folder holds no SavedModel that can be served.
    """
    tf = _import_tensorflow()
    try:
        loaded = tf.saved_model.load(directory)
    except OSError:
        raise ValueError(f"{directory} holds no SavedModel. Give the folder with saved_model.pb in it.") from None
    if "serving_default" not in loaded.signatures:
        raise ValueError(f"{directory} has no signature serving_default; it has {', '.join(loaded.signatures) or 'none'}.")
    signature = loaded.signatures["serving_default"]
    signature._owner = loaded  # a signature alone does not keep its variables alive
    return signature


def _import_tensorflow() -> Any:
    """Import TensorFlow without what its C++ side says on stderr of absent GPUs, which would bury a one-line error."""
    gc.disable()  # collecting meanwhile takes a third of the time
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        gc.enable()
    return tf


def answer(signature: Any, instances: Sequence[Any]) -> list[Any]:
    """Return one prediction per instance as the service does: the bare value where the model has one output.

    Raises:
        ValueError: an instance does not fit the signature; its text starts with the instance's place (from 0).
    """
    found = ask(signature, columns_of(signature, instances))
    lists = {name: _jsonable(name, values) for name, values in found.items()}
    if len(lists) == 1:
        return next(iter(lists.values()))
    return [dict(zip(lists, row)) for row in zip(*lists.values())]


def columns_of(signature: Any, instances: Sequence[Any]) -> dict[str, list[Any]]:
    """Return instances as the signature's inputs, by name: what a tensor takes, for each instance.

    Raises:
        ValueError: an instance does not fit the signature; its text starts with the instance's place (from 0).
    """
    specs = signature.structured_input_signature[1]
    columns: dict[str, list[Any]] = {name: [] for name in specs}
    for place, instance in enumerate(instances):
        for name, value in _named(instance, specs, place).items():
            columns[name].append(value_of(value, specs[name].dtype, name, place))
    return columns


def ask(signature: Any, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the model's outputs as arrays [rows, ...], by name.

    Raises:
        ValueError: as `columns_of`.
    """
    given = tensors_of(signature.structured_input_signature[1], columns)
    return {name: values.numpy() for name, values in call(signature, given).items()}


def tensors_of(specs: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return columns as tensors of the signature's types.

    Raises:
        ValueError: as `columns_of`.
    """
    import tensorflow as tf

    try:
        return {name: tf.constant(values, specs[name].dtype) for name, values in columns.items()}
    except (ValueError, TypeError) as error:
        raise _unfit(columns, specs, error) from None


def call(signature: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's outputs for tensors, as tensors, by name.

    Raises:
        ValueError: as `columns_of`.
    """
    import tensorflow as tf

    try:
        return signature(**given)
    except tf.errors.InvalidArgumentError as error:
        raise _refused(str(error.message)) from None
    except (ValueError, TypeError) as error:
        raise _unfit({name: values.numpy() for name, values in given.items()}, signature.structured_input_signature[1], error) from None


def _unfit(columns: Mapping[str, Sequence[Any]], specs: Mapping[str, Any], error: Exception) -> ValueError:
    return ValueError(f"{_odd_one(columns, specs)}: does not fit the model's inputs: {str(error).splitlines()[0][:120]}")


def _named(instance: Any, specs: Mapping[str, Any], place: int) -> Mapping[str, Any]:
    if not isinstance(instance, dict) or (len(specs) == 1 and "b64" in instance):
        if len(specs) > 1:
            raise ValueError(f"{place}: must be an object with {', '.join(specs)}; got {json.dumps(instance)[:80]}")
        return {next(iter(specs)): instance}
    if instance.keys() != specs.keys():
        missing, unknown = sorted(specs.keys() - instance.keys()), sorted(instance.keys() - specs.keys())
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{place}: {' and '.join(faults)}; the model takes {', '.join(specs)}")
    return instance


def _refused(message: str) -> ValueError:
    """Turn what the graph says of a bad instance, `assertion failed: [instance 3: fare must be …]`, into one line."""
    if match := re.search(r"assertion failed: \[instance (\d+): (.*)\]", message):
        return ValueError(f"{match[1]}: {match[2]}".replace("\\'", "'").replace('\\"', '"'))  # TensorFlow escapes quotes
    return ValueError(f"0: the model refuses the instances: {' '.join(message.split())[:200]}")


def _odd_one(columns: Mapping[str, Sequence[Any]], specs: Mapping[str, Any]) -> int:
    """Return the place of the first instance whose shape differs from the signature's."""
    import numpy as np

    for name, values in columns.items():
        for place, value in enumerate(values):
            try:
                fits = specs[name].shape[1:].is_compatible_with(np.shape(value))
            except ValueError:
                fits = False
            if not fits:
                return place
    return 0


def value_of(value: Any, dtype: Any, name: str, place: int) -> Any:
    """Turn JSON into what a tensor takes; `null` is a missing cell: NaN among numbers, an empty text elsewhere."""
    if isinstance(value, list):
        return [value_of(part, dtype, name, place) for part in value]
    if dtype.name == "string":
        if isinstance(value, dict) and set(value) == {"b64"}:
            try:
                return base64.b64decode(value["b64"], validate=True)
            except (ValueError, TypeError):
                raise ValueError(f"{place}: {name} is not base64; got {json.dumps(value)[:80]}") from None
        if value is None or isinstance(value, str):
            return value or ""
        raise ValueError(f"{place}: {name} must be a text; got {json.dumps(value)[:80]}")
    if value is None and dtype.is_floating:
        return float("nan")
    if dtype.name == "bool" and isinstance(value, bool):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{place}: {name} must be a number; got {json.dumps(value)[:80]}")
    return value


def _jsonable(name: str, values: Any) -> list[Any]:
    if values.dtype.kind not in "OS":
        return values.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(value).decode()} for value in values.tolist()]
    return [value.decode("utf-8") for value in values.tolist()]


def batches(lines: Iterable[str]) -> Iterable[tuple[list[int], list[Any]]]:
    """Yield (numbers of lines, instances) of JSON lines, some at a time; blank lines are none.

    Raises:
        ValueError: a line is not JSON; what came before it has been yielded.
    """
    numbers: list[int] = []
    instances: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            instances.append(json.loads(line))
        except ValueError as error:
            yield numbers, instances  # what came before a bad line is answered
            raise ValueError(f"line {number}: not JSON ({error}); got {line.strip()[:80]!r}") from None
        numbers.append(number)
        if len(instances) == BATCH:
            yield numbers, instances
            numbers, instances = [], []
    if instances:
        yield numbers, instances


def _answer_lines(signature: Any, numbers: Sequence[int], instances: Sequence[Any]) -> list[Any]:
    try:
        return answer(signature, instances)
    except ValueError as error:
        place, _, text = str(error).partition(": ")
        raise ValueError(f"line {numbers[int(place)]}: {text}") from None


def _serve(signature: Any, lines: Iterable[str]) -> None:
    """Answer whole requests, one a line: `{"predictions": [...]}`, or `{"error": ...}` for what does not fit the model.

    A request with an ExplanationSpec as `explain` is answered with `explanations`, too: see explain.py.
    """
    for line in lines:
        try:
            request = json.loads(line)
            found: dict[str, Any] = {"predictions": answer(signature, request["instances"])}
            if "explain" in request:
                found["explanations"] = _explain().Explainer(signature, request["explain"]).explain(request["instances"])
        except Exception as error:  # whatever TensorFlow makes of a request, the next one gets its answer
            found = {"error": str(error).partition("\n")[0] or type(error).__name__}
        print(json.dumps(found, ensure_ascii=False), flush=True)


def _explain() -> Any:
    """Return the module explain.py beside this one, which may not be in a package."""
    if __package__:
        from . import explain

        return explain
    sys.modules["predict"] = sys.modules[__name__]
    for name in ("integrated_gradients", "explain"):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not os.path.exists(path):
            raise ValueError(f"--explain needs {path}, which is not there")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["explain"]


def main(argv: Sequence[str] | None = None) -> int:
    """Answer JSON lines from stdin on stdout, one JSON value per line, in order."""
    parser = argparse.ArgumentParser(prog="scripts/predict", description=main.__doc__)
    parser.add_argument("model_dir", help="folder of the SavedModel: what a trainer writes to <output_dir>/model")
    parser.add_argument("--envelope", action="store_true", help='print the whole answer, {"predictions": [...]}, instead')
    parser.add_argument("--requests", action="store_true", help='each line is a request, {"instances": [...]}, until the input ends')
    parser.add_argument("--explain", action="store_true", help="print what each answer rests on instead: see explain.py")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        if args.explain:
            _explain().print_lines(args.model_dir, sys.stdin)
            return 0
        signature = load_signature(args.model_dir)
        if args.requests:
            _serve(signature, sys.stdin)
            return 0
        everything = []
        for numbers, instances in batches(sys.stdin):
            predictions = _answer_lines(signature, numbers, instances) if instances else []
            everything += predictions if args.envelope else []
            for prediction in () if args.envelope else predictions:
                print(json.dumps(prediction, ensure_ascii=False))
        if args.envelope:
            print(json.dumps({"predictions": everything}, ensure_ascii=False))
    except ValueError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if not __package__:
        sys.path.pop(0)  # this file's own folder, whose profile.py would stand for the standard library's
    sys.exit(main())
