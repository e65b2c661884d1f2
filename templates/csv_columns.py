"""Find out what the columns of a CSV file hold (numbers, dates, categories or texts) by looking at every cell."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from json.encoder import encode_basestring
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pacsv

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the runtime's own rules for numbers and dates

from vertex_runtime.cells import parse_numbers  # noqa: E402
from vertex_runtime.columns import Date, is_input_name  # noqa: E402
from vertex_runtime.errors import UserError  # noqa: E402

MOST_CATEGORIES = 1000
ROWS_PER_CATEGORY = 5  # on average, at least; a column with fewer holds names or free text
LEAST_ROWS = 20
MOST_SAMPLE_ROWS = 2000
LARGEST = 1e37  # well within float32
LABEL_NAMES = ("label", "target", "y")
KEY_NAME = re.compile(r"(?i:(.*[_ .-])?(id|key|uuid|guid|index))|.*[a-z](Id|ID|Key)")


@dataclass(frozen=True)
class Found:
    """What a column holds, for `COLUMNS` of a model.py."""

    name: str
    kind: str  # Number, Date, Category or Text
    missing: bool = False
    required: bool = True
    distinct: int = 0
    low: float = 0.0
    high: float = 0.0
    time: bool = False
    length: float = 0.0  # mean characters of its texts
    note: str = ""
    header: str = ""  # its name in the file, if requests cannot use that name

    def source(self) -> str:
        """Return the column's line in `COLUMNS`."""
        words = [repr_of(self.name)]
        if self.kind == "Number":
            words += [f"low={number_of(self.low)}", f"high={number_of(self.high)}"] + ["missing=math.nan"] * self.missing
        elif not self.required:
            words.append("required=False")
        else:
            words += ["time=True"] * self.time + ['missing=""'] * self.missing
        words += [f"header={repr_of(self.header)}"] * bool(self.header)
        line = f"    {self.kind}({', '.join(words)}),"
        return line if len(line) <= 140 else f"    {self.kind}(\n{one_a_line(words, 8)}    ),"


def one_a_line(items: Sequence[str], indent: int) -> str:
    """Return items of Python source with a line for each, the longest of which the linter is told to pass."""
    lines = (f"{' ' * indent}{item}," for item in items)
    return "".join(f"{line}{'  # noqa: E501' if len(line) > 140 else ''}\n" for line in lines)


def repr_of(value: Any) -> str:
    """Return a text or a number as a Python literal, spelt as a formatter would."""
    if not isinstance(value, str):
        return repr(value).replace("e+", "e")
    return repr(value) if value.count('"') > value.count("'") else encode_basestring(value)


def number_of(value: float) -> str:
    """Return a limit as a person would write it."""
    return f"{int(value):_}" if value == int(value) and abs(value) < 1e12 else repr_of(value)


@dataclass(frozen=True)
class Table:
    """A CSV file's cells as text, by column in the file's order."""

    path: str
    cells: dict[str, Any]  # Arrow arrays
    rows: int


