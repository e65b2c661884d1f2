"""Managed tabular datasets: what a training pipeline exports of one, split into training, validation and test rows."""

from __future__ import annotations

import csv
import datetime
import glob
import os
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import buckets
from .local import Local
from .rest import ApiError, required, unsupported

SETS = ("training", "validation", "test")
_PREDEFINED = {"training": 0, "train": 0, "validation": 1, "validate": 1, "test": 2}
_DEFAULT = (0.8, 0.1, 0.1)
_SPLITS = ("fractionSplit", "filterSplit", "predefinedSplit", "timestampSplit", "stratifiedSplit")
Rows = Iterator["tuple[int, list[str]]"]


def check(local: Local, metadata: Any) -> list[str]:
    """Return the URIs of a tabular dataset's files; they must be there and have the same columns."""
    source = metadata.get("inputConfig", {}) if isinstance(metadata, Mapping) else {}
    if "bigquerySource" in source:
        text = "BigQuery sources are not supported by the local service; give gcsSource."
        raise ApiError("UNIMPLEMENTED", text, "metadata.inputConfig.bigquerySource")
    where = "metadata.inputConfig.gcsSource.uri"
    uris = source.get("gcsSource", {}).get("uri", [])
    if isinstance(uris, str):
        uris = [uris]
    if not uris:
        raise ApiError("INVALID_ARGUMENT", f"{where} is required and must not be empty.", where)
    _header(_files(local.buckets, uris))
    return list(uris)


def _files(root: Path, uris: list[str]) -> list[Path]:
    found: list[Path] = []
    for uri in uris:
        if not str(uri).startswith("gs://"):
            raise ApiError("INVALID_ARGUMENT", f"gcsSource takes gs://bucket/file.csv; got {uri!r}.", "gcsSource.uri")
        try:
            path = buckets.to_path(uri, root)
        except buckets.BucketError as error:
            raise ApiError("INVALID_ARGUMENT", str(error), "gcsSource.uri") from None
        matches = [Path(path)] if os.path.isfile(path) else sorted(map(Path, glob.glob(path)))
        matches = [match for match in matches if match.is_file() and root in Path(os.path.realpath(match)).parents]
        if not matches:
            raise ApiError("NOT_FOUND", f"{uri}: there is no such object.")
        found += matches
    return found


def _header(files: list[Path]) -> list[str]:
    """Return the columns: every file begins with the same line of names."""
    headers = []
    for file in files:
        with open(file, newline="", encoding="utf-8-sig", errors="replace") as opened:
            headers.append(next(csv.reader(opened), []))
        if not headers[-1] or headers[-1] != headers[0]:
            problem = f"its columns {headers[-1]} are not those of {files[0].name}, {headers[0]}" if headers[-1] else "it is empty"
            raise ApiError("INVALID_ARGUMENT", f"{file.name}: {problem}.", "gcsSource.uri")
    return headers[0]


def _rows(files: list[Path]) -> Rows:
    number = 0
    for file in files:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            next(reader, None)
            for row in reader:
                if row:
                    yield number, row
                    number += 1


def plan(local: Local, parent: str, config: dict[str, Any]) -> Callable[[], dict[str, str]]:
    """Check a pipeline's `inputDataConfig` and return what exports the data and returns the job's variables."""
    required(config, "datasetId")
    where = "inputDataConfig."
    unknown = ("bigqueryDestination", "annotationSchemaUri", "annotationsFilter", "savedQueryId", "persistMlUseAssignment")
    unsupported(config, unknown, where)
    prefix = config.get("gcsDestination", {}).get("outputUriPrefix", "")
    required({"inputDataConfig": config}, "inputDataConfig.gcsDestination.outputUriPrefix")
    try:
        folder = buckets.to_path(prefix, local.buckets)
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), f"{where}gcsDestination.outputUriPrefix") from None
    dataset = local.known(f"{parent}/datasets/{config['datasetId']}")
    files = _files(local.buckets, check(local, dataset["metadata"]))
    assign = _assigner(config, files, _header(files), where)

    def export() -> dict[str, str]:
        time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        target = Path(folder, f"dataset-{config['datasetId']}-tabular-{time}")
        _write(files, assign(), target)
        uris = {name: f"{target}/{name}-*.csv" for name in SETS}
        return {"AIP_DATA_FORMAT": "csv", **{f"AIP_{name.upper()}_DATA_URI": uri for name, uri in uris.items()}}

    return export


