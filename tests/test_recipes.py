"""Every `model.py` of docs/recipes.md trains as it stands on the page, and its exported model answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import ROOT
from test_any_model import write_png, write_trainer

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RECIPES = {title: code for title, code in SECTIONS if "def build_model" in code}
HYPERPARAMETERS = dict(SECTIONS)["A hyperparameter"]


def write_csv(path: Path, header: str, row: Callable[[np.random.Generator], str], count: int) -> None:
    random = np.random.default_rng(len(path.name))
    path.write_text("\n".join([header, *(row(random) for _ in range(count))]) + "\n", encoding="utf-8")


def flat(random: np.random.Generator) -> str:
    rooms = random.integers(1, 8)
    return f"{rooms},{rooms * 25 + random.integers(0, 20)},{rooms * 1000}"


def customer(random: np.random.Generator) -> str:
    age, visits = random.integers(18, 90), random.integers(0, 9)
    spend = "" if random.random() < 0.2 else f"{random.random() * 100:.2f}"
    plan = random.choice(["basic", "plus", ""])
    joined = f"20{random.integers(10, 25)}-0{random.integers(1, 10)}-15"
    return f"{age},{spend},{visits if visits else ''},{plan},{joined},{'yes' if age > 50 else 'no'}"


def message(random: np.random.Generator) -> str:
    topic, words = (("food", "bread cheese soup"), ("sport", "ball goal race"))[random.integers(0, 2)]
    return f"{' '.join(random.choice(words.split(), 5))},{topic}"


def parcel(random: np.random.Generator) -> str:
    distance, weight = random.random() * 2000, random.random() * 20
    return f"{distance:.1f},{weight:.2f},{random.random() + 0.5:.2f},{'yes' if distance > 900 else 'no'},{distance / 100:.2f}"


def point(random: np.random.Generator) -> str:
    x, y = random.normal(size=2)
    return f"{x:.3f},{y:.3f},{int(x * x + y * y < 1)}"


def numbers(random: np.random.Generator) -> str:
    a, b, c = random.normal(size=3)
    return f"{a:.3f},{b:.3f},{c:.3f},{a - b:.3f}"


TABLES = {
    "The smallest": ("rooms,area,price", flat),
    "Mixed columns": ("age,spend,visits,plan,joined,cancelled", customer),
    "Text": ("text,topic", message),
    "Two labels": ("distance,weight_kg,importance,late,hours", parcel),
    "Your own tf.data pipeline": ("x,y,inside", point),
    "A custom training step": ("a,b,c,target", numbers),
}  # fmt: skip
REQUESTS = {  # and the names in the answer
    "The smallest": ({"rooms": 3, "area": 71}, set()),
    "Mixed columns": (
        {"age": 30, "spend": None, "visits": None, "plan": None, "joined": "2019-05-01"},
        {"label", "scores"},
    ),
    "Text": ({"text": "a goal in the last race"}, {"label", "scores"}),
    "Two labels": ({"distance": 100, "weight_kg": 2}, {"late_label", "late_scores", "hours"}),
    "A custom training step": ({"a": 1, "b": 2, "c": 3}, set()),
}


def write_data(folder: Path, title: str) -> tuple[Path, Path]:
    """Write training and evaluation data for a recipe; return both paths."""
    if title in TABLES:
        found = folder / "train.csv", folder / "valid.csv"
        for path, count in zip(found, (300, 60)):
            write_csv(path, *TABLES[title], count)
    elif title == "Any source of rows":
        found = folder / "train.npz", folder / "valid.npz"
        for path, count in zip(found, (300, 60)):
            random = np.random.default_rng(count)
            digits = random.integers(0, 10, count)
            np.savez(path, pixels=(random.random((count, 8, 8)) + digits[:, None, None]).astype(np.float32), digits=digits)
    else:  # pictures
        found = folder / "train", folder / "valid"
        for path, count in zip(found, (40, 16)):
            for i in range(count):
                label = ("dark", "light")[i % 2]
                pixels = np.random.default_rng(i).integers(0, 120, (32, 36, 3)) + 100 * (i % 2)
                write_png(path / label / f"{i}.png", pixels.astype(np.uint8))
    return found


def test_every_recipe_has_data_here():
    assert len(RECIPES) == 9
    assert set(TABLES) < set(RECIPES) and set(REQUESTS) < set(RECIPES)


@pytest.mark.parametrize("title", [list(RECIPES)[0], *(pytest.param(title, marks=pytest.mark.slow) for title in list(RECIPES)[1:])])
def test_a_recipe_trains_and_its_model_answers(title, tmp_path, run_trainer):
    write_trainer(tmp_path, "mine", RECIPES[title])
    (tmp_path / "mine" / "trainer" / "hyperparameters.py").write_text(HYPERPARAMETERS)
    training, evaluation = write_data(tmp_path, title)
    flags = [f"--train_data_path={training}", f"--eval_data_path={evaluation}", "--output_dir=out", "--epochs=3", "--num_evals=2"]
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = run_trainer("mine", *flags, "--batch_size=20", env=env, cwd=tmp_path)
    assert (
        f"served and trained predictions agree on {json.loads((tmp_path / 'out/metrics.json').read_text())['skew_gate']['rows']} rows"
        in (done.stdout)
    )
    if title in REQUESTS:
        request, names = REQUESTS[title]
        asked = subprocess.run(
            [forked.interpreter(), "-m", "vertex_runtime.predict", "out/model"],
            env={**os.environ, **env}, cwd=tmp_path, input=json.dumps(request), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        answer = json.loads(asked.stdout)
        assert set(answer) == names if names else isinstance(answer, float)  # one output answers with its value
