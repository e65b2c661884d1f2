"""A trainer's own hyperparameters: every type that a field may have, its limits, and what is wrong with a field."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vertex_runtime.arguments import CommonHyperparameters, option, parse
from vertex_runtime.errors import UserError


@dataclass(frozen=True)
class Hyperparameters(CommonHyperparameters):
    augment: bool = option(True, "whether to vary training images")
    units: tuple[int, ...] = option([64, 32], "units of the layers", minimum=4, maximum=512)
    rates: tuple[float, ...] = option((0.1, 0.2), "dropout rates", minimum=0)
    columns: tuple[str, ...] = option(("a", "b"), "columns to use")
    kernel: int = option(3, "size of the kernel", choices=(1, 3, 5))
    plain: float = 0.5


def parsed(*words: str) -> Hyperparameters:
    return parse(Hyperparameters, words, "")[0]


def test_each_type_has_its_default_and_its_flag():
    default = parsed()
    assert (default.augment, default.units, default.rates, default.columns) == (True, (64, 32), (0.1, 0.2), ("a", "b"))
    assert default.plain == 0.5
    given = parsed("--augment=false", "--units", "128 64", "--rates=0,0.5", "--columns", "c", "d e", "--kernel=5", "--plain=1")
    assert (given.augment, given.units, given.rates, given.columns) == (False, (128, 64), (0.0, 0.5), ("c", "d e"))
    assert given.kernel == 5 and given.plain == 1.0
    assert parsed("--augment").augment is parsed("--augment=True").augment is True


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--augment=maybe", "--augment: needs true or false; got 'maybe'"),
        ("--units=64 2", "--units: must be at least 4; got '64 2'"),
        ("--units=1024", "--units: must be at most 512; got '1024'"),
        ("--rates=0.1 -1", "--rates: must be at least 0; got '0.1 -1'"),
        ("--rates=0.1 nan", "--rates: needs finite numbers such as \"0.1 0.2\"; got '0.1 nan'"),
        ("--rates=", "--rates: needs one or more numbers"),
        ("--kernel=2", "--kernel: must be one of 1, 3, 5; got '2'"),
    ],
)
def test_a_value_beyond_a_fields_limits_is_refused(flag, message):
    with pytest.raises(UserError) as caught:
        parsed(flag)
    assert message in str(caught.value)


ODD = "from __future__ import annotations\nfrom dataclasses import dataclass\n"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("rate: complex = 1j", "the type of rate must be int, float, str, bool, or a tuple such as tuple[int, ...]; got 'complex'"),
        ("rate: flaot = 0.1", "name 'flaot' is not defined. Correct the type of that field"),
        ("profile: str = ''", "profile is a flag of every trainer already. Give this field another name"),
        ("rate: float", "rate has no default value. Give it one, such as rate: … = option("),
    ],
)
def test_a_field_that_cannot_be_a_flag_is_one_line_with_its_file(field, message, tmp_path: Path, monkeypatch):
    # Without CommonHyperparameters, since a field without a default may not follow one that has one.
    assert message in refused(f"{ODD}@dataclass\nclass Hyperparameters:\n    {field}\n", tmp_path, monkeypatch)


def test_a_class_that_is_no_dataclass_is_one_line_with_its_file(tmp_path, monkeypatch):
    text = (
        "from vertex_runtime.arguments import CommonHyperparameters, option\n"
        "class Hyperparameters(CommonHyperparameters):\n    lr: float = option(0.1, 'learning rate')\n"
    )
    assert "Hyperparameters is no dataclass. Write @dataclass(frozen=True) above it" in refused(text, tmp_path, monkeypatch)


def refused(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the line with which hyperparameters are refused; it names their file."""
    (folder / "odd_hyperparameters.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "odd_hyperparameters", raising=False)
    with pytest.raises(UserError) as caught:
        parse(importlib.import_module("odd_hyperparameters").Hyperparameters, [], "")
    assert "odd_hyperparameters.py: " in str(caught.value)
    return str(caught.value)
