"""CSV files as Python's csv module and `float` read them: seeded mutations, files beyond a block, both policies, no difference."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vertex_runtime import data, formats
from vertex_runtime.columns import Category, Column, Date, Number, Text
from vertex_runtime.errors import UserError

TABLES = {
    "numbers": (Number("a", low=-1000, high=1000), Number("b", missing=0.5), Number("c", missing=math.nan)),
    "mixed": (Number("price", low=0.01, high=1e6), Date("day", missing="2000-01-01"), Category("kind", values=("x", "y é", "z")),
              Category("city", missing="?"), Text("key", required=False)),
    "texts": (Text("text"), Text("code", like=r"[a-c]\d+", missing="a0"), Category("label")),
    "one": (Number("x"),),
    "one text": (Text("text"),),
}  # fmt: skip
PIECES = [
    b"", b",", b'"', b'""', b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3\xa9",
    b"nan", b"inf", b"-inf", b"+1", b"1e5", b"1e400", b"1_000", b"0x10", b".5", b"5.", b"1e-400", b"3.5e38",
    "１２".encode(), "２０１１-01-28".encode(), b"NULL", b"N/A", b"true", b"2011-01-28", b"2011-01-28 20:42:59 UTC",
    b"2011-13-01", b"x", b"y \xc3\xa9", b'"x"', b'"x', b'x"', b'"a\nb"', b'"a""b"', b"a1", b"0.01", b"0.009999999",
    b"1000", b"1000.00001", b" 7 ", b"\x1c5", b"1e", b"--1", b"1,2", "\u00a05".encode(), b"infinity", b"-nan", b"'",
    b";", b"\\", b"\x1a",
]  # fmt: skip
NUL = "\U0010fffe"  # Python 3.10's csv module refuses NUL


def expected(content: bytes, columns: tuple[Column, ...]) -> tuple[list[list[object]], Counter[str], tuple[int, str] | None]:
    """Return (good rows, bad rows by reason, (line, reason) of the first bad row) by csv.reader, float and re alone.

    Raises:
        ValueError: the file as a whole is not of these columns.
    """
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="surrogateescape", newline="")
    if content.startswith(b"\xef\xbb\xbf"):
        text.read(1)
    csv.field_size_limit(1 << 30)
    reader = csv.reader(line.replace("\0", NUL) for line in text)
    names, header = None, False
    rows: list[list[object]] = []
    reasons: Counter[str] = Counter()
    first = None
    for cells in reader:
        if not cells:
            continue
        cells = [cell.replace(NUL, "\0") for cell in cells]
        if names is None:
            names, header = layout([cell.strip() for cell in cells], columns)
            if header:
                continue
        wanted = [column for column in columns if column.required]
        reason = f"has {len(cells)} columns, not {len(names)}" if len(cells) != len(names) else None
        row = []
        for column in wanted if reason is None else ():
            fault, value = judge(column, cells[names.index(column.name)])
            reason = reason or fault
            row.append(value)
        if reason is None:
            rows.append(row)
        else:
            reasons[reason] += 1
            first = first or (reader.line_num, reason)
    return rows, reasons, first


def layout(cells: list[str], columns: tuple[Column, ...]) -> tuple[list[str], bool]:
    known, required = [c.name for c in columns], [c.name for c in columns if c.required]
    if set(cells) & set(known):
        if set(required) - set(cells):
            raise ValueError
        return cells, True
    numbers = [i for i, column in enumerate(columns[: len(cells)]) if column.required and isinstance(column, Number)]
    if numbers and len(cells) >= len(required) and all(math.isnan(number(cells[i], "x")) for i in numbers):
        raise ValueError
    if not len(required) <= len(cells) <= len(known):
        raise ValueError
    return known[: len(cells)], False


def number(cell: str, for_nan: str = "") -> float:
    """Return the cell as a number, NaN where it is none; with `for_nan` a NaN counts as a number."""
    try:
        value = float(cell.encode("utf-8", "surrogateescape").decode())
    except ValueError:
        return math.nan
    return 0.0 if for_nan and math.isnan(value) else value


def judge(column: Column, cell: str) -> tuple[str | None, object]:
    if not cell:
        if column.missing is None:
            return column.must_be, None
        return None, np.float32(column.missing) if isinstance(column, Number) else str(column.missing).encode()
    if any("\udc80" <= letter <= "\udcff" for letter in cell):
        return f"{column.name} is not UTF-8", None
    if isinstance(column, Number):
        low, high = (-math.inf if column.low is None else column.low), (math.inf if column.high is None else column.high)
        with np.errstate(over="ignore"):
            value = np.float32(number(cell))
        return (None if np.isfinite(value) and np.float32(low) <= value <= np.float32(high) else column.must_be), value
    good = column.pattern is None or re.fullmatch(column.pattern, cell, re.ASCII)
    return (None if good else column.must_be), cell.encode()


def found(path: Path, columns: tuple[Column, ...], policy: str) -> tuple[list[list[object]], Counter[str], str | None]:
    """Return (rows, bad rows by reason, the error)."""
    bad, rows = data.BadRows(policy), []
    try:
        for batch in formats.record_batches(str(path), columns, (), bad):
            arrays = [formats.chunk(batch)[column.name] for column in columns if column.required]
            rows += [list(row) for row in zip(*arrays)]
    except UserError as error:
        return rows, bad.reasons, str(error)
    return rows, bad.reasons, None


def same(one: list[list[object]], other: list[list[object]]) -> bool:
    def plain(value: object) -> object:
        return value if isinstance(value, bytes) else np.float32(value).tobytes() if value == value else "nan"

    return len(one) == len(other) and all([plain(v) for v in a] == [plain(v) for v in b] for a, b in zip(one, other))


def compare(path: Path, content: bytes, columns: tuple[Column, ...]) -> str | None:
    """Read a file by both policies; return what differs from what is expected."""
    path.write_bytes(content)
    try:
        rows, reasons, first = expected(content, columns)
    except ValueError:
        errors = [found(path, columns, policy)[2] for policy in ("error", "skip")]
        return None if all(errors) else f"should be refused: {errors}"
    skipped = found(path, columns, "skip")
    if skipped[2] or not same(skipped[0], rows) or skipped[1] != reasons:
        return f"skip: {skipped[2]} {skipped[0][:5]} {skipped[1]}; expected {rows[:5]} {reasons}"
    strict = found(path, columns, "error")
    if first is None:
        return None if strict[2] is None and same(strict[0], rows) else f"error: {strict[2]} {strict[0][:5]}; expected {rows[:5]}"
    told = strict[2] is not None and strict[2].startswith(f"{path}, line {first[0]}: {first[1]}; got ")
    return None if told and "\n" not in strict[2] else f"error: {strict[2]}; expected line {first[0]}: {first[1]}"


def good_cell(column: Column, seed: random.Random) -> bytes:
    if isinstance(column, Number):
        return f"{seed.uniform(0.02, 900):.{seed.randrange(8)}f}".encode()
    if isinstance(column, Date):
        return b"2011-01-28"
    if isinstance(column, Category) and column.values:
        return seed.choice(column.values).encode()
    if column.pattern:
        return f"b{seed.randrange(100)}".encode()
    return seed.choice([b"word", b"two words", b'"a, b"', b'"line\nbreak"', b'"say ""so"""', "déjà".encode()])