def read(path: str) -> Table:
    """Read a CSV file with a header.

    Raises:
        UserError: there is no such file, it is not CSV with a header, or it has too few rows.
    """
    names, before = _header(path)
    try:
        table = pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(column_names=names, skip_rows_after_names=before),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(column_types={name: pa.string() for name in names}, null_values=[]),
        )
    except (pa.ArrowInvalid, OSError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: {problem}. Correct the file: UTF-8, commas, the same number of cells in each row.") from None
    if table.num_rows < LEAST_ROWS:
        raise UserError(f"{path} has {table.num_rows} rows below its header: at least {LEAST_ROWS} are needed.")
    cells = {name: table.column(name).combine_chunks() for name in names}
    _check_header(path, names, cells)
    return Table(path, cells, table.num_rows)


def _header(path: str) -> tuple[list[str], int]:
    """Return the columns' names, and how many rows there are up to them: blank lines may stand above."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path} is {'a folder' if file.is_dir() else 'not there'}: give a CSV file with a header.")
    with open(file, "rb") as opened:
        head = opened.read(1 << 20)
    if not head.strip():
        raise UserError(f"{path} is empty: give a CSV file with a header and some rows.")
    try:
        lines = io.StringIO(head[: head.rindex(b"\n") + 1 if b"\n" in head else None].decode("utf-8-sig"), newline="")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: convert it, such as with iconv -f LATIN1 -t UTF-8.") from None
    before, first = next(((place, row) for place, row in enumerate(csv.reader(lines), 1) if row), (1, []))
    names = [cell.strip() for cell in first]
    if len(names) < 2:
        other = next((sign for sign in (";", "\t", "|") if names and sign in names[0]), None)
        hint = f"its cells seem to be separated by {other!r}: write commas" if other else "a label and one to predict it from are needed"
        raise UserError(f"{path} has one column: {hint}.")
    dates = Date("x").pattern or ""
    numbers = _are_numbers(parse_numbers(pa.array(names, pa.string())))
    odd = next((name for name, number in zip(names, numbers) if not name or number or re.fullmatch(dates, name, re.ASCII)), None)
    if odd is not None:
        raise UserError(f"{path} lacks a header: its first line must name the columns; got {odd[:100]!r} in it.")
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}, line 1: two columns are named {doubled[0][:100]!r}; mend the header, or put one above the data.")
    return names, before


def _check_header(path: str, names: list[str], cells: dict[str, Any]) -> None:
    """Refuse a first line that is data: a column's name that is also one of its values."""
    for name in names:
        if pc.sum(pc.equal(cells[name], pa.scalar(name))).as_py():
            raise UserError(f"{path} lacks a header: {name[:100]!r} of its first line stands below it, too. Put the columns' names first.")


def look(name: str, cells: Any) -> Found:
    """Return what a column holds, judged by all its cells."""
    given = cells.filter(pc.greater(pc.binary_length(cells), 0))
    missing, distinct = len(given) < len(cells), len(pc.unique(given))
    if not len(given):
        return Found(name, "Text", True, required=False, note="empty")
    numbers = parse_numbers(given)
    are_numbers = _are_numbers(numbers)
    if all(are_numbers) and pc.max(pc.abs(numbers)).as_py() < LARGEST:
        if KEY_NAME.fullmatch(name) and distinct == len(given):
            return Found(name, "Text", missing, required=False, distinct=distinct, note="a key, not used")
        return Found(name, "Number", missing, True, distinct, *limits(*pc.min_max(numbers).as_py().values()))
    for time in (True, False):
        if pc.all(pc.match_substring_regex(given, f"^(?:{Date('x', time=time).pattern})$")).as_py():
            return Found(name, "Date", missing, time=time, distinct=distinct)
    length = float(pc.mean(pc.utf8_length(given)).as_py())
    note = _nearly_numbers(Counter(text for text, number in zip(given.to_pylist(), are_numbers) if not number), len(given))
    if distinct <= MOST_CATEGORIES and distinct * ROWS_PER_CATEGORY <= len(given):
        return Found(name, "Category", missing, distinct=distinct, length=length, note=note)
    return Found(name, "Text", missing, required=False, distinct=distinct, length=length, note=note or "not used")


def _are_numbers(values: Any) -> list[bool]:
    """Return which of the values that `parse_numbers` found are finite numbers."""
    return pc.is_finite(values).fill_null(False).to_pylist()


def _nearly_numbers(words: Counter[str], cells: int) -> str:
    """Return a note on the few words that keep a column of so many cells from being numbers; "" if there are many, or none."""
    if not 0 < len(words) <= 3 or words.total() > cells / 2:
        return ""
    listed = ", ".join(repr(word) for word in words)
    return f"numbers but for {listed} in {words.total()} rows: leave such cells empty to have a Number"


def limits(low: float, high: float) -> tuple[float, float]:
    """Return round limits: the values' range, with its width added on both sides, but without a sign that no value has."""
    span = high - low or max(1.0, abs(low))
    step = 10.0 ** math.floor(math.log10(span))
    lower, upper = math.floor((low - span) / step) * step, math.ceil((high + span) / step) * step
    lower, upper = (0.0 if low >= 0 > lower else lower), (0.0 if high <= 0 < upper else upper)
    return float(f"{lower:.10g}"), float(f"{upper:.10g}")


@dataclass(frozen=True)
class Choice:
    """The columns of a trainer, the one that it predicts and, if it reads texts, the one with the texts."""

    columns: list[Found]  # in the file's order
    label: Found
    text: Found | None = None

    @property
    def is_regression(self) -> bool:
        return self.label.kind == "Number"


def choose(table: Table, kind: str, label: str | None) -> Choice:
    """Choose the label and decide what each column holds.

    Raises:
        UserError: there is no such label, it cannot be predicted, or no other column can be used to predict it.
    """
    columns = [look(name, cells) for name, cells in table.cells.items()]
    text = None
    if kind == "text":
        texts = [found for found in columns if found.kind in ("Text", "Category") and found.name != label and found.note != "empty"]
        text = max((found for found in texts if found.name.lower() not in LABEL_NAMES), key=lambda found: found.length, default=None)
        if text is None:
            raise UserError(f"{table.path} has no column of texts to read: use --kind=tabular for numbers, dates and categories.")
    name = _label(table, label, columns, text)
    found = _as_label(table, next(found for found in columns if found.name == name), kind)
    chosen = []
    for column in columns:
        if column.name == name:
            column = found
        elif text and column.name != text.name:
            column = Found(column.name, "Text", required=False, note="not used")
        elif text:
            column = text = Found(column.name, "Text", column.missing, distinct=column.distinct, length=column.length)
        chosen.append(column)
    if not [column for column in chosen if column.required and column.name != name]:
        raise UserError(f"{table.path}: nothing to predict {name[:100]!r} by: add a column of numbers, dates or categories.")
    headers = _headers(chosen, name)
    plain = {header: name for name, header in headers.items()}
    chosen = [replace(column, name=plain[column.name], header=column.name) if column.name in plain else column for column in chosen]
    return Choice(chosen, found, text and replace(text, name=plain.get(text.name, text.name)))


def _headers(columns: Sequence[Found], label: str) -> dict[str, str]:
    """Return {plain name: own name} for the inputs whose own names TensorFlow's signatures do not accept."""
    taken, found = {column.name for column in columns}, {}
    for column in columns:
        own = column.name
        if not column.required or own == label or is_input_name(own):
            continue
        ascii_only = unicodedata.normalize("NFKD", own).encode("ascii", "ignore").decode()
        plain = re.sub("[^A-Za-z0-9]+", "_", ascii_only).strip("_")
        plain = plain if plain[:1].isalpha() else f"column_{plain}".strip("_")
        plain += "_" * (not is_input_name(plain))
        number = 1
        while (name := plain if number == 1 else f"{plain}_{number}") in taken:
            number += 1
        taken.add(name)
        found[name] = own
    return found


def _label(table: Table, label: str | None, columns: list[Found], text: Found | None) -> str:
    names = list(table.cells)
    if label is None:
        named = [name for wanted in LABEL_NAMES for name in names if name.lower() == wanted]
        # Files of texts often have keys, too, so a column of classes is more likely to be the label than the last column.
        classes = [found.name for found in columns if text and found.kind == "Category" and found.name != text.name]
        return (named or classes[-1:] or [name for name in names if text is None or name != text.name][-1:])[0]
    if label not in names:
        near = difflib.get_close_matches(label, names, 1, 0.4)
        hint = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(names)[:200]}"
        raise UserError(f"--label: {table.path} has no column {label[:100]!r}; {hint}.")
    return label


