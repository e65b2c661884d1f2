"""The pages on messages say what the code says: docs/messages.md lists every message, docs/recovering.md quotes real ones."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
from conftest import ROOT

from vertex_local import cli
from vertex_local.errors import UserError as LocalError
from vertex_local.job import buckets, job_file
from vertex_runtime.arguments import step_range
from vertex_runtime.environment import Environment
from vertex_runtime.errors import UserError

# A message in a terminal, in a job's log, in a report of `check`, in the API's answer.
SAID = re.compile(
    r'(?:^(?:error|warning)(?:: |  +\S+ +)|"severity": "ERROR", "message": "|"error": {.*"message": "|^rule: \S+: )(.*?)(?:"[,}].*)?$'
)


@pytest.fixture(scope="module")
def messages():
    """docs/messages.py, which reads the code."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield importlib.import_module("messages")
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def page(messages):
    return messages.make()


def pattern(text: str) -> re.Pattern[str]:
    """Return what a message looks like with its values in it; of alternatives and what may be missing, anything will do."""
    before = ""
    while before != text:
        before, text = text, re.sub(r"‹[^‹›]*›|\[[^\[\]]*\]|\([^()]* \| [^()]*\)", "\0", text)
    return re.compile(".*".join(map(re.escape, text.split("\0"))) + r"\W*")


def test_the_page_is_what_the_code_says(messages, page):
    assert not page.faults()
    assert messages.PAGE.read_text(encoding="utf-8") == str(page), "run docs/messages.py"


def test_a_message_without_a_remedy_is_a_fault(messages, page):
    bare = messages.Message("vertex_runtime/loop.py", "error", "the flux ‹name› is out of phase.")
    elsewhere = bare._replace(path="nowhere.py", text="the flux is out of phase; name another.")
    found = messages.Page([*page.messages, bare, elsewhere], page.table).faults()
    assert found == [f"no remedy: {bare.path}: {bare.text}", "no area: nowhere.py"]
    stale = messages.Page(page.messages, {**page.table, "remedies": {**page.table["remedies"], "no * says this": "x"}})
    assert stale.faults() == ["no such message: no * says this"]


def refusal(call, *args) -> str:
    with pytest.raises((UserError, LocalError)) as caught:
        call(*args)
    return str(caught.value)


def test_what_the_code_says_when_it_runs_is_on_the_page(page, tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("workerPoolSpecs:\n- replicaCount: two\n")
    said = [
        refusal(step_range, "3"),
        refusal(Environment.from_mapping, {"TF_CONFIG": "{'cluster'"}),
        refusal(Environment.from_mapping, {"CLOUD_ML_TRIAL_ID": "../1"}),
        refusal(Environment.from_mapping, {"AIP_DATA_FORMAT": "xml"}),
        refusal(buckets.check_name, "Upper"),
        refusal(job_file.read, tmp_path / "gone.yaml"),
        refusal(job_file.read, tmp_path / "job.yaml"),
    ]
    with pytest.raises(SystemExit):
        cli.Parser(prog="x").parse_args(["--a"])
    said.append(capsys.readouterr().err.removeprefix("error: ").strip())
    for text in said:
        assert any(pattern(each.text).fullmatch(text) for each in page.messages), text


def test_recovering_quotes_what_the_code_says(page):
    """Each line of an error or a warning that docs/recovering.md shows is a message of the code."""
    text = (ROOT / "docs" / "recovering.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
    said = [found[1] for line in lines if (found := SAID.search(line))]
    assert len(said) >= 20
    known = [pattern(each.text) for each in page.messages]
    unknown = [line for line in said if not any(each.fullmatch(line) for each in known)]
    assert not [line for line in unknown if not line.startswith("skew: {")], "it quotes a row of the data"
