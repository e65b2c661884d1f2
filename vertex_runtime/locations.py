"""Where a run's rows are: what flags and variables name, or the sample data that ships with the trainer."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections import Counter
from typing import Any

from . import data, export, formats, sources
from .arguments import RunOptions
from .contract import Contract
from .environment import Environment
from .errors import UserError
from .reporting import log


def data_paths(contract: Contract, hp: Any, options: RunOptions, env: Environment) -> tuple[list[str], list[str], list[str], bool]:
    """Return the files (training, evaluation, test), by flag, then variable, and whether they are the bundled sample, made up.

    A file of the service's text lines that is given for several of them, or alone, is parted by its rows' `ml_use`.

    Raises:
        UserError: a path matches nothing, or a job names no data.
    """
    if not (options.train_data_path or env.training_data or env.in_job):
        train, evaluation = sample_paths(contract)
        kind = "synthetic sample data" if contract.synthetic_samples else "sample data"
        log("INFO", f"training on {kind}, which ships with the project (no --train_data_path given)")
        if options.eval_data_path:
            evaluation = contract.find(options.eval_data_path, "--eval_data_path")
        test = contract.find(options.test_data_path, "--test_data_path") if options.test_data_path else []
        return train, evaluation, test, contract.synthetic_samples and not (options.eval_data_path or options.test_data_path)
    chosen, parted_test = [], []
    for flag, variable, given, uri in (
        ("--train_data_path", "AIP_TRAINING_DATA_URI", options.train_data_path, env.training_data),
        ("--eval_data_path", "AIP_VALIDATION_DATA_URI", options.eval_data_path, env.validation_data),
        ("--test_data_path", "AIP_TEST_DATA_URI", options.test_data_path, env.test_data),
    ):
        if not given and not uri and flag.startswith("--eval") and hp.eval_fraction:
            chosen.append([])
            continue
        if not given and not uri and not flag.startswith("--test"):
            if flag.startswith("--eval") and (parted := _alone(contract, chosen[0], env.data_format)):
                *chosen, parted_test = parted
                continue
            remedy = "" if flag.startswith("--train") else ", or cut some off the training data: --eval_fraction=0.2"
            raise UserError(f"no data: give {flag}, or let the service set {variable}{remedy}.")
        try:
            chosen.append(contract.find(given or (uri,), flag if given else variable) if given or uri else [])
        except UserError as error:
            if given or not flag.startswith("--test"):
                raise
            log("WARNING", f"no test metrics: {error}")  # the service names a split even if no file came of it
            chosen.append([])
    train, evaluation, test = _shared(contract, chosen, env.data_format)
    return train, evaluation, test or parted_test, False


USES = ("training", "validation", "test")


def _uses(contract: Contract, path: str, said: str | None) -> Counter[str]:
    """Count the rows of a file of the service's text lines by their use; nothing where it is none, or says nothing of that."""
    if "read" in contract.given or data.file_column(contract.columns, contract.labels) is None or data.is_folder(path):
        return Counter()
    uses = getattr(formats.choose(path, formats.Reading(said)), "uses", None)
    found = uses(path) if uses and data.split_part(path)[0] == path else Counter()
    return found if any(found[use] for use in USES) else Counter()


def _say(path: str, uses: Counter[str]) -> None:
    listed = ", ".join(f"{uses[use]} {use}" for use in USES if uses[use])
    log("INFO", f"{path}: its rows are parted by what their ml_use says: {listed}")
    if others := sum(uses.values()) - sum(uses[use] for use in USES):
        log("WARNING", f"{path}: {others} rows have none of these as their ml_use: they are left out, as the service does it")


def _alone(contract: Contract, train: list[str], said: str | None) -> list[list[str]] | None:
    """Return (training, evaluation, test) parts of files that are all that was given; None where they do not say what is what."""
    found = {path: _uses(contract, path, said) for path in train}
    parts = [[f"{path}:ml_use={use}" for path, uses in found.items() if uses[use]] for use in USES]
    if not all(found.values()) or not parts[0] or not parts[1]:
        return None
    for path, uses in found.items():
        _say(path, uses)
    return parts


def _shared(contract: Contract, chosen: list[list[str]], said: str | None) -> list[list[str]]:
    """Return the files with those that are given for several uses parted, where they have rows for each of these."""
    times = Counter(path for paths in chosen for path in paths)
    parted: set[str] = set()
    for path in [path for path, number in times.items() if number > 1]:
        uses = _uses(contract, path, said)
        if uses and all(uses[use] for use, paths in zip(USES, chosen) if path in paths):
            parted.add(path)
            _say(path, uses)
    return [[f"{path}:ml_use={use}" if path in parted else path for path in paths] for use, paths in zip(USES, chosen)]


def sample_paths(contract: Contract) -> tuple[list[str], list[str]]:
    """Return the bundled (training, evaluation) files of a trainer, wherever it is installed."""
    package = importlib.util.find_spec(contract.name)
    own = os.path.dirname(os.path.dirname(os.path.abspath(contract.module.__file__ or "")))
    folder = os.path.join(list(package.submodule_search_locations or [own])[0] if package else own, "tests", "data")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = []
    for i, words in enumerate((("train",), ("valid", "eval"))):
        named = contract.sample_files[i] if i < len(contract.sample_files) else None
        named = named or next((name for name in names if any(word in name for word in words)), f"{words[0]}.csv")
        if named not in names:
            path = os.path.join(folder, named)
            raise UserError(f"the sample data is not installed ({path}). Give --train_data_path and --eval_data_path.")
        found.append(os.path.join(folder, named))
    return found[:1], found[1:]


def sample_instances(package: str, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a trainer's sample data as the instances of a request.

    Args:
        package: the trainer's own package, such as `taxifare.trainer`.
    """
    from .contract import load_module

    hyperparameters = importlib.import_module(f"{package}.hyperparameters").Hyperparameters
    contract, hp = load_module(f"{package}.model", hyperparameters), hyperparameters()
    paths = sample_paths(contract)[0]
    source = sources.source_of(contract, paths, hp, True, data.BadRows(), counted=False)
    chunk = next(source.chunks() if source is not None else contract.read(paths[0], data.BadRows()))
    contract = sources.with_inferred_inputs(contract, chunk)
    return export.instances_of(contract, data.take(chunk, slice(0, count)))
