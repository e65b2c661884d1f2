"""The placeholders of a step's command and of an importer's metadata: kfp's own, and those that its local runner does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..job import buckets

_ESCAPE, _HELD = "{{$.json_escape[", "{[$.json_escape["
_ESCAPED = re.compile(r"\{\{\$\.(?:inputs\.parameters\['?'?([^'\]]+)'?'?\]\.)?json_escape\[(\d)\]\}\}")
_PATHS = re.compile(r"\{\{\$\.(inputs|outputs)\.artifacts\['?'?([^'\]]+)'?'?\]\.path\}\}")


class Placeholders:
    """Fills in the placeholders of one task.

    Args:
        executor_input: the step's input, as a dict; the references in its parameters to one another are resolved at once.
        values: values of placeholders such as `{{$.pipeline_google_cloud_location}}`, by name.
        bucket_root: where buckets lie, for artefacts' paths.
        names: what kfp calls the pipeline and the task.
    """

    def __init__(self, executor_input: dict[str, Any], values: Mapping[str, str], bucket_root: str, **names: str):
        self._input, self._values, self._root, self._names = executor_input, values, bucket_root, names
        parameters = _parameters(executor_input)
        for kind in (str, (list, dict)):  # values in lists and objects, such as the flags of a worker pool, may refer to texts
            parameters.update({name: self.everywhere(value) for name, value in parameters.items() if isinstance(value, kind)})

    def command(self, words: Sequence[str]) -> list[str]:
        """Return a container's command with everything filled in."""
        from kfp.local import placeholder_utils

        given = placeholder_utils.get_provided_inputs(self._input)
        chosen = placeholder_utils.flatten_list([placeholder_utils.resolve_struct_placeholders(word, given) for word in words])
        return [self._fill(word) for word in chosen]

    def everywhere(self, value: Any) -> Any:
        """Return a JSON value with the texts in it filled in; within lists and objects escapes stay, for the text that will hold them."""
        if isinstance(value, str):
            return self._fill(value)
        held = json.loads(json.dumps(value).replace(_ESCAPE, _HELD))
        return json.loads(json.dumps(self._within(held)).replace(_HELD, _ESCAPE))

    def _within(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._within(key): self._within(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._within(each) for each in value]
        return self._fill(value) if isinstance(value, str) else value

    def _fill(self, text: str) -> str:
        from kfp.local import placeholder_utils

        text = resolve(text, self._input, self._values, self._root)
        text = placeholder_utils.resolve_individual_placeholder(text, self._input, **self._names)
        return resolve(text, self._input, self._values, self._root)


def _parameters(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    return executor_input.get("inputs", {}).get("parameterValues", {})


def _without_escapes(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input without parameters that contain the escaped input themselves, such as the pools of a custom job."""
    kept = {name: value for name, value in _parameters(executor_input).items() if not _ESCAPED.search(json.dumps(value))}
    return {**executor_input, "inputs": {**executor_input.get("inputs", {}), "parameterValues": kept}}


def resolve(element: str, executor_input: Mapping[str, Any], values: Mapping[str, str], bucket_root: str) -> str:
    """Fill in the placeholders of `element` that kfp's local runner does not know.

    Args:
        values: values of placeholders such as `{{$.pipeline_google_cloud_location}}`, by name.
        bucket_root: where buckets lie, for artefacts' paths.
    """
    for name, value in values.items():
        element = element.replace("{{$." + name + "}}", value)

    def escaped(match: re.Match[str]) -> str:
        value = _without_escapes(executor_input) if match[1] is None else _parameters(executor_input).get(match[1])
        text = value if isinstance(value, str) else json.dumps(value)
        for _ in range(int(match[2])):
            text = json.dumps(text)[1:-1]
        return text

    def path(match: re.Match[str]) -> str:
        found = executor_input.get(match[1], {}).get("artifacts", {}).get(match[2], {}).get("artifacts") or [{}]
        uri = found[0].get("uri", "")
        return buckets.to_path(uri, bucket_root) if uri.startswith("gs://") else uri

    return _PATHS.sub(path, _ESCAPED.sub(escaped, element))
