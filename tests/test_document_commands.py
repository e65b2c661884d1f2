"""Every block of commands in the documents, run in order in a clean copy of the checkout; see document_blocks.py for the marks.

A page has a copy of its own, with this interpreter's environment as its .venv, and no way to anybody's credentials. pip looks
whether what it is asked for is there, and changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from document_blocks import PAGES, Block, blocks
from test_kfp_support import PYTHON as KFP_PYTHON

NOT_SOURCES = (".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".vertex_local", "*-run-*", "*-model*")
SECONDS = 900  # for one block
KEPT = ("LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")
BY_PAGE = {str(page.relative_to(ROOT)): blocks(page) for page in PAGES}


def pages(slow: bool) -> list[str]:
    return [name for name, found in BY_PAGE.items() if any(block.slow == slow and not block.not_run for block in found)]


class Checkout:
    """A copy of the checkout, and the shell in which a page's blocks are run: the environment and the folder go on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.running = folder / "checkout", folder / "state.sh", []
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*NOT_SOURCES))
        self._link_environments()
        (folder / "home").mkdir()
        self.environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
            "HOME": str(folder / "home"), "PATH": f"{self.folder / '.venv' / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(self.folder),
            "PIP_DRY_RUN": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTEST_ADDOPTS": "--collect-only -q", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def _link_environments(self) -> None:
        venv = self.folder / ".venv"
        venv.mkdir()
        for each in Path(sys.prefix).iterdir():
            if each.name != "installed":
                (venv / each.name).symlink_to(each)
        if KFP_PYTHON.is_file():
            (self.folder / ".venv-kfp").symlink_to(KFP_PYTHON.parent.parent)

    def run(self, block: Block) -> None:
        """Run a block to its end, or until it has printed what it is to print; fail with its output."""
        if block.before:
            self._shell(block, f"set -e\n{block.before}")
        code = block.filled({name: self._shell(block, f"printf %s {word}") for name, word in block.where.items()})
        code = code.replace("vertex_local serve", "vertex_local serve --port 0")  # somebody else's may have the usual one
        if block.until:
            self._start(block, code)
            return
        done = self._bash(f"{'' if block.exit_code else 'set -eo pipefail'}\n{code}\n{self._remember()}")
        assert done.returncode == block.exit_code, f"{block.place}: exit code {done.returncode}\n{code}\n{done.stdout}"
        assert block.prints in done.stdout, f"{block.place}: {block.prints!r} was not printed\n{code}\n{done.stdout}"

    def _shell(self, block: Block, code: str) -> str:
        done = self._bash(f"{code}\n{self._remember()}")
        assert done.returncode == 0, f"{block.place}: exit code {done.returncode} of its mark\n{code}\n{done.stdout}"
        return done.stdout

    def _remember(self) -> str:
        return f'code=$?; export -p >{self.state}; printf "cd %q\\n" "$PWD" >>{self.state}; exit $code'

    def _bash(self, code: str) -> subprocess.CompletedProcess[str]:
        process = self._open(code)
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # whatever it started, too
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def _open(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"[ ! -f {self.state} ] || . {self.state}\n{code}"], cwd=self.folder, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def _start(self, block: Block, code: str) -> None:
        process = self._open(f"set -eo pipefail\n{code}")
        self.running.append(process)
        timer = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if block.until in line:
                timer.cancel()
                threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never waits for a reader
                return
        timer.cancel()
        pytest.fail(f"{block.place}: ended with {process.wait()} and never printed {block.until!r}\n{code}\n{''.join(lines)}")

    def end(self) -> None:
        """End what was left running, as Ctrl-C in its terminal does."""
        while self.running:
            process = self.running.pop()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


@pytest.fixture(scope="module")
def checkouts() -> dict[str, Checkout]:
    """The copies that there are, by page: the slow blocks of a page go on where the others ended."""
    return {}


def run_page(name: str, slow: bool, checkouts: dict[str, Checkout], folders: pytest.TempPathFactory) -> None:
    if sys.prefix == sys.base_prefix:
        pytest.skip("the tests run in no virtual environment, which the copy of the checkout would have as its .venv")
    checkout = checkouts.get(name) or Checkout(folders.mktemp(Path(name).stem))
    checkouts[name] = checkout
    try:
        for block in BY_PAGE[name]:
            if block.slow == slow and not block.not_run and not (block.kfp and not KFP_PYTHON.is_file()):
                checkout.run(block)
    finally:
        checkout.end()


@pytest.mark.parametrize("name", pages(slow=False))
def test_the_commands_of_a_page_run(name, checkouts, tmp_path_factory):
    run_page(name, False, checkouts, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("name", pages(slow=True))
def test_its_slow_commands_run(name, checkouts, tmp_path_factory):
    run_page(name, True, checkouts, tmp_path_factory)


@pytest.mark.parametrize(
    "marks, code, problem",
    [
        ({}, "false\ntrue", "README.md:7: exit code 1"),
        ({}, "false | cat", "README.md:7: exit code 1"),
        ({"exit_code": 3}, "exit 2", "README.md:7: exit code 2"),
        ({"prints": "two"}, "echo one", "README.md:7: 'two' was not printed"),
        ({"before": "false"}, "true", "README.md:7: exit code 1 of its mark"),
        ({"until": "ready"}, "echo on its way", "README.md:7: ended with 0 and never printed 'ready'"),
        ({"exit_code": 3, "prints": "one", "before": "export A=one", "where": {"NAME": "$A"}}, "echo NAME; exit 3", None),
        ({"until": "ready"}, "echo ready; sleep 1000", None),
    ],
)
def test_what_a_block_says_of_itself_is_kept(bare, marks, code, problem):
    block = Block(ROOT / "README.md", 7, code, **marks)
    try:
        if problem is None:
            bare.run(block)
            assert not marks.get("until") or bare.running[-1].poll() is None
        else:
            with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(problem)):
                bare.run(block)
    finally:
        bare.end()


def test_a_block_goes_on_where_the_one_before_it_ended(bare):
    bare.run(Block(ROOT / "README.md", 1, "export KEPT=yes\nmkdir -p deep && cd deep"))
    bare.run(Block(ROOT / "README.md", 2, 'echo "$KEPT ${PWD##*/}"', prints="yes deep"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the checkout that these tests share."""
    return Checkout(tmp_path_factory.mktemp("bare"))