def table(columns: tuple[Column, ...], rows: int, seed: random.Random) -> bytes:
    end = seed.choice([b"\n", b"\n", b"\r\n", b"\r"])
    lines = [b",".join(column.name.encode() for column in columns)] if seed.random() < 0.6 else []
    lines += [b",".join(good_cell(column, seed) for column in columns) for _ in range(rows)]
    return end.join(lines) + (end if seed.random() < 0.8 else b"")


def mutate(content: bytes, seed: random.Random, changes: int) -> bytes:
    for _ in range(changes):
        place = seed.randrange(len(content) + 1)
        if seed.random() < 0.5:  # a whole cell
            place = max(content.rfind(b",", 0, place), content.rfind(b"\n", 0, place)) + 1
            ends = [end for end in (content.find(b",", place), content.find(b"\n", place)) if end >= 0]
            content = content[:place] + seed.choice(PIECES) + content[min(ends, default=len(content)) :]
        else:
            content = content[:place] + seed.choice(PIECES) + content[place + seed.choice([0, 0, 1, 3]) :]
    return content


def readings(count: int, first: int, folder: Path) -> list[str]:
    """Read `count` mutated files by both policies; return what differs."""
    differences = []
    for number_of in range(first, first + count):
        seed = random.Random(number_of)
        columns = TABLES[seed.choice(list(TABLES))]
        content = mutate(table(columns, seed.randrange(1, 12), seed), seed, seed.choice([0, 1, 1, 2, 3, 6]))
        if difference := compare(folder / "f.csv", content, columns):
            differences.append(f"seed {number_of}: {content!r}: {difference}")
    return differences


def test_mutated_files_are_read_as_csv_and_float_read_them(tmp_path):
    assert not readings(150, 0, tmp_path)


