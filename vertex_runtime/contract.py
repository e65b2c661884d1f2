"""What a trainer's `model.py` offers, checked once and turned into the one object that the runtime works with.

`ModelModule` is the list of parts; three of them are enough (`COLUMNS`, `LABEL`, `build_model`), the others have defaults.
No other file of the runtime reaches into the module.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import keyword
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from . import data
from .arguments import CommonHyperparameters
from .columns import Category, Column, Number
from .environment import quoted
from .errors import FAILED, Preempted, UserError, cause, first_line, frames_in, is_exhaustion
from .formats import Reading

Facts = Any  # whatever `learn` returns: most often a dict of arrays and texts
Features = Any  # a nest of dense tensors [rows, ...]


class ModelModule(Protocol):
    """The parts of a `model.py`. A chunk is a dict of columns: float32 [rows], or objects (bytes) [rows] for texts.

    Rows come from one of four places: `COLUMNS` alone (files of any format, or a folder per label), `read` of your own, `source`
    (random access), or `dataset` (a `tf.data.Dataset`).
    """

    NAME: str  # the trainer's package, for messages and the sample data; default: the folder's name
    SAMPLE_FILES: Sequence[str]  # (training, evaluation) in tests/data; default: what is named *train* and *valid* or *eval*
    SYNTHETIC_SAMPLES: bool  # whether that sample data is made up; default: yes
    COLUMNS: Sequence[Column]  # what a row holds, the label among it: see columns.py
    LABEL: str | Sequence[str]  # the column, or columns, to predict
    WEIGHT: str  # a column of numbers from 0: how much a row counts in training and evaluation; default: all alike
    INPUTS: Mapping[str, tf.TensorSpec]  # what a request holds, each [rows, ...]; default: the columns but label and weight
    OBJECTIVE: str  # the evaluation metric that tuning and the best checkpoint go by; default: val_loss
    MAXIMIZE: bool  # whether more of it is better; needed where the metric's name does not tell

    def build_model(self, hp: Any, facts: Facts, total_steps: int) -> keras.Model:
        """Return the compiled model; `total_steps` is for learning-rate schedules. Required."""

    def find(self, paths: Sequence[str], flag: str) -> list[str]:
        """Return the files, or folders, that paths and wildcards name; `flag` is where they were given, for messages."""

    def read(self, path: str, bad: data.BadRows) -> Iterator[data.Chunk]:
        """Read one file, or folder, in chunks of raw columns; hand bad rows to `bad.add(where, reason, value)`."""

    def source(self, files: Sequence[str], hp: Any) -> Sequence[Mapping[str, Any]]:
        """Return an object with `len` and `[i]`, which gives one row as a dict of values, the label among them."""

    def dataset(self, files: Sequence[str], hp: Any, epoch: int | None) -> tf.data.Dataset:
        """Return one pass of single examples (features, label[, weight]); `epoch` is None for evaluation.

        The same call must give the same examples in the same order: seed a shuffle with `hp.seed + epoch`.
        """

    def learn(self, chunks: Iterable[data.Chunk], hp: Any) -> Facts:
        """Return what has to be known of the training rows: means, vocabularies, adapted layers. Default: nothing.

        The classes of a text label are added as `facts["class_names"]` where the default `encode_labels` is used. With
        --cache_dir, a later run on the same rows takes what was returned and does not call it: nothing else may be left behind.
        """

    def preprocess(self, raw: Mapping[str, tf.Tensor], hp: Any, facts: Facts) -> Features:
        """Turn raw inputs [rows, ...] into what the model takes, in TensorFlow operations: this graph is exported, too.

        Default: the inputs as they are. It is traced without AutoGraph: use tf.where and tf.cond, not `if` on tensors.
        """

    def encode_labels(self, chunk: data.Chunk, facts: Facts) -> Any:
        """Return the labels as arrays [rows, ...] or a dict of them. Default: numbers, or int32 places in `class_names`."""

    def weigh(self, chunk: data.Chunk, hp: Any, facts: Facts) -> np.ndarray:
        """Return each row's weight, float32 [rows], in training and evaluation. Default: the column WEIGHT, if any."""

    def class_weight(self, hp: Any, facts: Facts) -> Mapping[int, float]:
        """Return Keras's `class_weight`, by the class's number: factors of the weights in training only. Default: none."""

    def callbacks(self, hp: Any) -> list[keras.callbacks.Callback]:
        """Return the Keras callbacks to train with. Default: by --early_stopping and --plateau."""

    def outputs(self, predictions: Any, facts: Facts) -> dict[str, tf.Tensor]:
        """Turn the model's predictions into the served answer, by name. Default: as they are, classes with their names."""

    def score(self, outputs: Mapping[str, np.ndarray], labels: Any) -> float:
        """Return a metric of served answers, for the gate. Default: the objective's own metric, where outputs are as they are."""

    def slices(self, chunk: data.Chunk) -> Mapping[str, np.ndarray]:
        """Return quantities by which an evaluation's errors are looked at, beside the columns: numbers or texts [rows]. Default: none."""

    def extra_files(self, facts: Facts) -> dict[str, str]:
        """Return texts to put into `assets.extra` of the SavedModel, by name. Default: labels.txt, of several labels labels.NAME.txt."""

    def jit_compile(self, hp: Any, total_steps: int) -> bool:
        """Tell whether to compile the steps with XLA. Default: no, because many models are slower for it."""