def _write(files: list[Path], choose: Callable[[int, list[str]], int | None], target: Path) -> None:
    """Write one file per set, each with the line of names; a set without rows has no file."""
    target.mkdir(parents=True)
    header, writers, opened = _header(files), {}, []
    try:
        for number, row in _rows(files):
            place = choose(number, row)
            if place is None:
                continue
            if place not in writers:
                opened.append(open(target / f"{SETS[place]}-00000-of-00001.csv", "w", newline="", encoding="utf-8"))  # noqa: SIM115
                writers[place] = csv.writer(opened[-1], lineterminator="\n")
                writers[place].writerow(header)
            writers[place].writerow(row)
    finally:
        for file in opened:
            file.close()
    if 0 not in writers:
        raise ApiError("INVALID_ARGUMENT", "the split leaves no row for training.", "inputDataConfig")


# ------------------------------------------------------------------ the splits


def _assigner(config: Mapping[str, Any], files: list[Path], header: list[str], where: str) -> Callable[[], Any]:
    """Return what makes, when the export begins, the function from a row to its set."""
    given = [name for name in _SPLITS if name in config]
    split = given[0] if given else "fractionSplit"
    wish = config.get(split, {})
    if split == "filterSplit":
        text = "filterSplit is for datasets of text and images; a tabular dataset takes fractionSplit, predefinedSplit or timestampSplit."
        raise ApiError("INVALID_ARGUMENT", text, f"{where}filterSplit")
    fractions = () if split == "predefinedSplit" else _fractions(wish, where + split)
    if split == "fractionSplit":
        return lambda: _by_chance(fractions, config["datasetId"])
    key = wish.get("key")
    if key not in header:
        text = f"{split}.key must be one of the columns {', '.join(header)}; got {key!r}."
        raise ApiError("INVALID_ARGUMENT", text, f"{where}{split}.key")
    column = header.index(key)
    if split == "predefinedSplit":
        return lambda: lambda number, row: _PREDEFINED.get(row[column].strip().lower()) if column < len(row) else None
    if split == "stratifiedSplit":
        return lambda: _stratified(files, column, fractions, config["datasetId"])
    return lambda: _by_time(files, column, fractions)


def _fractions(wish: Mapping[str, Any], where: str) -> tuple[float, ...]:
    values = tuple(float(wish.get(f"{name}Fraction", 0.0)) for name in SETS)
    if not any(values):
        return _DEFAULT
    if min(values) < 0 or sum(values) > 1 + 1e-6:
        raise ApiError("INVALID_ARGUMENT", f"fractions are from 0 on and sum up to at most 1; got {values}.", where)
    return values


def _place(share: float, fractions: tuple[float, ...]) -> int | None:
    """Return the set in which a share from 0 to 1 falls; beyond all of them a row is left out."""
    total = 0.0
    for place, fraction in enumerate(fractions):
        total += fraction
        if share < total - 1e-12:
            return place
    return None


def _by_chance(fractions: tuple[float, ...], seed: str) -> Callable[[int, list[str]], int | None]:
    """Each row by itself, drawn by its number: the same rows at every export."""
    return lambda number, row: _place(random.Random(zlib.crc32(f"{seed}:{number}".encode())).random(), fractions)


def _in_order(order: list[int], fractions: tuple[float, ...]) -> dict[int, int | None]:
    return {number: _place(rank / len(order), fractions) for rank, number in enumerate(order)}


def _stratified(files: list[Path], column: int, fractions: tuple[float, ...], seed: str) -> Callable[[int, list[str]], int | None]:
    """Every value of the column with the same fractions."""
    classes: dict[str, list[int]] = {}
    for number, row in _rows(files):
        if column < len(row):
            classes.setdefault(row[column], []).append(number)
    places: dict[int, int | None] = {}
    for value, numbers in sorted(classes.items()):
        random.Random(f"{seed}:{value}").shuffle(numbers)
        places.update(_in_order(numbers, fractions))
    return lambda number, row: places.get(number)


def _by_time(files: list[Path], column: int, fractions: tuple[float, ...]) -> Callable[[int, list[str]], int | None]:
    """The youngest rows train, the oldest test, as the API's reference says; a row without a time is left out."""
    times = [(when, number) for number, row in _rows(files) if column < len(row) and (when := _time(row[column])) is not None]
    if not times:
        text = "no row has a time in RFC 3339 such as 1985-04-12T23:20:50.52Z."
        raise ApiError("INVALID_ARGUMENT", text, "inputDataConfig.timestampSplit.key")
    places = _in_order([number for _, number in sorted(times, key=lambda pair: (-pair[0], pair[1]))], fractions)
    return lambda number, row: places.get(number)


def _time(text: str) -> float | None:
    try:
        when = datetime.datetime.fromisoformat(_digits(text.strip()))
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _digits(text: str) -> str:
    """Return a time as Python before 3.11 reads it: no Z, a fraction of six digits."""
    text = text[:-1] + "+00:00" if text[-1:] in "Zz" else text
    head, dot, rest = text.partition(".")
    cut = len(rest) - len(rest.lstrip("0123456789"))
    return f"{head}.{rest[:cut][:6].ljust(6, '0')}{rest[cut:]}" if dot else text
