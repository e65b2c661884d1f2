"""The notebook, executed from a copy of the checkout: every cell runs, and the service that it starts gives what it promises."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from vertex_local.serve import endpoint

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
NOT_SOURCES = (".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", ".vertex_local", "*-run-*", "*-model*")
# What the last cell is about to delete, and what came before it, as the service tells it.
FINDINGS = """
import json

print(json.dumps({
    "run": RUN, "job": job.state.name, "study": study.state.name, "best": best.id, "errors": {t.id: error_of(t) for t in study.trials},
    "predictions": answer.predictions, "model": endpoint.list_models()[0].model == model.resource_name, "pid": started.pid,
}))
"""


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_it_is_committed_without_outputs():
    code = cells("code")
    assert code and not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None]


def test_a_failing_command_stops_it():
    """`!command` would go on after an error; a cell of %%bash does not, and one of several lines asks for that itself."""
    for cell in cells("code"):
        lines = "".join(cell["source"]).replace("\\\n", "").splitlines()
        assert not [line for line in lines if line.lstrip().startswith("!")], cell["id"]
        if lines[0].startswith("%%bash"):
            assert "set -e" in lines or sum(line.startswith(("python", "scripts/", "head")) for line in lines) <= 1, cell["id"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Return the folder and the notebook that was executed in it, trained for a short time, with the cell of findings last but one."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    folder = tmp_path_factory.mktemp("notebook") / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    book = nbformat.read(folder / "docs" / NOTEBOOK.name, as_version=4)
    nbformat.validate(book)
    (choice,) = [place for place, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
    book.cells.insert(choice + 1, nbformat.v4.new_code_cell("EPOCHS, TRIALS = 8, 2"))
    book.cells.insert(len(book.cells) - 1, nbformat.v4.new_code_cell(FINDINGS))
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder / "docs")}})
    client.execute(env={**os.environ, "PYTHONPATH": path})
    return folder, book


def findings(book) -> dict:
    return json.loads("".join(output["text"] for output in book.cells[-2].outputs if output.get("name") == "stdout"))


def printed(book, name: str) -> str:
    """Return what the cell of this id wrote."""
    (cell,) = [cell for cell in book.cells if cell.id == name]
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.slow
def test_it_goes_from_the_data_to_a_prediction(executed):
    folder, book = executed
    found = findings(book)
    assert found["job"] == "JOB_STATE_SUCCEEDED" and found["study"] == "JOB_STATE_SUCCEEDED" and found["model"]
    assert len(found["errors"]) == 2 and min(found["errors"], key=found["errors"].get) == found["best"]
    assert all(1.0 < error < 6.0 for error in found["errors"].values()), "dollars; the mean fare for all rides has about 9"
    park, airport = found["predictions"]
    assert 4 < park < 15 < 25 < airport < 90
    outputs = folder / ".vertex_local" / "buckets" / "your-bucket" / found["run"]
    assert (outputs / "job" / "model" / "saved_model.pb").is_file() and (outputs / "study" / found["best"] / "model").is_dir()
    assert (folder / found["run"] / "data.json").is_file()


@pytest.mark.slow
def test_each_step_says_what_it_did(executed):
    _, book = executed
    assert "served and trained predictions agree" in printed(book, "train")
    assert 4 < json.loads(printed(book, "ask-file")) < 15
    assert "vertex_trainer-0.1.0.tar.gz" in printed(book, "build")
    assert "$ gcloud ai custom-jobs create" in printed(book, "send") and "succeeded, " in printed(book, "send")
    (report,) = [cell for cell in book.cells if cell.id == "report"]
    assert report.outputs[0]["data"]["text/html"].startswith("<div><iframe srcdoc=") and len(report.outputs) == 1


@pytest.mark.slow
def test_it_ends_the_service_that_it_started(executed):
    folder, book = executed
    assert not Path("/proc", str(findings(book)["pid"])).exists()
    with pytest.raises(endpoint.EndpointError, match="no service runs"):
        endpoint.find(folder / ".vertex_local")
    assert re.findall(r"(\w+) resource \S+ deleted", printed(book, "clean")) == ["Endpoint", "Model"]