FUNCTIONS = {name: part for name, part in vars(ModelModule).items() if inspect.isfunction(part) and not name.startswith("_")}
VALUES = tuple(ModelModule.__annotations__)
# Metrics whose names tell which way is better, as in Keras's own; any other needs MAXIMIZE.
MORE_IS_BETTER = ("accuracy", "acc", "auc", "precision", "recall", "f1", "f1_score", "fbeta_score", "iou", "mean_io_u", "r2_score")
LESS_IS_BETTER = ("loss", "error", "mse", "rmse", "mae", "mape", "msle", "crossentropy", "hinge", "poisson")


@dataclass(frozen=True)
class Contract:
    """A checked `model.py`: every part is there, the defaults filled in. A call that fails names its place in one line."""

    name: str
    module: ModuleType
    sample_files: tuple[str, ...]
    columns: tuple[Column, ...]
    labels: tuple[str, ...]
    weight: str | None
    inputs: Mapping[str, tf.TensorSpec] | None  # None: they follow from the first row of `source` or `dataset`
    objective: str
    maximize: bool
    given: frozenset[str]  # the parts that the module has of its own
    functions: Mapping[str, Callable[..., Any]]
    synthetic_samples: bool = True
    resources: Sequence[Any] = ()  # lookup tables and the like that the trainer's code has made so far; see `made_resources`

    def __getattr__(self, part: str) -> Callable[..., Any]:
        """Return a function of the contract, such as `contract.build_model`."""
        if part not in FUNCTIONS:
            raise AttributeError(part)
        function = self.functions[part]

        def call(*args: Any) -> Any:
            with blame(self.module, part):
                found = function(*args)
            if part == "source" and hasattr(found, "__len__") and hasattr(found, "__getitem__"):
                return _Rows(found, self.module)
            return iterate(found, self.module, part) if inspect.isgenerator(found) else found

        return call

    def with_inputs(self, inputs: Mapping[str, tf.TensorSpec]) -> Contract:
        """Return the contract with the inputs that were found in the first row."""
        return dataclasses.replace(self, inputs=dict(inputs))

    def with_reading(self, reading: Reading) -> Contract:
        """Return the contract whose default `read` goes by what the service says of the data; one of the module's own does not."""
        if "read" in self.given:
            return self
        read = functools.partial(self.functions["read"], reading=reading)
        return dataclasses.replace(self, functions={**self.functions, "read": read})

    def served_columns(self) -> list[Column]:
        """Return the columns that describe inputs."""
        return [column for column in self.columns if column.name in (self.inputs or {})]


