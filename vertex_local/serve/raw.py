"""TensorFlow Serving's JSON: rows in `instances`, answered in `predictions`; or columns in `inputs`, answered in `outputs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .rest import ApiError

SIGNATURE = "serving_default"
JSON = "application/json"
_KNOWN = ("instances", "inputs", "signature_name", "parameters")


@dataclass(frozen=True)
class Body:
    """A request's body: its rows, and whether they came as columns."""

    instances: list[Any]
    columns: bool

    def answer(self, predictions: Sequence[Any]) -> bytes:
        """Return the answer's body: columns if the request had columns."""
        content: dict[str, Any] = {"predictions": list(predictions)}
        if self.columns:
            content = {"outputs": _as_columns(predictions)}
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def read(data: bytes, content_type: str) -> Body:
    """Read a body as TensorFlow Serving does.

    Raises:
        ApiError: it is not JSON of that form.
    """
    if content_type.partition(";")[0].strip().lower() not in ("", JSON):
        raise ApiError("INVALID_ARGUMENT", f"the model's container takes {JSON}; got {content_type[:100]!r}.", "httpBody.contentType")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict) or ("instances" in content) == ("inputs" in content):
        raise _refused('the body takes {"instances": [one value or object a row]} or {"inputs": {name: [a value a row]}}')
    if unknown := sorted(content.keys() - set(_KNOWN)):
        raise _refused(f"the body has an unknown field {unknown[0][:100]}; it takes {', '.join(_KNOWN)}")
    if content.get("signature_name") not in (None, "", SIGNATURE):
        raise _refused(f"signature_name takes {SIGNATURE}; got {str(content['signature_name'])[:100]!r}")
    if content.get("parameters"):
        raise ApiError("UNIMPLEMENTED", "parameters are not supported: the exported model takes none.", "parameters")
    if "inputs" in content:
        return Body(_rows(content["inputs"]), True)
    if not isinstance(content["instances"], list) or not content["instances"]:
        raise _refused("instances takes a list with at least one instance")
    return Body(content["instances"], False)


def _rows(inputs: Any) -> list[Any]:
    """Return columns as instances; a list is the column of a model's only input."""
    if isinstance(inputs, list) and inputs:
        return inputs
    if not isinstance(inputs, dict) or not inputs or not all(isinstance(column, list) and column for column in inputs.values()):
        raise _refused("inputs takes a list of values for each input, with at least one value")
    lengths = {name: len(column) for name, column in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise _refused(f"inputs takes columns of one length; got {json.dumps(lengths)[:300]}")
    return [dict(zip(inputs, row)) for row in zip(*inputs.values())]


def _as_columns(predictions: Sequence[Any]) -> Any:
    if not all(isinstance(each, dict) for each in predictions):
        return list(predictions)
    return {name: [each[name] for each in predictions] for name in predictions[0]}


def _refused(problem: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", f"{problem}.", "httpBody")