def _as_label(table: Table, found: Found, kind: str) -> Found:
    """Return the label's column: a number if it has more than two values, else classes."""
    where = f"{table.path}: {found.name!r} cannot be predicted"
    if found.distinct < 2:
        raise UserError(f"{where}: it has {'one value' if found.distinct else 'no value'} only. Name another column: --label.")
    if found.kind == "Date":
        raise UserError(f"{where}: it holds dates. Name another column: --label.")
    if found.kind == "Number" and found.distinct > 2 and kind == "tabular":
        return Found(found.name, "Number", False, True, found.distinct, found.low, found.high)
    if found.distinct > MOST_CATEGORIES or 2 * found.distinct > table.rows:
        raise UserError(f"{where}: {found.distinct} different texts in {table.rows} rows are too many classes. Name another: --label.")
    return Found(found.name, "Category", distinct=found.distinct)


def split(table: Table, choice: Choice, seed: int = 0) -> tuple[list[list[str]], list[list[str]], int]:
    """Draw up to 2,000 rows and split them.

    Returns:
        The rows to train on, those to evaluate on (a fifth of each class), and how many rows of the file lack a label.

    Raises:
        UserError: too few rows have a label, or no class has five rows.
    """
    labels = table.cells[choice.label.name].to_pylist()
    usable = [place for place, label in enumerate(labels) if label]
    if len(usable) < LEAST_ROWS:
        raise UserError(f"{table.path}: {choice.label.name[:100]!r} is given in {len(usable)} rows: needed are {LEAST_ROWS} at least.")
    rng = Random(seed)
    drawn = sorted(rng.sample(usable, min(MOST_SAMPLE_ROWS, len(usable))))
    groups: dict[str, list[int]] = {}
    for place in drawn:
        groups.setdefault("" if choice.is_regression else labels[place], []).append(place)
    valid: set[int] = set()
    for group in groups.values():  # a class with fewer than five rows is only trained on
        valid.update(rng.sample(group, len(group) // 5))
    if not valid:
        raise UserError(f"{table.path}: no class of {choice.label.name[:100]!r} has five rows, none to evaluate on. Add rows.")
    columns = [cells.take(drawn).to_pylist() for cells in table.cells.values()]
    rows = [list(row) for row in zip(*columns)]
    train = [row for place, row in zip(drawn, rows) if place not in valid]
    return train, [row for place, row in zip(drawn, rows) if place in valid], table.rows - len(usable)


def instance(choice: Choice, names: list[str], row: list[str]) -> dict[str, Any]:
    """Return a row as a request, without label and unused columns."""
    found: dict[str, Any] = {}
    for column, cell in zip(choice.columns, row):
        if column.name != choice.label.name and column.required:
            found[column.name] = (float(cell) if cell else None) if column.kind == "Number" else cell
    return found