@contextlib.contextmanager
def blame(module: ModuleType, part: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an exception of a trainer's code into one line that names the file and line of that code.

    TRAINER_TRACEBACK=1 shows the whole traceback as well.

    Args:
        but: what passes, since it may be somebody else's fault, such as a peer's that went away.
    """
    try:
        yield
    except (UserError, Preempted, data.UnknownLabel):
        raise
    except Exception as error:
        if is_exhaustion(error) or isinstance(error, but):
            raise
        folder = os.path.dirname(module.__file__ or "")
        # task.py is on the way to everything.
        where = _last_line(error, lambda path: os.path.dirname(path) == folder and os.path.basename(path) != "task.py")
        where = where or os.path.relpath(module.__file__ or module.__name__)
        text = cause(error, 400)
        if os.environ.get("TRAINER_TRACEBACK"):
            traceback.print_exc()
        raise UserError(
            f"{where}, in {part}: {type(error).__name__}: {text}. Mend it there; TRAINER_TRACEBACK=1 shows the whole traceback.", FAILED
        ) from error


def _last_line(error: Exception, is_own: Callable[[str], bool]) -> str:
    """Return the file and line of an exception's last frame in a file that `is_own`, else of the last such place in its text."""
    frames = [*frames_in(error), *((frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__))]
    found = [(path, line) for path, line in frames if is_own(path)]
    return f"{os.path.relpath(found[-1][0])}, line {found[-1][1]}" if found else ""


class _Rows:
    """The object that `source` returned: what fails in its own code is said in one line."""

    def __init__(self, rows: Any, module: ModuleType):
        self.rows, self.module = rows, module

    def __len__(self) -> int:
        with blame(self.module, "len() of what source returns"):
            return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.rows[i]
        except Exception:
            with blame(self.module, f"[{i}] of what source returns"):
                raise


def iterate(items: Iterator[Any], module: ModuleType, part: str) -> Iterator[Any]:
    """Yield items that a trainer's code makes one after another; see `blame`."""
    while True:
        with blame(module, part):
            item = next(items, items)
        if item is items:
            return
        yield item


@contextlib.contextmanager
def made_resources() -> Iterator[list[Any]]:
    """Collect the lookup tables that are made meanwhile, wherever: an export must hold those that its graph uses.

    A StringLookup made inside `preprocess` is an attribute of nothing, so that TensorFlow alone would not find its table.
    """
    try:
        from tensorflow.python.trackable import resource
    except ImportError:  # nothing public collects them; without this, tables must be attributes of the model
        yield []
        return
    tracker = resource.ResourceTracker()
    with resource.resource_tracker_scope(tracker):
        yield tracker.resources


def load_module(name: str, hyperparameters: type, resources: Sequence[Any] = ()) -> Contract:
    """Import a trainer's module and check it.

    Raises:
        UserError: it cannot be imported (the file and line are named), or is not what the contract says.
    """
    try:
        module = importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        where = _last_line(error, lambda path: "importlib" not in path and not path.startswith("<")) or name
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{os.path.relpath(error.filename)}, line {error.lineno}"
        if os.environ.get("TRAINER_TRACEBACK"):
            traceback.print_exc()
        text = first_line(error, 300)
        raise UserError(f"{where}: {type(error).__name__}: {text}. Mend it there.", FAILED) from error
    return load(module, hyperparameters, resources)


def load(module: ModuleType, hyperparameters: type, resources: Sequence[Any] = ()) -> Contract:
    """Check a trainer's module `model` and its hyperparameters, before any data is read.

    Raises:
        UserError: a part is missing, misspelt or of a wrong type; one line that names it and the remedy.
    """
    where = os.path.relpath(module.__file__ or module.__name__)
    given = {name for name in (*FUNCTIONS, *VALUES) if hasattr(module, name)}
    _check_names(module, where, given)
    _check_hyperparameters(module, hyperparameters)
    labels, columns = _check_rows(module, where, given)
    for name in FUNCTIONS.keys() & given:
        _check_signature(getattr(module, name), name, where)
    objective, maximize = _check_objective(module, where)
    weight = _value(module, "WEIGHT", str, where)
    if weight is not None and weight not in {column.name for column in columns if isinstance(column, Number)}:
        raise UserError(f"{where}: WEIGHT names {quoted(weight)}, which is no Number column of COLUMNS. Add it there.")
    defaults = Defaults(columns, labels, weight, objective, maximize)  # type: ignore[abstract]
    parts = {name: getattr(module, name, None) or getattr(defaults, name) for name in FUNCTIONS}
    samples = _value(module, "SAMPLE_FILES", Sequence, where) or ()
    name = _value(module, "NAME", str, where) or _package_name(module)
    inputs = _check_inputs(module, where, columns, {*labels, weight})
    synthetic = _value(module, "SYNTHETIC_SAMPLES", bool, where) is not False
    return Contract(
        name, module, tuple(samples), columns, labels, weight, inputs, objective, maximize, frozenset(given), parts, synthetic, resources
    )


def _check_names(module: ModuleType, where: str, given: set[str]) -> None:
    """Refuse a public name that is nearly that of a part which the module lacks."""
    lacking = [name for name in (*FUNCTIONS, *VALUES) if name not in given]
    for name, value in vars(module).items():
        own = (inspect.isfunction(value) and value.__module__ == module.__name__) or (name.isupper() and not name.startswith("_"))
        if not own or name in given:
            continue
        kind = [part for part in lacking if part.isupper() == name.isupper()]
        if near := difflib.get_close_matches(name, kind, 1, 0.85 if name.isupper() else 0.8):
            raise UserError(f"{where} offers {name}, which is nearly {near[0]}: rename it to that, or to something else altogether.")
    if "build_model" not in given:
        raise UserError(f"{where} lacks build_model(hp, facts, total_steps), which returns the compiled keras.Model. Add it.")


def _check_rows(module: ModuleType, where: str, given: set[str]) -> tuple[tuple[str, ...], tuple[Column, ...]]:
    """Return (labels, columns)."""
    columns = tuple(_value(module, "COLUMNS", Sequence, where) or ())
    for column in columns:
        if not isinstance(column, Column):
            raise UserError(f"{where}: COLUMNS must hold Number, Category, Text, Date or Image; got {_described(column)}.")
    names = [column.name for column in columns]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: COLUMNS names {doubled[0]} twice. Keep one.")
    headers = [column.header or column.name for column in columns]
    if doubled := sorted({name for name in headers if headers.count(name) > 1}):
        raise UserError(f"{where}: two of COLUMNS are {quoted(doubled[0])} in files. Keep one, or mend its header=.")
    if not {"COLUMNS", "read", "source", "dataset"} & given:
        raise UserError(f"{where} lacks COLUMNS, the columns of its files (or read, source or dataset for rows from elsewhere). Add it.")
    if "dataset" in given:
        return (), columns
    if "LABEL" not in given:
        raise UserError(f"{where} lacks LABEL, the name of the column to predict. Add it.")
    label = module.LABEL
    labels = (label,) if isinstance(label, str) else tuple(label) if isinstance(label, (list, tuple)) else ()
    if not labels or not all(isinstance(name, str) for name in labels):
        raise UserError(f"{where}: LABEL must be a column's name, or a tuple of names; got {quoted(label)}.")
    for name in labels if columns else ():
        if name not in names:
            hint = _nearest(name, names, f"there are {', '.join(names)}")
            raise UserError(f"{where}: LABEL names {quoted(name)}, which is no column of COLUMNS; {hint}. Mend the name.")
    return labels, columns


def _check_inputs(module: ModuleType, where: str, columns: Sequence[Column], not_sent: set[str | None]) -> dict[str, tf.TensorSpec] | None:
    """Return what a request holds: INPUTS, else the columns but those `not_sent`; None where the first row will tell."""
    given = _value(module, "INPUTS", Mapping, where)
    if given is None and not columns:
        if hasattr(module, "read") and not hasattr(module, "source") and not hasattr(module, "dataset"):
            raise UserError(f"{where} has a read of its own and neither COLUMNS nor INPUTS: say what a request holds in INPUTS.")
        return None
    if given is None:
        given = {column.name: column.spec() for column in columns if column.required and column.name not in not_sent}
    elif not given:
        raise UserError(f"{where}: INPUTS is empty: a request must hold something.")
    for name, spec in given.items():
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank is None or spec.shape.rank < 1 or spec.shape[0] is not None:
            raise UserError(f"{where}: INPUTS[{quoted(name)}] must be a tf.TensorSpec([None, ...], dtype); got {quoted(spec)}.")
        if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name == "self":
            raise UserError(
                f"{where}: the input {quoted(name)} cannot be the name of a served input, which must be a plain identifier. "
                f"Give the column another name, and keep the file's: header={name!r}."
            )
    return {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in given.items()}


def _check_objective(module: ModuleType, where: str) -> tuple[str, bool]:
    objective = _value(module, "OBJECTIVE", str, where) or "val_loss"
    maximize = _value(module, "MAXIMIZE", bool, where)
    if not objective.startswith("val_"):
        raise UserError(f"{where}: OBJECTIVE must be an evaluation's metric, such as val_loss or val_{objective}; got {quoted(objective)}.")
    if maximize is None:
        name = objective.removeprefix("val_")
        more, less = (any(name == word or name.endswith("_" + word) for word in words) for words in (MORE_IS_BETTER, LESS_IS_BETTER))
        if more == less:
            raise UserError(f"{where}: OBJECTIVE is {objective}; say by MAXIMIZE = True or False whether more of it is better.")
        maximize = more
    return objective, maximize


def _value(module: ModuleType, name: str, kind: Any, where: str) -> Any:
    value = getattr(module, name, None)
    if value is not None and (not isinstance(value, kind) or (kind is Sequence and isinstance(value, str))):
        wanted = {"str": "a text", "bool": "True or False", "Sequence": "a tuple", "Mapping": "a dict"}[kind.__name__]
        raise UserError(f"{where}: {name} must be {wanted}; got {_described(value)}.")
    return value


def _described(value: Any) -> str:
    return f"{type(value).__name__} {quoted(value)}"


def _nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return a message's hint at what a misspelt name stands for; `otherwise` where it is like none of those `known`."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"the nearest is {near[0]}" if near else otherwise


def _check_signature(function: Any, name: str, where: str) -> None:
    wanted = list(inspect.signature(FUNCTIONS[name]).parameters)[1:]
    if not callable(function):
        raise UserError(f"{where}: {name} must be a function {name}({', '.join(wanted)}); got {_described(function)}.")
    try:
        inspect.signature(function).bind(*wanted)
    except TypeError:
        taken = ", ".join(inspect.signature(function).parameters)
        raise UserError(f"{where}: {name} must take ({', '.join(wanted)}); it takes ({taken}).") from None


def _check_hyperparameters(module: ModuleType, hyperparameters: type) -> None:
    """Refuse hyperparameters that the runtime or the trainer's code reads and the dataclass lacks."""
    fields = {entry.name for entry in dataclasses.fields(hyperparameters)}
    where = os.path.relpath(inspect.getsourcefile(hyperparameters) or hyperparameters.__module__)
    if missing := [entry.name for entry in dataclasses.fields(CommonHyperparameters) if entry.name not in fields]:
        raise UserError(
            f"{where}: {hyperparameters.__name__} lacks {', '.join(missing)}. Inherit them: "
            f"class {hyperparameters.__name__}(CommonHyperparameters), from vertex_runtime.arguments."
        )
    known = fields | {name for name in dir(hyperparameters) if not name.startswith("__")}
    for path, tree in sources(module).values():
        for use in _uses_of_hp(tree):
            if use.attr not in known and not use.attr.startswith("__"):
                hint = _nearest(use.attr, sorted(fields), f"its fields are in {where}")
                line = f"{os.path.relpath(path)}, line {use.lineno}"
                raise UserError(f"{line}: {hyperparameters.__name__} has no field {use.attr!r}; {hint}. Mend the name, or add the field.")


def _uses_of_hp(tree: ast.Module) -> Iterator[ast.Attribute]:
    """Yield every `hp.…` inside a function that takes an `hp`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "hp" in {argument.arg for argument in node.args.args}:
            for use in ast.walk(node):
                if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == "hp":
                    yield use


def sources(module: ModuleType, *others: str) -> dict[str, tuple[str, ast.Module]]:
    """Return (path, syntax tree) of a trainer's module and of all that it imports from its own package or `others`, by module name."""
    packages = {module.__name__.rpartition(".")[0], *others}
    seen: dict[str, tuple[str, ast.Module]] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        with open(current.__file__ or "", encoding="utf-8") as file:
            tree = ast.parse(file.read())
        seen[current.__name__] = (current.__file__ or "", tree)
        for name in _imported(tree, current.__name__.rpartition(".")[0]):
            if name.rpartition(".")[0] in packages and name not in seen:
                with contextlib.suppress(ModuleNotFoundError):  # a function or a class, say
                    waiting.append(importlib.import_module(name))
    return seen


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the whole names of what a module of a package imports: modules, and what is taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def source_fingerprint(module: ModuleType) -> str:
    """Hash the code of a trainer's `model.py` and of everything it imports from its own package and the runtime.

    Comments and layout do not count.
    """
    dumped = sorted((name.rpartition(".")[2], ast.dump(tree)) for name, (_, tree) in sources(module, __package__).items())
    return hashlib.sha256(json.dumps(dumped).encode()).hexdigest()


def _package_name(module: ModuleType) -> str:
    first = module.__name__.partition(".")[0]
    return first if first != "trainer" else os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(module.__file__ or ""))))


