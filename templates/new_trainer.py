"""Write a trainer of your own: `scripts/new_trainer NAME --kind=tabular|image|text [--from CSV] [--label COLUMN]`.

The files come from the templates beside this one, in which `<<NAME>>` stands for a value. TensorFlow is not needed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import keyword
import os
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import csv_columns  # it also lets Python find the runtime
from csv_columns import one_a_line, repr_of

from vertex_runtime.errors import FAILED, UserError, run_as_program

TEMPLATES = Path(__file__).resolve().parent
ROOT = TEMPLATES.parent
KINDS = ("tabular", "image", "text")
STEPS = 8  # of an epoch, at least
JOBS = ("", "-2-workers", "-gpu", "-tuning")
# Names of modules that a trainer's package would hide, even if they are not installed here.
TAKEN = ("trainer", "keras", "tensorflow", "numpy", "pyarrow", "tensorboard", "google", "hypertune", "optuna", "pytest", "build", "dist")


@dataclass
class Plan:
    """What a trainer is made from: the values for its templates, and its sample data."""

    values: dict[str, str]
    instance: dict[str, Any] | None  # a request, for the printed commands; None for images
    rows: dict[str, list[list[str]]] = field(default_factory=dict)  # from the user's own file, by the sample's name
    said: list[str] = field(default_factory=list)  # lines to print


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each `<<NAME>>` by its value; a KeyError means a mistake in the template."""
    return re.sub(r"<<([A-Z_]+)>>", lambda match: values[match[1]], template)


def text_of(kind: str, name: str) -> str:
    """Return the text of a template: the kind's own, else the common one."""
    own = TEMPLATES / kind / f"{name}.tmpl"
    return (own if own.is_file() else TEMPLATES / "common" / f"{name}.tmpl").read_text(encoding="utf-8")


