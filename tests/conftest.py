"""What all tests share: a clean environment, the real data where it is, and the trainers' real command lines."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import forked
import pytest

from vertex_local.local.commands import trainers

ROOT = Path(__file__).resolve().parents[1]
TRAINERS = tuple(trainers(ROOT))  # for the rules that every trainer keeps, yours too
# The service's, ours, and what importing TensorFlow sets (TPU_ML_).
SERVICE_VARIABLES = ("AIP_", "CLOUD_ML_", "CLUSTER_SPEC", "TF_CONFIG", "TPU_ML_", "TRAINER_", "VERTEX_")

# Where one trainer shows what there is to see, the other one's turn comes with the slow tests.
FIRST_TRAINER = ("taxifare", pytest.param("stackoverflow", marks=pytest.mark.slow))

# In this order, then the others: a file that takes long must not be what the other processes of scripts/test wait for.
LONGEST = (
    "test_document_commands", "test_compat", "test_any_model", "test_multiworker", "test_packaging", "test_kfp_pipeline", "test_tfx",
    "test_notebook", "test_pipeline_local", "test_pipeline_jobs", "test_sdk_program", "test_autopackaging", "test_tune",
    "test_storage_api", "test_training", "test_storage", "test_resume", "test_registry", "test_contract", "test_serve", "test_check",
    "test_lineage", "test_serve_gcloud", "test_serve_attacks", "test_explain", "test_evaluation", "test_local_run", "test_submit",
    "test_formats", "test_experiments", "test_new_trainer", "test_bigquery", "test_serve_rpc", "test_convert_data", "test_csv_fuzz",
)  # fmt: skip

RunTrainer = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """Forget the service's variables before any module or fixture sees them."""
    _forget_service_variables()
    forked.prepare()
    gc.disable()  # all that the tests import stays: to look through it again and again takes longer than to import it


def pytest_collection_finish() -> None:
    """Let the collector pass over what was imported."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """Forget what code under test wrote into this process's environment, before a module's fixtures can inherit it."""
    _forget_service_variables()
    yield
    _forget_service_variables()


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    """Let a server of the standard library serve in a thread while the block lasts."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def _forget_service_variables() -> None:
    for name in [name for name in os.environ if name.startswith(SERVICE_VARIABLES)]:
        del os.environ[name]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which is not part of the project: SHARED_DATA, or ../shared/data."""
    folder = Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the real data is not here: no folder {folder} (SHARED_DATA names another)")
    return folder


@pytest.fixture(scope="session")
def run_trainer(tmp_path_factory: pytest.TempPathFactory) -> RunTrainer:
    """Run a trainer's command line as a process: `run_trainer("taxifare", "--num_evals=1", env={…}, cwd=…)`.

    Without `cwd` it starts in a new folder, so that `--output_dir=out` is the caller's own. `code` is what it must end
    with; None takes any. The process is a fork of one that has imported TensorFlow, unless `fresh`: see forked.py.
    """

    def run(
        trainer: str, *flags: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, code: int | None = 0,
        timeout: float = 300, fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        module, words, folder = f"{trainer}.trainer.task", [str(flag) for flag in flags], cwd or tmp_path_factory.mktemp(trainer)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        if fresh:
            command = [sys.executable, "-m", module, *words]
            done = subprocess.run(
                command, env=variables, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
            )
        else:
            done = forked.run(module, words, variables, folder, timeout)
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def trained(run_trainer: RunTrainer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a trainer's name to the output directory of its run on the sample data, without any other flag.

    All processes of a session share that run: whoever would change it copies it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def run(trainer: str) -> Path:
        folder = root / f"trained-{trainer}"
        with open(root / f"trained-{trainer}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                run_trainer(trainer, f"--output_dir={folder}.unfinished")
                Path(f"{folder}.unfinished").rename(folder)
        return folder

    return run