def metric_is_mentioned(contract: Contract) -> bool:
    """Tell whether the objective's metric stands somewhere in the trainer's source: as a text, or as a class such as `AUC`."""
    name = contract.objective.removeprefix("val_")
    return name == "loss" or mentions(contract, name)


def mentions(contract: Contract, name: str) -> bool:
    """Tell whether a name stands somewhere in the trainer's source, as a text, a name or an attribute, however it is spelt."""
    nodes = [node for _, tree in sources(contract.module).values() for node in ast.walk(tree)]
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {node.id for node in nodes if isinstance(node, ast.Name)}
    return name.replace("_", "").lower() in {word.replace("_", "").lower() for word in words}


def check_metrics(contract: Contract, names: Sequence[str]) -> None:
    """See that the model has the objective's metric.

    Raises:
        UserError: it has not; the nearest that it has is named.
    """
    found = [f"val_{name}" for name in names]
    if contract.objective not in found:
        hint = _nearest(contract.objective, found, "none is like it")
        where = os.path.relpath(contract.module.__file__ or contract.name)
        raise UserError(
            f"{where}: OBJECTIVE is {quoted(contract.objective)}, and the model has {', '.join(found)}; {hint}. "
            "Mend it, or give it to compile(metrics=…)."
        )


def example_rows(contract: Contract) -> data.Chunk | None:
    """Return two made-up rows that the columns allow, to build a model on before any data is read; None without columns."""
    if not contract.columns or contract.given & {"read", "source", "dataset"}:
        return None
    chunk: dict[str, Any] = {}
    for column in contract.columns:
        if isinstance(column, Number):
            low, high = column.low, column.high
            value = low if low is not None else high if high is not None else 0.0
            chunk[column.name] = np.full(2, value, np.float32)
            continue
        values = (column.values if isinstance(column, Category) else ()) or ("a", "b")
        if column.pattern and "\\d{4}" in column.pattern:
            values = ("2011-01-28 20:42:59 UTC",) if re.fullmatch(column.pattern, "2011-01-28 20:42:59 UTC") else ("2011-01-28",)
        chunk[column.name] = data.objects([values[i % len(values)].encode() for i in range(2)])
    return chunk


