"""Rows from a trainer's own source or dataset: what is wrong with them is one line that names the row and the remedy."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vertex_runtime.data import BadRows
from vertex_runtime.errors import UserError


def source_of(**functions: Callable[..., Any]) -> Any:
    """Return what the runtime makes of a module with such a `source` or `dataset`, whose label is `y`."""
    from vertex_runtime.sources import source_of

    contract = SimpleNamespace(given=set(functions), labels=("y",), weight=None, columns=(), module=ModuleType("made.model"), **functions)
    return source_of(contract, [], None, True, BadRows())


class Rows:
    """100 rows, of which number 50 is another."""

    def __init__(self, odd: Callable[[dict[str, Any]], Any] = lambda row: row):
        self.odd = odd

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> Any:
        row = {"x": np.float32(i), "t": f"text {i}", "y": float(i)}
        return self.odd(row) if i == 50 else row


@pytest.mark.parametrize(
    "odd, said",
    [
        (lambda row: {"x": row["x"], "y": 1.0}, "row 50 of source lacks 't'; it has x, y. Give all rows the same names"),
        (lambda row: (1, 2), "must be a dict of values by name; got tuple."),
        (lambda row: row | {"x": None}, "differ in the type of 'x': float32, NoneType. Give NaN"),
        (lambda row: row | {"t": 3}, "differ in the type of 't': str, int"),
        (lambda row: row | {"x": np.zeros(2)}, r"differ in the shape of 'x': \(\), \(2,\)"),
    ],
)
def test_a_row_unlike_the_others_is_named(odd, said):
    source = source_of(source=lambda files, hp: Rows(odd))
    with pytest.raises(UserError, match=said):
        list(source.chunks())


@pytest.mark.parametrize("value", [
    datetime.date(2020, 1, 1), np.datetime64("2020-01-01"), decimal.Decimal("1.5"), 2**70, {"a": 1}, [1.0, None], [[1.0], [1.0, 2.0]],
])  # fmt: skip
def test_what_is_no_tensor_is_refused(value):
    source = source_of(source=lambda files, hp: [{"x": value, "y": 1.0}] * 3)
    with pytest.raises(UserError, match=r"source: 'x' holds .* no number or text, and no dense array of them. Convert it in source"):
        list(source.chunks())


@pytest.mark.parametrize("value", [["a", "é"], np.array(["a", "é"]), np.array([b"a", "é".encode()])])
def test_arrays_of_texts_are_texts(value):
    (chunk,) = source_of(source=lambda files, hp: [{"x": value, "y": 1.0}] * 3).chunks()
    assert chunk["x"].dtype == object and chunk["x"].tolist() == [[b"a", "é".encode()]] * 3


@pytest.mark.parametrize(
    "first, later, kind",
    [(1, 1.5, None), (True, 3, None), (np.int8(1), 1000, None), (1, float("nan"), None), ("a", 1.0, None), (1.0, "a", None),
     (1.0, 1j, None), (1, 2**40, "int64"), (1.0, 2, "float32"), (np.float32(1), np.float64(0.1), "float32"), (np.int8(1), 7, "int8"),
     (False, 1, "bool")],
)  # fmt: skip
def test_all_rows_have_the_type_of_the_first(first, later, kind):
    """Chunks are looked at one by one, and a value must not be cut to what those before it were."""
    rows = [{"x": first, "y": 1.0}] * 1500 + [{"x": later, "y": 1.0}] * 10
    source = source_of(source=lambda files, hp: rows)
    source.take(range(10))
    if kind is None:
        with pytest.raises(UserError, match="row 1500 of source: 'x' is .* the rows before hold .*. Give all rows one type"):
            source.take(range(1500, 1510))
    else:
        assert source.take(range(1500, 1510))["x"].tolist() == [np.dtype(kind).type(later)] * 10
        assert source.take(range(1500, 1510))["x"].dtype == kind


def test_whole_numbers_beside_floats_are_floats():
    (chunk,) = source_of(source=lambda files, hp: [{"x": 1, "y": 1.0}, {"x": 1.5, "y": 1}]).chunks()
    assert chunk["x"].tolist() == [1.0, 1.5] and chunk["x"].dtype == chunk["y"].dtype == np.float32


def test_rows_without_the_label_are_refused():
    with pytest.raises(UserError, match="row 0 of source lacks 'y'; it has x"):
        next(source_of(source=lambda files, hp: [{"x": 1.0}]).chunks())
    (chunk,) = source_of(source=lambda files, hp: Rows(lambda row: row | {"more": 1})).chunks()
    assert sorted(chunk) == ["t", "x", "y"]


def test_a_name_that_no_request_can_have_is_refused():
    from vertex_runtime.sources import with_inferred_inputs

    (chunk,) = source_of(source=lambda files, hp: [{"a b": 1.0, "y": 1.0}]).chunks()
    with pytest.raises(UserError, match="'a b' cannot be the name of a served input.*Rename it"):
        with_inferred_inputs(SimpleNamespace(inputs=None, labels=("y",), weight=None), chunk)


def numbers(count: int, features: Callable[[Any], Any], label: Callable[[Any], Any] = lambda i: i) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.range(count).map(lambda i: (features(i), label(i)))


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda: numbers(9, lambda i: {"a": {"b": i}}), "features must be a dense tensor or a dict of dense tensors; got .*'b'.*by map"),
        (lambda: numbers(9, lambda i: (i, i)), "features must be a dense tensor or a dict"),
        (lambda: numbers(9, lambda i: i, lambda i: (i, i)), "labels must be a dense tensor or a dict"),
        (lambda: numbers(9, lambda i: {"_label": i}), "features cannot be called _label. Rename it"),
        (lambda: numbers(9, lambda i: i).repeat(), r"has no end.*without repeat\(\)"),
        (lambda: numbers(0, lambda i: i), "has no examples"),
    ],
)
def test_a_dataset_that_is_none_of_single_examples_is_refused(made, said):
    with pytest.raises(UserError, match=said):
        list(source_of(dataset=lambda files, hp, epoch: made()).chunks())


@pytest.mark.parametrize("later", [7, 30])
def test_each_epoch_of_a_dataset_has_as_many_examples(later):
    from vertex_runtime.rows import DatasetRows, Share

    source = source_of(dataset=lambda files, hp, epoch: numbers(later if epoch else 20, lambda i: i))
    rows = DatasetRows(source, lambda chunk, training: chunk)
    feed = rows.feed(4, 0, 0, Share())
    with pytest.raises(UserError, match=f"returned {later} examples in epoch 1, and 20 in epoch 0. Return as many for each"):
        for _ in range(20):
            next(feed)
