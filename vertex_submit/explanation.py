"""Explanations of a model that is uploaded: the baselines that its exporter left, as the SDK's types.

Until when Vertex AI has them is in vertex_local/job/deprecations.py.
"""

from __future__ import annotations

import json
from typing import Any

from google.api_core import exceptions

from vertex_local.errors import UserError

from . import transfer

FILE = "assets.extra/explanation.json"
STEPS = 50  # of integrated gradients, for which the model's own spec has no number
METHODS = ("sampled_shapley", "integrated_gradients")


class ExplanationError(UserError):
    """Baselines that are not there, and the remedy."""


def read(uri: str, project: str, token_file: str | None) -> dict[str, Any]:
    """Return the ExplanationSpec, in JSON form, that lies with a SavedModel in a bucket.

    Raises:
        ExplanationError: there is none.
    """
    bucket, _, folder = uri.removeprefix("gs://").partition("/")
    name = f"{folder.rstrip('/')}/{FILE}"
    try:
        text = transfer.open_client(project, token_file).bucket(bucket).blob(name).download_as_bytes()
        return json.loads(text)
    except exceptions.NotFound:
        remedy = "Export the model anew with this version (--only=export), or leave --explain out"
        raise ExplanationError(f"--explain: there is no gs://{bucket}/{name} with baselines. {remedy}.") from None
    except exceptions.GoogleAPICallError as error:
        raise ExplanationError(f"--explain: gs://{bucket}/{name} cannot be read: {str(error.message)[:200]}") from None
    except ValueError as error:
        raise ExplanationError(f"--explain: gs://{bucket}/{name} is not JSON ({error}). Export the model anew (--only=export).") from None


def options(spec: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the arguments of the SDK's `Model.upload` for a spec, as its own types.

    Args:
        method: one of METHODS. Integrated gradients are of the inputs whose modality is numeric; others are left out.
    """
    from google.cloud.aiplatform import explain

    parameters, metadata = spec["parameters"], spec["metadata"]
    if method == "integrated_gradients":
        parameters = {"integratedGradientsAttribution": {"stepCount": STEPS}}
        numeric = {name: each for name, each in metadata["inputs"].items() if each.get("modality") == "numeric"}
        if not numeric:
            names = ", ".join(metadata["inputs"])
            raise ExplanationError(f"--explain_method={method}: none of the inputs {names} is numeric. Use {METHODS[0]}.")
        metadata = {**metadata, "inputs": numeric}
    return {
        "explanation_metadata": explain.ExplanationMetadata.from_json(json.dumps(metadata)),
        "explanation_parameters": explain.ExplanationParameters.from_json(json.dumps(parameters)),
    }