# ------------------------------------------------------------------ defaults


@dataclass(frozen=True)
class Defaults(ModelModule):
    """The parts that a module leaves out, by what it says in values; those that are not here return None, as empty bodies do."""

    columns: Sequence[Column]
    labels: Sequence[str]
    weight: str | None
    objective: str
    maximize: bool

    def find(self, paths: Sequence[str], flag: str) -> list[str]:
        return data.find(paths, flag, self.columns, self.labels)

    def read(self, path: str, bad: data.BadRows, reading: Reading | None = None) -> Iterator[data.Chunk]:
        return data.read(path, self.columns, self.labels, bad, reading)

    def learn(self, chunks: Iterable[data.Chunk], hp: Any) -> Facts:
        return {}

    def preprocess(self, raw: Mapping[str, tf.Tensor], hp: Any, facts: Facts) -> Features:
        return next(iter(raw.values())) if len(raw) == 1 else dict(raw)

    def encode_labels(self, chunk: data.Chunk, facts: Facts) -> Any:
        several = len(self.labels) > 1
        found = {label: _encode(chunk[label], label, facts, several) for label in self.labels}
        return found if several else found[self.labels[0]]

    def weigh(self, chunk: data.Chunk, hp: Any, facts: Facts) -> np.ndarray | None:
        return None if self.weight is None else chunk[self.weight]

    def callbacks(self, hp: Any) -> list[keras.callbacks.Callback]:
        mode, chosen = ("max" if self.maximize else "min"), []
        if hp.early_stopping:
            chosen.append(keras.callbacks.EarlyStopping(self.objective, patience=hp.early_stopping, mode=mode, restore_best_weights=True))
        if hp.plateau:
            chosen.append(keras.callbacks.ReduceLROnPlateau(self.objective, factor=0.5, patience=hp.plateau, mode=mode))
        return chosen

    def outputs(self, predictions: Any, facts: Facts) -> dict[str, tf.Tensor]:
        return _as_they_are(predictions, facts, self.labels, {column.name: column for column in self.columns})

    def extra_files(self, facts: Facts) -> dict[str, str]:
        names = facts.get("class_names") if isinstance(facts, Mapping) else None
        several = {f"labels.{label}.txt": each for label, each in names.items()} if isinstance(names, Mapping) else {}
        texts = several if names is None or several else {"labels.txt": names}
        return {file: "".join(f"{name}\n" for name in each) for file, each in texts.items()}


