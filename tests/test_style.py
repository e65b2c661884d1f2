"""The house rules that a reader relies on: sizes, who imports whom, docstrings, and that what is written down exists."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FIRST_TRAINER, ROOT, TRAINERS

from vertex_local.check import prices

BUNDLED = ("taxifare", "stackoverflow")
PACKAGES = ("vertex_runtime", "vertex_local", "vertex_submit", "data_tools", "pipelines", *TRAINERS)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = [path for folder in ("scripts", ".ci") for path in sorted((ROOT / folder).iterdir()) if path.is_file()]
READERS = ("data.py", "rows.py")
EXPLAINING = ("explain.py", "integrated_gradients.py")  # no part of a run
CORE = ("environment", "strategy", "loop", "steps", "checkpoint", "export")
RUNTIME_FILE = 300
LARGEST_FILES = {
    "contract.py": 420, "data.py": 320, "run.py": 350, "inputs.py": 370, "rows.py": 340, "bucket_lock.py": 310, "cache.py": 310,
}  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def lines_of_code(path: Path) -> int:
    """Count the lines that hold more than blanks, comments and docstrings."""
    documented = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in layout:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - documented)


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, at whatever depth; its own package's start with a dot."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {"." * node.level + (node.module or alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in PACKAGES:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("trainer", BUNDLED)
@pytest.mark.parametrize("name, budget", [("task", 150), ("model", 250)])
def test_the_files_that_users_edit_are_short(trainer, name, budget):
    assert len((ROOT / trainer / "trainer" / f"{name}.py").read_text().splitlines()) <= budget


def test_the_runtime_can_be_read_in_one_sitting():
    sizes = {path.name: lines_of_code(path) for path in SOURCES if path.parent.name == "vertex_runtime"}
    assert sum(sizes[f"{name}.py"] for name in CORE) <= 1240, sizes
    assert sum(size for name, size in sizes.items() if name not in (*READERS, *EXPLAINING)) <= 6220, sizes
    assert sum(sizes[name] for name in EXPLAINING) <= 380, sizes
    assert not {name: size for name, size in sizes.items() if size > LARGEST_FILES.get(name, RUNTIME_FILE)}
    report = {path.name: lines_of_code(path) for path in SOURCES if path.parent.name == "data_report"}  # no part of a run
    assert sum(report.values()) <= 1200, report
    assert not {name: size for name, size in report.items() if size > RUNTIME_FILE}
    tracking = {path.name: lines_of_code(path) for path in SOURCES if path.parent.name == "tracking"}
    assert sum(tracking.values()) <= 500, tracking
    evaluation = {path.name: lines_of_code(path) for path in SOURCES if path.parent.name == "evaluation"}  # nor is this
    assert sum(evaluation.values()) <= 1900, evaluation
    assert not {name: size for name, size in evaluation.items() if size > RUNTIME_FILE}
    formats = {path.name: lines_of_code(path) for path in SOURCES if path.parent.name == "formats"}
    assert formats.pop("bigquery.py") <= 420  # a service, not a file, and shared by workers
    assert not {name: size for name, size in formats.items() if size > RUNTIME_FILE}


def test_functions_are_short():
    found = [(f.end_lineno - f.lineno + 1, f"{name_of(path)}:{f.lineno} {f.name}") for path in SOURCES for f in functions(path)]
    assert not [(size, name) for size, name in found if size > 40]


# ------------------------------------------------------------------ who imports whom


@pytest.mark.parametrize("trainer", BUNDLED)
def test_a_model_imports_no_more_of_us_than_data_helpers(trainer):
    ours = {f"vertex_runtime.{name}" for name in ("columns", "data", "images", "rows", "sparse")}
    outside = {"keras", "numpy", "tensorflow"} | sys.stdlib_module_names
    for name in imports(ROOT / trainer / "trainer" / "model.py"):
        assert re.fullmatch(r"\.\w+", name) or name in ours or name.partition(".")[0] in outside, name


@pytest.mark.parametrize("trainer", TRAINERS)
def test_hyperparameters_and_task_import_no_tensorflow(trainer):
    code = f"import sys, {trainer}.trainer.task; print(sorted({{'keras', 'numpy', 'tensorflow'}} & set(sys.modules)))"
    assert run_python(code) == "[]"


@pytest.mark.parametrize(
    "module", ["environment", "arguments", "errors", "outputs", "reporting", "strategy", "checksums", "tracking.nodes", "tracking.client"]
)
def test_what_answers_at_once_imports_no_tensorflow(module):
    code = f"import sys, vertex_runtime.{module}; print(sorted({{'keras', 'numpy', 'tensorflow'}} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_the_runtime_knows_no_trainer_and_no_local_service():
    for path in (ROOT / "vertex_runtime").rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & {*TRAINERS, "vertex_local", "vertex_submit", "trainer"}, path.name


def test_the_local_service_knows_no_trainer_and_no_tensorflow():
    """It runs any program; the runtime is at most looked at where it imports nothing heavy itself."""
    for path in (ROOT / "vertex_local").rglob("*.py"):
        names = imports(path)
        others = {*TRAINERS, "vertex_submit", "trainer", "tensorflow", "keras", "numpy"}
        assert not {name.partition(".")[0] for name in names} & others, path.name
        light = {"vertex_runtime.environment", "vertex_runtime.checksums", "vertex_runtime.tracking"}  # of the last, `nodes` alone
        assert {name for name in names if name.startswith("vertex_runtime")} <= light, path.name


def test_what_submits_reads_job_files_in_one_place():
    """So that nothing but the message goes from one of its modules to the next."""
    for path in (ROOT / "vertex_submit").glob("*.py"):
        found = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and not node.level]
        names = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        readers = names & {"vertex_local.job.job_file", "vertex_local.tuning.study"}
        assert path.name == "jobs.py" or not readers, path.name
        assert not {name for name in names if name.startswith(("vertex_local.serve", "vertex_local.check"))}, path.name


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------ how it is written


def test_it_is_python_3_10():
    programs = [path for path in SCRIPTS if "python" in path.read_text(encoding="utf-8").splitlines()[0]]
    for path in (*SOURCES, ROOT / "setup.py", *programs, *sorted(ROOT.glob("tests/*.py")), *sorted(ROOT.glob("benchmarks/*.py"))):
        ast.parse(path.read_text(encoding="utf-8"), name_of(path), feature_version=(3, 10))


def test_public_functions_and_modules_have_docstrings():
    bare = [name_of(path) for path in SOURCES if path.stat().st_size and not ast.get_docstring(parse(path))]
    for path in SOURCES:
        for node in parse(path).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            # A function of three statements and telling names is its own description.
            if public and not ast.get_docstring(node) and len(node.body) > 3:
                bare.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert not bare


def test_package_code_has_no_assert():
    """An assertion says nothing to a user and is gone under -O; a UserError names the remedy."""
    for path in SOURCES:
        assert not [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert)], name_of(path)


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w./}])/(home|Users|root|work|mnt|scratch)/")
    tests = [path for path in sorted((ROOT / "tests").glob("*.py")) if path.name != Path(__file__).name]
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.ipynb"), *ROOT.glob("*.txt")]
    for path in (*SOURCES, ROOT / "setup.py", *SCRIPTS, *tests, *documents):
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if pattern.search(line)]
        assert not found, f"{name_of(path)}: {found}"


# ------------------------------------------------------------------ what is written down exists


def test_scripts_run_as_programs():
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert path.suffix == ".sh" or (os.access(path, os.X_OK) and text.startswith("#!")), path.name


def test_every_script_that_is_named_exists():
    named = re.compile(r"(?<![\w/.-])((?:scripts|benchmarks|jobs|\.ci)/[\w./-]*\w)")
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb"), *ROOT.glob("jobs/*.yaml")]
    documents += [ROOT / "setup.py", *SOURCES, *SCRIPTS]
    for path in documents:
        for name in named.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{name_of(path)} names {name}"


def test_every_python_file_that_a_readme_names_exists():
    known = {path.name for folder in (*PACKAGES, "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")} | {"setup.py"}
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        missing = sorted(set(re.findall(r"\b\w+\.py\b", path.read_text(encoding="utf-8"))) - known)
        assert not missing, f"{name_of(path)} names {missing}"


def test_readme_names_every_script_and_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("scripts/train", "scripts/test", "scripts/predict", "vertex_runtime", *BUNDLED):
        assert name in text, name
    assert len(text.splitlines()) <= 130


def test_the_changelog_begins_with_the_version_that_setup_makes():
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())[1]
    assert re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_the_command_in_a_trainers_docstring_runs(trainer, trained):
    text = ast.get_docstring(parse(ROOT / trainer / "trainer" / "task.py"))
    command = re.search(rf"^    python -m {trainer}\.trainer\.task (.*)$", text, re.MULTILINE)
    assert command, "the docstring opens with a command that works on the sample data"
    assert re.fullmatch(r"--output_dir=\S+", command[1]), "any other flag, and it is another run than the one that the tests share"
    assert (trained(trainer) / "model" / "saved_model.pb").is_file()


def test_the_predictions_are_what_the_script_prints():
    printed = subprocess.run([sys.executable, ROOT / "benchmarks" / "scaling.py"], capture_output=True, text=True, check=True).stdout
    assert printed.strip() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (price,) = re.findall(r"^PRICE = ([\d.]+)$", (ROOT / "benchmarks" / "scaling.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert prices.load().find("n1-standard-4", "us-central1", "STANDARD").amount == float(price)
