"""The flags that give a job a managed data set, and the export that they and the job's file ask for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from ..job import settings
from ..job.job_file import JobFile
from . import dataset, export, splits

_SPLITS = "fractions=0.8,0.1,0.1 | column=NAME | time=NAME[,0.8,0.1,0.1] | strata=NAME[,0.8,0.1,0.1] | filter=TRAIN;VALID;TEST"
_ABOUT = ("data_split", "bigquery_destination")  # flags about a data set that another flag or the job's file names
_KEYED = {"time": "timestampSplit", "strata": "stratifiedSplit"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags about a managed data set."""
    group = parser.add_argument_group("managed data set (takes the place of the file's --train_data_path and its siblings)")
    group.add_argument("--dataset", metavar="FILE", help="a data set's file, exported as for a training pipeline; see docs/datasets.md")
    group.add_argument("--data_split", metavar="KIND=…", type=_split, help=f"{_SPLITS} (default: fractions as shown)")
    group.add_argument("--bigquery_destination", metavar="bq://PROJECT", help="export to tables there instead of CSV files")


def _split(text: str) -> dict[str, Any]:
    """Return a split in the API's form."""
    kind, _, value = text.partition("=")
    if kind == "fractions":
        return {"fractionSplit": _fractions(value.split(","), text)}
    if kind == "column" and value:
        return {"predefinedSplit": {"key": value}}
    if kind == "filter" and value.count(";") == 2:
        return {"filterSplit": {f"{name}Filter": part.strip() for name, part in zip(dataset.SETS, value.split(";"), strict=True)}}
    if kind in _KEYED and value:
        key, *numbers = value.rsplit(",", 3) if value.count(",") >= 3 else [value]
        return {_KEYED[kind]: {"key": key, **(_fractions(numbers, text) if numbers else {})}}
    raise argparse.ArgumentTypeError(f"takes {_SPLITS}; got {quoted(text)}.")


def _fractions(parts: list[str], text: str) -> dict[str, float]:
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != 3 or not all(0 <= value <= 1 for value in values) or not 0 < sum(values) <= 1 + 1e-6:
        raise argparse.ArgumentTypeError(f"takes three fractions that sum up to 1, for training, validation, test; got {quoted(text)}.")
    return {f"{name}Fraction": value for name, value in zip(dataset.SETS, values, strict=True)}


def wanted(job: JobFile, args: argparse.Namespace) -> bool:
    """Return whether there is a data set to export; raise a UserError for flags about a data set if there is none."""
    if args.dataset is None and job.data is None:
        for flag in _ABOUT:
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag}: is about a managed data set; give its file as --dataset.")
        return False
    return True


def plan(
    job: JobFile, args: argparse.Namespace, root: Path, destination: Path | None = None, **options: Any
) -> export.Export:  # fmt: skip
    """Return the checked export of the data set that the flags or the job's file name.

    Args:
        root: where `gs://bucket/x` lies as `bucket/x`.
        destination: where files go; None means below the job's baseOutputDirectory, as in the SDK.
        options: for `export.Export`.

    Raises:
        ValueError: the data set's file or the split is wrong, or there is no such file.
    """
    config: dict[str, Any] = dict(job.data or {})
    path = args.dataset or _beside(job.name, config.get("datasetId", ""))
    known = settings.load(Path(job.name).parent, settings.from_flags(args))
    known.pop("images", None)
    found = dataset.load(path, root, Path(os.path.abspath(args.project_dir)), known)
    if args.data_split is not None:
        config = {name: value for name, value in config.items() if name not in splits.KINDS} | args.data_split
    if args.bigquery_destination is not None:
        config["bigqueryDestination"] = {"outputUri": args.bigquery_destination}
    if destination is None and not {"gcsDestination", "bigqueryDestination"} & config.keys():
        if job.output is None:
            raise UserError(f"{job.name}: a data set is exported below baseOutputDirectory; give the job one.")
        config["gcsDestination"] = {"outputUriPrefix": job.output}
    try:
        return export.Export(found, config, destination, **options)
    except dataset.DatasetError as error:
        given = [f"--{flag}" for flag in _ABOUT if getattr(args, flag) is not None] or [job.name] * (job.data is not None)
        where = f"{path} ({', '.join(given)})" if given else path
        raise dataset.DatasetError(f"{where}: {error}", error.field, error.status) from None


def _beside(name: str, number: str) -> Path:
    """Return the data set file of an id in a pipeline's file: ID.yaml beside that file, or in the folder datasets beside it."""
    folder = Path(name).parent
    tried = [place / f"{number}.yaml" for place in (folder, folder / "datasets")]
    for path in tried:
        if path.is_file():
            return path
    shown = " or ".join(map(str, tried))
    problem = f"{name}: inputDataConfig.datasetId: there is no data set file for {number!r} ({shown})"
    raise dataset.DatasetError(f"{problem}; give one as --dataset.", status="UNAVAILABLE")
