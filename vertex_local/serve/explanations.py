"""ExplanationSpecs of the API: which of them are worked out here, with what is left to the model's exporter filled in.

The service ends them (vertex_local/job/deprecations.py); here they go on, by the model's own process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from . import messages
from .filters import camel
from .rest import ApiError

EXPORTED = "assets.extra/explanation.json"  # what the exporter leaves with a model
_METHODS = {"sampled_shapley_attribution": ("path_count", 50), "integrated_gradients_attribution": ("step_count", 100)}
_OTHERS = ("xrai_attribution", "examples", "top_k", "output_indices")
_OF_GRADIENTS = ("smooth_grad_config", "blur_baseline_config")
_OF_INPUTS = ("encoded_tensor_name", "encoded_baselines", "index_feature_mapping", "indices_tensor_name", "dense_shape_tensor_name")


def check(spec: Message, where: str) -> None:
    """Refuse a spec that is not worked out here.

    Args:
        where: the field that it stands in, for the error.
    """
    _check_method(spec.parameters, f"{where}.parameters")
    _check_inputs(spec.metadata.inputs, f"{where}.metadata")
    if len(spec.metadata.outputs) > 1:
        path = camel(f"{where}.metadata.outputs")
        raise ApiError("INVALID_ARGUMENT", f"{path} takes one output; got {', '.join(sorted(spec.metadata.outputs))[:200]}.", path)


def _check_method(parameters: Message, where: str) -> None:
    messages.unsupported(parameters, _OTHERS, where=f"{where}.")
    chosen = next(filter(parameters.HasField, _METHODS), None)
    if chosen is None:
        path = camel(f"{where}.{next(iter(_METHODS))}")
        text = f"{path} is required, or {camel('integrated_gradients_attribution')}: they are the methods that are worked out here."
        raise ApiError("INVALID_ARGUMENT", text, path)
    method, (name, most) = getattr(parameters, chosen), _METHODS[chosen]
    if chosen == "integrated_gradients_attribution":
        messages.unsupported(method, _OF_GRADIENTS, where=f"{where}.{chosen}.")
    if not 1 <= getattr(method, name) <= most:
        path = camel(f"{where}.{chosen}.{name}")
        raise ApiError("INVALID_ARGUMENT", f"{path} takes 1 to {most}; got {getattr(method, name)}.", path)


def _check_inputs(inputs: Mapping[str, Message], where: str) -> None:
    for name, each in inputs.items():
        place = f"{where}.inputs[{name}]"
        if hasattr(each, "encoding"):
            messages.unsupported(each, _OF_INPUTS, where=f"{place}.")
            if each.encoding > 1:  # 0 and 1 are IDENTITY
                text = f"{place}.encoding: IDENTITY alone is supported by the local service."
                raise ApiError("UNIMPLEMENTED", text, f"{place}.encoding")
        if len(each.input_baselines) > 1:
            path = f"{place}.inputBaselines"
            text = f"{path}: one baseline is supported by the local service; got {len(each.input_baselines)}."
            raise ApiError("UNIMPLEMENTED", text, path)


def spec_of(deployed: Mapping[str, Any], model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the spec, in JSON form, by which a deployed model is explained: its own, else the model's; inputs by the exporter's.

    Args:
        folder: of the SavedModel.
    """
    given = deployed.get("explanationSpec") or model.get("explanationSpec")
    if not given:
        text = "the model was uploaded and deployed without an explanationSpec; give one: explanation_parameters of Model.upload or deploy."
        raise ApiError("FAILED_PRECONDITION", text)
    if given.get("metadata", {}).get("inputs"):
        return dict(given)
    return {**given, "metadata": {**_exported(folder).get("metadata", {}), **given.get("metadata", {})}}


def _exported(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / EXPORTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def overridden(spec: Mapping[str, Any], override: Message) -> dict[str, Any]:
    """Return a spec with what one request has otherwise: the method with its number of paths or steps, and baselines."""
    where = "explanation_spec_override"
    messages.unsupported(override, ("examples_override",), where=f"{where}.")
    found = copy.deepcopy(dict(spec))
    if override.HasField("parameters"):
        _check_method(override.parameters, f"{where}.parameters")
        found["parameters"] = messages.to_json(override.parameters)
    _check_inputs(override.metadata.inputs, f"{where}.metadata")
    for name, each in messages.to_json(override.metadata).get("inputs", {}).items():
        found["metadata"].setdefault("inputs", {}).setdefault(name, {}).update(each)
    return found


def explanation(found: Mapping[str, Any]) -> Message:
    """Return one answer's explanation as the API's message."""
    names = ("output_name", "output_index", "output_display_name", "baseline_output_value", "instance_output_value", "approximation_error")
    attribution = messages.new(
        "Attribution", **{name: found[name] for name in names}, feature_attributions=messages.value(found["attributions"])
    )
    return messages.new("Explanation", attributions=[attribution])
