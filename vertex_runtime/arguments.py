"""Command line of a trainer: every field of two dataclasses, the trainer's hyperparameters and `RunOptions`, is a flag.

Order of precedence everywhere: flag, then the service's variable, then the local default. Parsing imports neither
TensorFlow nor NumPy, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from .environment import quoted
from .errors import UserError

H = TypeVar("H")
YES_NO = ("auto", "yes", "no")
JIT = ("model", "auto", "yes", "no")
PLANS = ("no", "flags", "model", "data", "report")
STAGES = ("all", "evaluate", "export")
BESIDE = "beside the outputs"  # what --data_report without a value stands for
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field that becomes a flag: a number, a text, true or false, or a tuple of numbers or of texts.

    Args:
        default: what the field is without the flag.
        help: its line in `--help`.
        limits: `choices`, `minimum`, `maximum` (both inclusive) and `above` (exclusive), of a tuple for each of its items;
            `bare`: what the flag means without a value; `metavar`: how --help shows a value.
    """
    return field(default=tuple(default) if isinstance(default, list) else default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class CommonHyperparameters:
    """What every trainer's hyperparameters begin with: inherit it, and name a field again to give it another default."""

    batch_size: int = option(64, "examples per step, over all replicas", minimum=1)
    num_examples_to_train_on: int = option(0, "examples to train on in all, repeats included; 0: --epochs times the rows", minimum=0)
    epochs: float = option(10.0, "passes over the training rows, where --num_examples_to_train_on is 0", above=0)
    num_evals: int = option(5, "evaluations, evenly spaced over the training", minimum=1)
    early_stopping: int = option(0, "stop after so many evaluations without a better one; 0: never", minimum=0)
    plateau: int = option(0, "constant learning rate, halved after so many evaluations without a better one; 0: never", minimum=0)
    eval_fraction: float = option(0.0, "share of the training data to evaluate on, where no evaluation data is given", minimum=0)
    split_by: str = option("random", "--eval_fraction's rows: random, order:COLUMN (the last by it), group:COLUMN (never torn apart)")
    seed: int = option(0, "seed of initial weights, dropout, splits and the order of rows", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class RunOptions:
    """Flags that every trainer has beside its hyperparameters; none of them changes what a given row teaches."""

    train_data_path: tuple[str, ...] = option((), "files, wildcards or folders to train on [AIP_TRAINING_DATA_URI]", metavar="PATH")
    eval_data_path: tuple[str, ...] = option((), "the same, to evaluate on [AIP_VALIDATION_DATA_URI]", metavar="PATH")
    test_data_path: tuple[str, ...] = option((), "the same, for final test_* metrics [AIP_TEST_DATA_URI]", metavar="PATH")
    row_filter: str = option("", "of BigQuery tables (bq://…) read only the rows that meet this SQL condition, such as fare > 2.5")
    output_dir: str = option("", "D: writes D/model, D/checkpoints, D/logs [AIP_MODEL_DIR and its siblings]")
    bad_rows: str = option("error", "stop at the first bad row, or skip bad rows and count them", choices=("error", "skip"))
    start_over: bool = option(False, "move an earlier run in --output_dir aside and begin anew (not in a job)")
    in_memory: str = option("auto", "hold the training data in memory; auto: up to 2 GiB of prepared rows", choices=YES_NO)
    cache_dir: str = option("", "local folder for prepared rows too many for memory, kept for later runs; else a temporary file")
    checkpoint_steps: int = option(2000, "steps between checkpoints; one is written at each evaluation too", minimum=1)
    steps_per_call: int = option(0, "steps inside one compiled call; 0 picks them so that a call lasts up to 1 s", minimum=0)
    scalar_steps: int = option(0, "steps between training values in TensorBoard; 0: a fiftieth of the run, 1000 at least", minimum=0)
    jit_compile: str = option("model", "compile the steps with XLA; model: as model.py says; auto: time both", choices=JIT, bare="yes")
    strategy: str = option("auto", "how to distribute; auto: by cluster and devices", choices=STRATEGIES)
    startup_timeout: float = option(300.0, "seconds that a worker waits for its peers to appear", above=0)
    skew_tolerance: float = option(0.0, "largest |served - trained| / max(1, |trained|); 0: 1e-5, or 2e-2 on accelerators", minimum=0)
    export: str = option("best", "the model to export: of the best evaluation, or the last one", choices=("best", "last"))
    only: str = option("all", "one stage alone, from the newest checkpoint: evaluate, or export", choices=STAGES)
    max_minutes: float = option(0.0, "stop training after so many minutes of this process, and export; 0: never", minimum=0)
    stall_minutes: float = option(0.0, "end by SIGABRT when nothing has moved for so many minutes; 0: never", minimum=0)
    experiment: str = option("", "record the run in this experiment of Vertex AI Experiments [AIP_EXPERIMENT_NAME]")
    profile: str = option("", "A,B: write a profile of the steps from A to B to the log directory")
    plan: str = option("no", "say as JSON what would be trained, and stop: by the flags, the model or the data", choices=PLANS, bare="data")
    data_report: str = option("", "write a report on the data, *.html and *.json, there or beside the outputs, and stop", bare=BESIDE)
    evaluate: str = option("", "evaluate this exported model on --eval_data_path, write evaluation.json and .html to D, and stop")
    against: str = option("", "of --evaluate: another model, which is asked the same rows")
    ledger: str = option("", "append a hash of every row fed to every step to this file (for tests)")


def parse(hyperparameters: type[H], argv: Sequence[str] | None, description: str) -> tuple[H, RunOptions]:
    """Parse a trainer's command line.

    Args:
        hyperparameters: the trainer's dataclass; see `option` for its fields.
        argv: arguments without the program's name; None takes the process's own.
        description: what `--help` opens with.

    Raises:
        UserError: an unknown flag (the nearest known one is named) or a bad value.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    _add_group(parser, "data, outputs and how to run", RunOptions)
    _add_group(parser, "hyperparameters", hyperparameters)
    values = vars(parser.parse_args(argv))
    return _take(hyperparameters, values), _take(RunOptions, values)


def integer(text: str) -> int:
    """Parse a whole number of 64 bits; the tuning service sends `128.0` for 128."""
    try:
        value = int(text)  # first, because a float has only 53 bits for it
    except ValueError:
        value = int(float(text))  # an OverflowError for infinity
        if value != float(text):
            raise ValueError(text) from None
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError("must be a whole number between -2**63 and 2**63")
    return value


def integers(text: str) -> tuple[int, ...]:
    """Parse sizes such as "32 8" (or "32,8")."""
    sizes = tuple(integer(part) for part in text.replace(",", " ").split())
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError('needs one or more sizes above 0, such as "32 8"')
    return sizes


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers such as "0.1 0.2" (or "0.1,0.2")."""
    found = tuple(number(part) for part in text.replace(",", " ").split())
    if not found:
        raise argparse.ArgumentTypeError('needs one or more numbers, such as "0.1 0.2"')
    return found


def boolean(text: str) -> bool:
    """Parse `true` or `false`, as a tuning job with these two values of a category sends it."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def number(text: str) -> float:
    """Parse a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def step_range(text: str) -> tuple[int, int] | None:
    """Parse `--profile A,B`; an empty text means no profile."""
    if not text:
        return None
    try:
        first, last = (integer(part) for part in text.split(","))
    except (ValueError, OverflowError, argparse.ArgumentTypeError):
        first, last = 0, 0
    if not 1 <= first <= last:
        raise UserError(f"--profile: needs A,B with 1 <= A <= B, such as 20,30; got {quoted(text)}.")
    return first, last


# By the type of a field: how its value is read, how --help shows it, and what it must be.
_KINDS: dict[Any, tuple[Callable[[str], Any], str, str]] = {
    int: (integer, "N", "a whole number"),
    float: (number, "X", "a finite number"),
    str: (str, "TEXT", "a text"),
    bool: (boolean, "true|false", "true or false"),
    tuple[int, ...]: (integers, '"N N"', 'whole numbers such as "32 8"'),
    tuple[float, ...]: (numbers, '"X X"', 'finite numbers such as "0.1 0.2"'),
    tuple[str, ...]: (str, "TEXT", "texts"),  # several words of the command line
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See --help for all flags.")

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        words = [_underscored(word) for word in (sys.argv[1:] if args is None else args)]
        values, unknown = self.parse_known_args(words, namespace)
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1, 0.5)
            self.error(f"unknown argument {quoted(unknown[0])}" + (f"; the nearest known flag is {near[0]}" if near else ""))
        return values


def _underscored(word: str) -> str:
    """`--batch-size=4` and `--batch_size=4` are the same flag."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word


def _add_group(parser: _Parser, title: str, kind: type) -> None:
    group = parser.add_argument_group(title)
    where = os.path.relpath(getattr(sys.modules[kind.__module__], "__file__", None) or kind.__module__)
    if any(isinstance(value, dataclasses.Field) for value in vars(kind).values()):
        raise UserError(f"{where}: {kind.__name__} is no dataclass. Write @dataclass(frozen=True) above it.")
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise UserError(f"{where}: {kind.__name__}: {error}. Correct the type of that field.") from None
    for entry in dataclasses.fields(kind):
        flag, hint, limits = f"--{entry.name}", hints[entry.name], entry.metadata
        if hint not in _KINDS:
            raise UserError(
                f"{where}: the type of {entry.name} must be int, float, str, bool, or a tuple such as tuple[int, ...]; "
                f"got {quoted(entry.type)}."
            )
        if entry.default is dataclasses.MISSING:
            raise UserError(f'{where}: {entry.name} has no default value. Give it one, such as {entry.name}: … = option(1, "what it is").')
        if flag in parser._option_string_actions:
            raise UserError(f"{where}: {entry.name} is a flag of every trainer already. Give this field another name.")
        parse_one, metavar, words = _KINDS[hint]
        extra: dict[str, Any] = {"nargs": "?", "const": limits["bare"]} if "bare" in limits else {}
        extra = {"nargs": "?", "const": True} if hint is bool else {"nargs": "+"} if hint == tuple[str, ...] else extra
        shown = "{" + ",".join(map(str, limits["choices"])) + "}" if "choices" in limits else limits.get("metavar", metavar)
        default = " ".join(map(str, entry.default)) if hint in (tuple[int, ...], tuple[float, ...]) else entry.default
        text = limits.get("help", "").replace("%", "%%")
        group.add_argument(flag, type=_checked(parse_one, words, limits), default=default, metavar=shown, help=text, **extra)


def _checked(parse_one: Callable[[str], Any], words: str, limits: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a parser of a flag's value that also keeps to the field's limits; `words` say what the value must be."""

    def parse_checked(text: str) -> Any:
        try:
            value = parse_one(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"needs {words}; got {quoted(text)}") from None
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}; got {quoted(text)}") from None
        for item in value if isinstance(value, tuple) else (value,):
            if problem := _beyond(item, limits):
                raise argparse.ArgumentTypeError(f"must be {problem}; got {quoted(text)}")
        return value

    return parse_checked


def _beyond(value: Any, limits: Mapping[str, Any]) -> str:
    """Return which limit a value does not keep to; "" if it keeps to all."""
    if "choices" in limits and value not in limits["choices"]:
        return f"one of {', '.join(map(str, limits['choices']))}"
    if "minimum" in limits and value < limits["minimum"]:
        return f"at least {limits['minimum']}"
    if "maximum" in limits and value > limits["maximum"]:
        return f"at most {limits['maximum']}"
    if "above" in limits and value <= limits["above"]:
        return f"above {limits['above']}"
    return ""


def _take(kind: type, values: dict[str, Any]) -> Any:
    taken = {entry.name: values[entry.name] for entry in dataclasses.fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()})