def check_name(name: str) -> None:
    """Check that a package, its jobs and its image may have this name.

    Raises:
        UserError: they may not, or one of the files exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_{1,2}[a-z0-9]+)*", name) or len(name) > 60:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f", such as {plain}" if re.fullmatch(r"[a-z]\w*", plain) and not keyword.iskeyword(plain) else ""
        raise UserError(f"{name[:100]!r} is no name for a trainer: use lower-case letters, digits and single _{hint}.")
    if keyword.iskeyword(name):
        raise UserError(f"{name} is a keyword of Python: choose another name.")
    for path in (name, *(f"jobs/{name}{kind}.yaml" for kind in JOBS), f"tests/test_{name}.py"):
        if os.path.lexists(ROOT / path):
            raise UserError(f"{path} exists already, and nothing is overwritten: choose another name, or move it away.")
    if name in sys.stdlib_module_names or name in TAKEN or _is_installed(name):
        raise UserError(f"{name} is the name of a module that programs import: choose another name.")


def _is_installed(name: str) -> bool:
    """Tell whether Python finds such a module outside this checkout."""
    kept, sys.path[:] = sys.path[:], [path for path in sys.path if Path(path or ".").resolve() not in (TEMPLATES, ROOT)]
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return True
    finally:
        sys.path[:] = kept


# ------------------------------------------------------------------ the values for each kind's templates


def plan_sample(name: str, kind: str) -> Plan:
    """Plan a trainer on made-up data."""
    values = {"NAME": name, "SAMPLES": "", "BATCH_SIZE": ""}
    if kind == "image":
        return Plan(values | _evaluated("val_accuracy", 0.9, classes=True) | _places("train", "valid"), None)
    values |= {"COLUMNS": _template(kind, "columns")}
    if kind == "text":
        instance: dict[str, Any] = {"text": "Where can I find the invoice? I have asked twice, nobody answers"}
        values |= {"TEXT": '"text"', "LABEL": '"label"'} | _evaluated("val_accuracy", 0.85, classes=True)
    else:
        values |= _tabular("two_classes", '"churned"', values["COLUMNS"]) | _evaluated("val_auc", 0.75, classes=True)
        instance = {"age": 41, "monthly_charge": 36.5, "support_calls": 2, "data_gb": None, "plan": "family", "region": "north"}
        instance |= {"payment": "card", "joined": "2024-05-17"}
    return Plan(values | _places("train.csv", "valid.csv"), instance)


def plan_from(path: str, name: str, kind: str, label: str | None) -> Plan:
    """Plan a trainer on a CSV file of the user's.

    Raises:
        UserError: the file cannot be used.
    """
    table = csv_columns.read(path)
    choice = csv_columns.choose(table, kind, label)
    train, valid, without = csv_columns.split(table, choice)
    names = list(table.cells)
    own = "SYNTHETIC_SAMPLES = False  # it is rows of a file of yours\n"
    source = "\n".join(found.source() for found in choice.columns)
    values = {"NAME": name, "COLUMNS": source, "SAMPLES": own, "BATCH_SIZE": _batch_size(len(train))}
    values |= _places("train.csv", "valid.csv")
    label_source = repr_of(choice.label.name)
    if choice.text:
        values |= {"TEXT": repr_of(choice.text.name), "LABEL": label_source} | _evaluated("val_accuracy", None, classes=True)
    else:
        head = "number" if choice.is_regression else "two_classes" if choice.label.distinct == 2 else "classes"
        objective = {"number": "val_rmse", "two_classes": "val_auc", "classes": "val_accuracy"}[head]
        values |= _tabular(head, label_source, source) | _evaluated(objective, None, classes=head != "number")
    said = _described(choice, chosen_by_user=label is not None)
    if without:
        said.append(f"left out {without} rows without {choice.label.name!r}")
    said.append(f"sample data: {len(train)} rows to train on, {len(valid)} to evaluate on, of {table.rows} in {path}")
    rows = {"train": [names, *train], "valid": [names, *valid]}
    return Plan(values, csv_columns.instance(choice, names, valid[0]), rows, said)


def _batch_size(rows: int) -> str:
    """Return the line of a batch size for few rows, which leaves an epoch some steps; "" where the runtime's own does."""
    size = 2 ** ((rows // STEPS).bit_length() - 1)
    return "" if size >= 64 else f'    batch_size: int = option({size}, "examples per step, over all replicas", minimum=1)\n'


def _described(choice: Any, chosen_by_user: bool) -> list[str]:
    """Return lines about a `csv_columns.Choice`: the label, the texts, and every column."""
    what = "a number" if choice.is_regression else f"one of {choice.label.distinct} classes"
    said = [f"predicts {choice.label.name!r}, {what}{'' if chosen_by_user else ' (--label=COLUMN chooses another column)'}"]
    if choice.text:
        said.append(f"reads the texts of {choice.text.name!r}")
    for found in choice.columns:
        said.append(found.source().strip().rstrip(",") + (f"  # {found.note}" if found.note else ""))
    return said


def _template(kind: str, name: str) -> str:
    return (TEMPLATES / kind / f"{name}.tmpl").read_text(encoding="utf-8").rstrip("\n")


def _places(train: str, valid: str) -> dict[str, str]:
    image = "." not in train
    yours = "a folder per label under /gcs/your-bucket/data/train" if image else "gs://your-bucket/data/train-*.csv"
    return {"TRAIN": train, "VALID": valid, "YOURS": yours}


def _tabular(head: str, label: str, columns: str) -> dict[str, str]:
    number = head == "number"
    facts = '{"mean": mean, "scale": scale, "words": known}'
    if number:
        facts = '{"mean": mean[:-1], "scale": scale[:-1], "label_mean": mean[-1], "label_scale": scale[-1], "words": known}'
    return {
        "LABEL": label + "  # noqa: E501" * (len(label) > 132),
        "LABEL_HINT": "" if number else "; for a number instead of classes see `head`",
        "MATH": "import math\n" if "math.nan" in columns else "",
        "MORE_COLUMNS": ", Text" if re.search(r"^    Text\(", columns, re.MULTILINE) else "",
        "MEASURED": "np.column_stack([numbers_of(chunk), chunk[LABEL]])" if number else "numbers_of(chunk).numpy()",
        "FACTS": facts,
        "HEAD": _template("tabular", f"head_{head}"),
    }


def _evaluated(objective: str, least: float | None, classes: bool) -> dict[str, str]:
    check = f'metrics["{objective}"] > {least}' if least is not None else f'math.isfinite(metrics["{objective}"])'
    return {
        "OBJECTIVE": objective,
        "GOAL": "MINIMIZE" if objective == "val_rmse" else "MAXIMIZE",
        "METRIC_CHECK": check,
        "ANSWER_CHECK": 'math.isclose(sum(answer["scores"]), 1.0, abs_tol=1e-4)' if classes else "math.isfinite(answer)",
    }


# ------------------------------------------------------------------ writing


def write(folder: Path, name: str, kind: str, plan: Plan) -> None:
    """Write all files of a trainer below `folder`, at the paths that they will have in the checkout."""
    imports = sorted([f"from {name}.trainer.task import main", "from vertex_runtime import predict"])
    values = plan.values | {"TEST_IMPORTS": "\n".join(imports), "PARAMETERS": _template(kind, "tuning.yaml")}
    values["INSTANCE"] = _literal(plan.instance)
    package = folder / name
    files = {f"{name}/__init__.py": "", f"{name}/trainer/__init__.py": ""}
    for module in ("task", "model", "hyperparameters", *(["features"] if kind == "tabular" else [])):
        files[f"{name}/trainer/{module}.py"] = fill(text_of(kind, f"{module}.py"), values)
    for job in JOBS:
        files[f"jobs/{name}{job}.yaml"] = fill(text_of(kind, f"job{job}.yaml"), values)
    files[f"tests/test_{name}.py"] = fill(text_of(kind, "test.py"), values)
    if not plan.rows:
        files[f"{name}/tests/make_data.py"] = fill(text_of(kind, "make_data.py"), values)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    if not plan.rows:
        runpy.run_path(str(package / "tests" / "make_data.py"), run_name="__main__")
        return
    data = package / "tests" / "data"
    data.mkdir(parents=True)
    for part, rows in plan.rows.items():
        with open(data / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def _literal(instance: Mapping[str, Any] | None) -> str:
    """Return a request as a Python literal, with a line for each value if it is long."""
    items = [f"{repr_of(name)}: {repr_of(value)}" for name, value in (instance or {}).items()]
    line = f"{{{', '.join(items)}}}"
    if len(line) <= 120:
        return line
    return f"{{\n{one_a_line(items, 4)}}}"


def move(folder: Path, paths: Sequence[str]) -> None:
    """Move the written files into the checkout: all of them, or none.

    Raises:
        UserError: one of the targets exists.
    """
    moved: list[Path] = []
    try:
        for path in paths:
            target = ROOT / path
            if os.path.lexists(target):
                raise UserError(f"{path} was created meanwhile, and nothing is overwritten: start again.")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder / path, target)
            moved.append(target)
    except BaseException:
        for target in moved:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise


def make(name: str, kind: str, path: str | None, label: str | None) -> list[str]:
    """Make a trainer; return the lines to print.

    Raises:
        UserError: it cannot be made; then nothing is written.
    """
    check_name(name)
    plan = plan_from(path, name, kind, label) if path else plan_sample(name, kind)
    paths = [name, *(f"jobs/{name}{job}.yaml" for job in JOBS), f"tests/test_{name}.py"]
    folder = Path(tempfile.mkdtemp(prefix=".new_trainer-", dir=ROOT))  # on the same disk, so that moving is a rename
    folder.chmod(0o755)
    try:
        write(folder, name, kind, plan)
        move(folder, paths)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [*plan.said, "", *_written(name, kind, plan), "", *_next(name, kind, plan)]


def _written(name: str, kind: str, plan: Plan) -> list[str]:
    made = "" if plan.rows else f" (made by {name}/tests/make_data.py)"
    return [
        f"{name}/trainer/model.py            columns and network: edit this one",
        f"{name}/trainer/hyperparameters.py  every field is a flag",
        *[f"{name}/trainer/features.py         what a date says"] * (kind == "tabular"),
        f"{name}/tests/data                  sample data{made}",
        f"jobs/{name}.yaml                   and -2-workers, -gpu, -tuning",
        f"tests/test_{name}.py               trains on the sample data and asks the model",
    ]


def _next(name: str, kind: str, plan: Plan) -> list[str]:
    python = ".venv/bin/python"
    output = f"/tmp/{name}"
    if plan.instance is None:
        image = f"{name}/tests/data/valid/circle/000.png"
        ask = f"""printf '{{"b64": "%s"}}' "$(base64 < {image} | tr -d '\\n')\""""
    else:
        bare = next(iter(plan.instance.values())) if kind == "text" and len(plan.instance) == 1 else plan.instance
        ask = "echo '" + json.dumps(bare, ensure_ascii=False).replace("'", "'\\''") + "'"
    return [
        "next, from the root of the checkout:",
        f"  {python} -m {name}.trainer.task --output_dir={output}",
        f"  {ask} | scripts/predict {output}/model",
        f"  {python} -m pytest -m '' tests/test_{name}.py",
        f"  {python} -m vertex_local check jobs/{name}.yaml            # pip install '.[cloud,tune]' first",
        f"  {python} -m vertex_local tune jobs/{name}-tuning.yaml --max_trial_count 4",
        f"  {python} -m vertex_local run jobs/{name}-2-workers.yaml",
        f"  scripts/build_package --trainer {name}                     # for prebuilt containers",
        f"  scripts/build_image --trainer {name} --push && scripts/submit_job jobs/{name}.yaml",
    ]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See scripts/new_trainer --help.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: a flag is wrong, or the trainer cannot be made.
    """
    what = "Write a trainer of your own: package, job files, sample data, test."
    parser = _Parser(prog="scripts/new_trainer", description=what, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="the package's name, such as churn")
    parser.add_argument("--kind", required=True, choices=KINDS, help="what a row holds")
    parser.add_argument("--from", dest="path", metavar="CSV", help="take columns and sample data from this file, which has a header")
    parser.add_argument("--label", metavar="COLUMN", help="the column to predict (default: label, target or y, else the last one)")
    args = parser.parse_args(argv)
    if args.path is not None and args.kind == "image":
        raise UserError("--from is for tabular and text. Images are read from a folder per label: give it to --train_data_path later.")
    if args.label is not None and args.path is None:
        raise UserError("--label names a column of the file that --from gives: give that, too.")
    try:
        print("\n".join(make(args.name, args.kind, args.path, args.label)))
    except OSError as error:
        raise UserError(f"{error.filename or ROOT}: {error.strerror or error}. Make room or mend its permissions.", FAILED) from None


if __name__ == "__main__":
    run_as_program(main)