@pytest.mark.slow
def test_ten_thousand_readings(tmp_path):
    assert not readings(5_000, 1_000, tmp_path)


def large(seed: random.Random, columns: tuple[Column, ...], size: int) -> bytes:
    some = table(columns, 400, random.Random(seed.random()))
    while b"\r" in some:
        some = table(columns, 400, random.Random(seed.random()))
    head, _, body = some.partition(b"\n")
    body = body if body.endswith(b"\n") else body + b"\n"
    return head + b"\n" + body * (size // len(body) + 1)


FAULTS = [b'"', b"\xff", b"x,y,z,u,v,w\n", b"\n\n\n", b'\n"', b"abc", b'""', b"1_0", b"\r", b'"\n']


@pytest.mark.parametrize("name", ["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("numbers", "texts"))])
@pytest.mark.parametrize("fault", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_faults_beyond_the_first_block(name, fault, tmp_path):
    seed = random.Random(f"{name} {fault}")
    content = large(seed, TABLES[name], int(4.3 * (1 << 20)))
    for _ in range(1 + fault):
        place = seed.randrange(int(4.1 * (1 << 20)), len(content))
        content = content[:place] + seed.choice(FAULTS) + content[place:]
    assert compare(tmp_path / "f.csv", content, TABLES[name]) is None


# ------------------------------------------------------------------ what once went wrong


KNOWN = {
    "a blank line before the header": ("numbers", b"\n\r\n\na,b,c\n1,2,3\n"),
    "a byte-order mark before a header": ("numbers", b"\xef\xbb\xbfa,b,c\n1,2,3\n"),
    "a byte-order mark before data": ("numbers", b"\xef\xbb\xbf1,2,3\n4,x,6\n"),
    "a byte-order mark, read by Python": ("numbers", b'\xef\xbb\xbf"a",b,c\n1,2,3\n4,5,"6\n'),
    "digits of other scripts in a date": ("mixed", "price,day,kind,city\n1,２０１１-01-28,x,y\n".encode()),
    "digits of other scripts in a number": ("numbers", "１２,2,3\n".encode()),
    "underscores in numbers": ("numbers", b"1_0,2,3\n1,2,x\n"),
    "spaces around numbers": ("numbers", b" 1 ,\t2,3 \n"),
    "a number in a quote": ("numbers", b'"1","",3\n'),
    "NaN in brackets": ("numbers", b"nan(1),2,3\n"),
    "too large for float32": ("numbers", b"1,3.5e38,3\n1,1e400,3\n"),
    "NUL": ("texts", b"a\0b,a1,x\0\n"),
    "a quote that is never closed": ("texts", b'one,a1,x\ntwo,a2,"y\nthree,a3,z\n'),
    "carriage returns alone": ("numbers", b"a,b,c\r1,2,3\r4,,6\r"),
    "a quoted name in the header": ("numbers", b'"a","b","c"\n1,2,3\n'),
    "a name twice in the header": ("numbers", b"a,b,c,b\n1,2,3,4\n"),
    "an odd row before a bad cell": ("numbers", b"1,2,3\n4,5\nx,5,6\n"),
    "a bad cell before an odd row": ("numbers", b"1,2,3\nx,5,6\n4,5\n"),
    "nothing but a header": ("numbers", b"a,b,c\n"),
    "nothing but blank lines": ("numbers", b"\n\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_known_differences(case, tmp_path):
    name, content = KNOWN[case]
    assert compare(tmp_path / "f.csv", content, TABLES[name]) is None


@pytest.mark.parametrize("size", [70_000, 5 << 20, pytest.param(16 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("header", [b"text\n", b""])
def test_a_large_first_cell(size, header, tmp_path):
    content = header + b'"' + b"many words, " * (size // 12) + b'"\nfew\n'
    assert compare(tmp_path / "f.csv", content, TABLES["one text"]) is None


def test_quoted_lines_across_blocks(tmp_path):
    row = b'"' + b"line\n" * 3000 + b'",b7,label\n'
    assert compare(tmp_path / "f.csv", b"text,code,label\n" + row * 600, TABLES["texts"]) is None
    assert compare(tmp_path / "f.csv", b"text,code,label\n" + row * 300 + b"few,c,x\n" + row * 300, TABLES["texts"]) is None
    columns = (Number("a", low=0), Text("note", required=False))
    row = b'1,"' + b"line\n" * 3000 + b'"\n'
    assert compare(tmp_path / "f.csv", b"a,note\n" + row * 600 + b"x,y\n", columns) is None