def class_names(facts: Facts, label: str, several: bool) -> list[str]:
    """Return the classes of a label, as `learn` or the runtime noted them: `facts["class_names"]`, by label where there are several."""
    names = facts["class_names"]
    return [str(name) for name in (names[label] if several else names)]


def _encode(values: np.ndarray, label: str, facts: Facts, several: bool) -> np.ndarray:
    """Return numbers as they are, texts as int32 places among the label's classes.

    Raises:
        UnknownLabel: a label that the training rows do not have.
    """
    if values.dtype != object:
        return values
    names = class_names(facts, label, several)
    found, inverse = np.unique(values.astype(bytes), return_inverse=True)
    places = {name: place for place, name in enumerate(names)}
    texts = [value.decode("utf-8", "replace") for value in found]
    for text in texts:
        if text not in places:
            raise data.UnknownLabel(text)
    return np.array([places[text] for text in texts], np.int32)[inverse]


def _as_they_are(predictions: Any, facts: Facts, labels: Sequence[str], kinds: Mapping[str, Column]) -> dict[str, tf.Tensor]:
    if not isinstance(predictions, Mapping):
        if isinstance(predictions, (list, tuple)):
            predictions = {(labels[i] if len(labels) == len(predictions) else f"output_{i}"): p for i, p in enumerate(predictions)}
        else:
            name = labels[0] if len(labels) == 1 and isinstance(kinds.get(labels[0]), Number) else "predictions"
            predictions = {name: predictions}
    found: dict[str, tf.Tensor] = {}
    several = len(labels) > 1
    for name, values in predictions.items():
        known = isinstance(facts, Mapping) and "class_names" in facts and (not several or name in facts["class_names"])
        classes = class_names(facts, name, several) if known else []
        if classes and values.shape.rank == 2 and values.shape[-1] == len(classes):
            prefix = f"{name}_" if several else ""
            found[f"{prefix}label"] = tf.gather(tf.constant(classes), tf.argmax(values, -1))
            found[f"{prefix}scores"] = values
        else:
            found[name] = tf.squeeze(values, -1) if values.shape.rank == 2 and values.shape[-1] == 1 else values
    return found
