"""docs/measured.md says what was measured, and README says the same."""

from __future__ import annotations

import ast
import importlib
import json
import re
import statistics
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import measured  # noqa: E402
import processes  # noqa: E402


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads(measured.FIGURES.read_text())


def test_the_pages_say_what_was_measured(figures):
    for path, text in measured.pages(figures).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python benchmarks/measured.py --render"


def test_a_ratio_is_of_the_baselines_best_and_shows_its_range(figures):
    arms = {f"{batch} {name}": {"examples_per_second": [100.0, 50.0]} for batch in measured.BATCHES for name in ("baseline", "lab")}
    arms["32 lab"] = {"examples_per_second": [1000.0, 2000.0]}
    line = next(line for line in measured.render({**figures, "steady": arms}).splitlines() if line.startswith("| 32 |"))
    assert line == "| 32 | lab | 75 [50..100] | 1,500 [1,000..2,000] | **15** | 25 [10..40] |"


def test_every_figure_is_of_five_runs_in_turn(figures):
    assert {len(arm["examples_per_second"]) for arm in figures["steady"].values()} == {5}
    assert {len(seconds) for seconds in figures["epoch"].values()} == {5}


def test_the_readme_quotes_the_same_figures(figures):
    found = re.search(r"([\d, and]+) times as fast .*? at batch\s+([\d, and]+)", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, "README says how fast it trains beside the baseline"
    quoted = dict(zip(_numbers(found[2]), _numbers(found[1])))
    assert quoted == {batch: _ratio(figures, batch) for batch in measured.BATCHES}
    seconds = re.search(r"one epoch takes ([\d.]+) s .*? not ([\d.]+) s", (ROOT / "README.md").read_text(), re.DOTALL)
    assert seconds and float(seconds[1]) == round(statistics.median(figures["epoch"]["lab"]), 1)
    assert float(seconds[2]) == round(min(figures["epoch"]["baseline"]))


def _numbers(text: str) -> list[int]:
    return [int(word.replace(",", "")) for word in re.findall(r"\d[\d,]*\d|\d", text)]


def _ratio(figures: dict, batch: int) -> int:
    base, ours = (figures["steady"][f"{batch} {name}"]["examples_per_second"] for name in ("baseline", "lab"))
    return round(statistics.median(ours) / max(base))


def test_a_page_without_a_place_for_them_is_refused(figures):
    with pytest.raises(ValueError, match="measured: begin"):
        measured.page("# Measured\n", "")


def test_what_benchmarks_and_pictures_import_of_the_project_is_there():
    """Nobody runs them often; what they take moves."""
    missing = []
    for path in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs" / "pictures").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(("vertex_", "taxifare")):
                module = importlib.import_module(node.module)
                submodules = {found.stem for folder in getattr(module, "__path__", ()) for found in (ROOT / folder).iterdir()}
                known = {*dir(module), *submodules}
                missing += [f"{path.name}: {node.module}.{each.name}" for each in node.names if each.name not in known]
    assert not missing


@pytest.mark.parametrize("given, code", [(True, 1), (False, 0)])
def test_without_the_real_data_there_is_nothing_to_measure(given, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHARED_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        processes.real_files(tmp_path if given else None, "taxifare/taxi-train.csv")
    said, path = capsys.readouterr(), tmp_path / "taxifare" / "taxi-train.csv"
    assert ended.value.code == code
    assert (said.err if given else said.out) == f"skipped: {path} does not exist. Give the folder with --data.\n"
