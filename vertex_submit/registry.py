"""A model of the registry: its versions, their aliases, what its files are, and evaluations of it.

Which version serves is told by aliases: `champion` serves, `previous-champion` served before it and is what a roll-back
returns to, `challenger` is uploaded to be compared, `rolled-back` was taken out of service by a roll-back.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2

from . import sdk, transfer
from .cloud import CloudError

CHAMPION, CHALLENGER, PREVIOUS, ROLLED_BACK = "champion", "challenger", "previous-champion", "rolled-back"
_SCHEMA = "gs://google-cloud-aiplatform/schema/modelevaluation/{}_metrics_1.0.0.yaml"
SCHEMATA = {"regression": "regression", **dict.fromkeys(("binary", "multiclass", "multilabel"), "classification")}
# The names of the schemata's metrics, and those that an evaluation.json may have for them.
METRICS = {
    "rootMeanSquaredError": ("rmse", "root_mean_squared_error"), "meanAbsoluteError": ("mae", "mean_absolute_error"), "rSquared": ("r2",),
    "meanAbsolutePercentageError": ("mape", "mean_absolute_percentage_error"), "logLoss": ("log_loss",), "auRoc": ("auc", "roc_auc"),
    "auPrc": ("pr_auc", "average_precision"),
}  # fmt: skip
MOST_SLICES = 50  # that the service takes in one request


@dataclass(frozen=True)
class Version:
    """A version of a model: its number, where its files lie, its aliases."""

    number: str
    uri: str
    aliases: tuple[str, ...]


class Registry(sdk.Named):
    """One model of the registry; how it is named and found is as for any of the API."""

    def __init__(self, service: sdk.Service, name: str):
        super().__init__(service, "model", name, "MODEL")

    def versions(self) -> dict[str, Version]:
        """Return the model's versions by their number, the newest first."""
        found = self.ask("list_model_versions", name=self.name)
        versions = [Version(each.version_id, each.artifact_uri, tuple(each.version_aliases)) for each in found]
        return {each.number: each for each in sorted(versions, key=lambda each: int(each.number), reverse=True)}

    def give(self, version: str, alias: str, *taken: str) -> None:
        """Give a version an alias, which it takes from any other one, and take the aliases `taken` from it.

        Raises:
            CloudError: the service refused, or another version has the alias afterwards.
        """
        words = [alias, *(f"-{each}" for each in taken)]
        self.ask("merge_version_aliases", name=f"{self.name}@{version}", version_aliases=words)
        holder = self.ask("get_model", name=f"{self.name}@{alias}").version_id
        if holder != version:
            raise CloudError(
                f"version {holder} has the alias {alias} that version {version} was given: somebody else changes it, too. "
                "See what there is, then start again."
            )

    # ------------------------------------------------------------------ evaluations

    def has_evaluation(self, version: str, evaluation: Mapping[str, Any]) -> bool:
        """Tell whether a version has this evaluation already."""
        wanted = digest(evaluation)
        known = self.ask("list_model_evaluations", parent=f"{self.name}@{version}")
        return any((each.metadata or {}).get("evaluation_sha256") == wanted for each in known)

    def import_evaluation(self, version: str, evaluation: Mapping[str, Any]) -> str:
        """Import an evaluation and its slices, the worst ones if there are many, and return its name in the registry."""
        from google.cloud.aiplatform_v1 import types

        schema = schema_of(evaluation)
        made = types.ModelEvaluation(
            display_name=f"{evaluation['objective']} {evaluation['metrics'].get(evaluation['objective'])}"[:128],
            metrics_schema_uri=schema, metrics=_value(metrics_of(evaluation["metrics"])), metadata=_value(_metadata(evaluation)),
        )  # fmt: skip
        slices = [_slice(each, schema) for each in (evaluation.get("slices") or [])[:MOST_SLICES]]
        name = self.ask("import_model_evaluation", parent=f"{self.name}@{version}", model_evaluation=made).name
        if slices:
            self.ask("batch_import_model_evaluation_slices", parent=name, model_evaluation_slices=slices)
        return name


def schema_of(evaluation: Mapping[str, Any]) -> str:
    """Return the URI of the schema of an evaluation's metrics; "" if the service has none for its kind."""
    name = SCHEMATA.get(evaluation["kind"])
    return _SCHEMA.format(name) if name else ""


def metrics_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics under the names of the service's schemata, as far as those have them."""
    known = {name: [metrics[key] for key in keys if _is_finite(metrics.get(key))] for name, keys in METRICS.items()}
    return {name: values[0] for name, values in known.items() if values}


def digest(evaluation: Mapping[str, Any]) -> str:
    """Return a checksum of an evaluation's content."""
    return hashlib.sha256(json.dumps(evaluation, sort_keys=True).encode()).hexdigest()


def _metadata(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the schemata have no place for, beside the keys that Google's own components write."""
    paths = [file["path"] for file in evaluation.get("data", {}).get("files", [])]
    against = evaluation.get("against") or {}
    return {
        "evaluation_dataset_type": "file", "evaluation_dataset_path": paths, "evaluation_sha256": digest(evaluation),
        "evaluated_model": evaluation["model"], "objective": evaluation["objective"], "rows": evaluation.get("data", {}).get("rows", 0),
        "metrics": {name: value for name, value in evaluation["metrics"].items() if _is_finite(value)},
        "against": against.get("model"),
    }  # fmt: skip


def _slice(each: Mapping[str, Any], schema: str) -> Any:
    from google.cloud.aiplatform_v1 import types

    column, value = str(each["column"]), each["value"]
    spec = {"float_value": value} if _is_finite(value) else {"string_value": str(value)}
    configs = {column: {"value": spec}}
    return types.ModelEvaluationSlice(
        slice_={"dimension": "slice", "value": f"{column}={value}", "slice_spec": {"configs": configs}},
        metrics_schema_uri=schema, metrics=_value({**metrics_of(each.get("metrics", {})), "rows": each.get("rows", 0)}),
    )  # fmt: skip


def _value(content: Any) -> Any:
    return json_format.ParseDict(content, struct_pb2.Value())


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ------------------------------------------------------------------ is it the same model?


def is_same(first: str, second: str, client: Any) -> bool:
    """Tell whether two places hold the same model: the same folder, or files of the same names, sizes and checksums.

    Args:
        first, second: `gs://bucket/folder`, `/gcs/bucket/folder`, or a folder on this machine.
        client: returns a client of Cloud Storage; asked only where files have to be compared.
    """
    one, other = _plain(first), _plain(second)
    if one == other:
        return True
    own = _files(one, client)
    return bool(own) and own == _files(other, client)


def _plain(uri: str) -> str:
    text = re.sub("^/gcs/", "gs://", uri).rstrip("/")
    return text if "://" in text else str(Path(text).resolve())


def _files(uri: str, client: Any) -> dict[str, tuple[int, str]]:
    """Return size and CRC32C of each file of a folder; {} if it is not there."""
    if uri.startswith("gs://"):
        return transfer.checksums(client(), uri)
    folder = Path(uri)
    files = transfer.files_of(folder, "") if folder.is_dir() else {}
    return {name.lstrip("/"): (path.stat().st_size, transfer.crc32c(path)) for path, name in files.items()}
