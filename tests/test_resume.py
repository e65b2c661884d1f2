"""A run that is killed, told to end or damaged goes on and ends with the very weights of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import FIRST_TRAINER, ROOT
from test_local_support import alive, wait_for

# Small runs with many checkpoints, and the callbacks whose state must survive.
FLAGS = {
    "taxifare": ["--batch_size=64", "--epochs=4", "--early_stopping=4", "--plateau=1", "--lr=0.002"],
    "stackoverflow": ["--batch_size=64", "--epochs=4", "--early_stopping=4", "--plateau=1"],
}
COMMON = ["--num_evals=4", "--checkpoint_steps=4"]


def start(trainer: str, output: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [f"--output_dir={output}", *COMMON, *FLAGS[trainer], *flags]
    return forked.run(f"{trainer}.trainer.task", words, os.environ | variables, ROOT, timeout=180)


def weights(output: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    newest = sorted((output / "checkpoints").glob("ckpt-*.index"))[-1]
    reader = tf.train.load_checkpoint(str(newest)[: -len(".index")])
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name != "state_json"}


def ledger(path: Path) -> dict[int, list[str]]:
    """Return the rows of each step, of its last attempt."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {line["step"]: line["rows"] for line in sorted(lines, key=lambda line: line["attempt"])}


def same_weights(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=FIRST_TRAINER)
def unbroken(request, tmp_path_factory):
    """Return (trainer, output directory, ledger) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = start(request.param, folder / "out", f"--ledger={folder / 'ledger'}")
    assert done.returncode == 0, done.stderr
    return request.param, folder / "out", folder / "ledger"


def draw_moments(seed: int) -> list[str]:
    """Draw ten moments: steps between checkpoints, checkpoints under way and evaluations in any order, then two exports."""
    moments = ["step"] * 4 + ["checkpoint"] * 2 + ["evaluation"] * 2
    random.Random(seed).shuffle(moments)
    return [*moments, "export", "export"]


@pytest.mark.slow
def test_ten_kills(unbroken, tmp_path):
    trainer, reference, reference_ledger = unbroken
    output, events, draw = tmp_path / "out", tmp_path / "events", random.Random(7)
    resumed, newest = 0, 0
    for place in draw_moments(7):
        at = 1
        if place == "step":  # between two checkpoints, and after the newest one
            at = newest + draw.randint(5, 7)
            at += at % 4 == 0
        events.write_text("")
        killed = start(
            trainer, output, f"--ledger={tmp_path / 'ledger'}", TRAINER_KILL=f"{place}={at},signal=KILL", TRAINER_EVENTS=str(events)
        )
        assert killed.returncode == -signal.SIGKILL, (place, killed.stdout, killed.stderr)
        entered = [json.loads(line) for line in events.read_text().splitlines()]
        assert place in [event["phase"] for event in entered[-2:]], (place, entered[-3:])
        newest = max([int(path.stem.split("-")[1]) for path in (output / "checkpoints").glob("ckpt-*.index")], default=0)
        if resumed:
            assert "resuming from step" in killed.stdout
        resumed = newest
        assert newest > 0 or place != "export"
    done = start(trainer, output, f"--ledger={tmp_path / 'ledger'}")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {newest} " in done.stdout
    assert same_weights(weights(output), weights(reference))
    assert ledger(tmp_path / "ledger") == ledger(reference_ledger)


def test_sigterm_saves_and_ends_by_sigterm(unbroken, tmp_path):
    trainer, reference, _ = unbroken
    output = tmp_path / "out"
    ended = start(trainer, output, TRAINER_KILL="step=17,signal=TERM")
    assert ended.returncode == -signal.SIGTERM
    assert (output / "checkpoints" / "ckpt-000000017.index").exists()
    ended = start(trainer, output, TRAINER_KILL="evaluation=1,signal=TERM")
    assert ended.returncode == -signal.SIGTERM and "resuming from step 17 " in ended.stdout
    done = start(trainer, output)
    assert done.returncode == 0, done.stderr
    assert same_weights(weights(output), weights(reference))


def test_pid_1_ends_with_143(tmp_path):
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("a process namespace of one's own is not to be had here")
    code = (
        "import ctypes, os, signal; from vertex_runtime.loop import StopSignal, end_by_sigterm\n"
        "assert not ctypes.CDLL(None).unshare(0x20000000)\n"  # CLONE_NEWPID: the next child is process 1
        "if child := os.fork():\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "with StopSignal() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); assert stop.received\n"
        "print(os.getpid(), flush=True); end_by_sigterm()"
    )
    done = forked_code(code, tmp_path)
    assert (done.returncode, done.stdout.split()) == (143, ["1"]), done.stderr


def test_second_sigterm_ends_at_once(tmp_path):
    code = (
        "import os, signal, time; from vertex_runtime.loop import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); assert stop.received\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(600)"
    )
    assert forked_code(code, tmp_path).returncode == -signal.SIGTERM


def forked_code(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(code)
    return forked.run("program", [], {**os.environ, "PYTHONPATH": str(ROOT)}, folder, timeout=180)


def test_damaged_checkpoint_falls_back(unbroken, tmp_path):
    trainer, reference, _ = unbroken
    output = tmp_path / "out"
    start(trainer, output, TRAINER_KILL="step=60,signal=KILL")
    # Only what has its index is a checkpoint: the kill may have cut the next one off between its two files.
    files = [path.with_suffix(".data-00000-of-00001") for path in sorted((output / "checkpoints").glob("ckpt-*.index"))]
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    done = start(trainer, output)
    assert done.returncode == 0, done.stderr
    assert "cannot be read" in done.stderr
    assert f"resuming from step {int(files[-2].name[5:14])} " in done.stdout
    assert same_weights(weights(output), weights(reference))


def test_finished_run_trains_nothing_and_leaves_a_model(unbroken, tmp_path):
    trainer, reference, reference_ledger = unbroken
    output = tmp_path / "out"
    shutil.copytree(reference, output)
    manifest = (output / "manifest.txt").read_text()
    shutil.rmtree(output / "model")
    done = start(trainer, output, f"--ledger={tmp_path / 'ledger'}")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ledger").exists() and (output / "model" / "saved_model.pb").exists()
    assert same_weights(weights(output), weights(reference)) and manifest in (output / "manifest.txt").read_text()


@pytest.mark.parametrize("unbroken", ["taxifare"], indirect=True)
class TestRefusals:
    """One trainer shows them for both: the code is the runtime's."""

    def test_other_hyperparameter(self, unbroken):
        _, output, _ = unbroken
        refused = start("taxifare", output, "--lr=0.1")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
        for part in ("--lr", "0.002", "0.1", "--output_dir", "--start_over"):
            assert part in refused.stderr

    def test_other_data(self, unbroken, tmp_path):
        data = tmp_path / "train.csv"
        sample = Path("taxifare/tests/data/taxi-train.csv").read_text()
        data.write_text(sample)
        flags = [f"--train_data_path={data}", "--eval_data_path=taxifare/tests/data/taxi-valid.csv", "--epochs=1", "--num_evals=1"]
        flags.append("--features=lab")
        assert start("taxifare", tmp_path / "out", *flags).returncode == 0
        data.write_text(sample.replace("2.5,", "2.6,", 1) if sample.startswith("2.5,") else sample[sample.index("\n") + 1 :])
        refused = start("taxifare", tmp_path / "out", *flags)
        assert refused.returncode == 2 and str(data) in refused.stderr and "sha256" in refused.stderr

    def test_other_source(self, unbroken, tmp_path):
        for name in ("taxifare", "vertex_runtime"):
            shutil.copytree(name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        flags = [f"--output_dir={tmp_path / 'out'}", "--features=lab", "--epochs=1", "--num_evals=1"]
        run = lambda: forked.run("taxifare.trainer.task", flags, os.environ, tmp_path, timeout=180)  # noqa: E731
        assert run().returncode == 0
        features = tmp_path / "taxifare" / "trainer" / "features.py"
        features.write_text(features.read_text() + "\n# only a comment\n")
        assert run().returncode == 0
        features.write_text(features.read_text() + "\nUNUSED = 1\n")
        refused = run()
        assert refused.returncode == 2 and "source" in refused.stderr and "--start_over" in refused.stderr

    @pytest.mark.slow
    def test_more_examples_go_on(self, unbroken, tmp_path):
        output = tmp_path / "out"
        assert start("taxifare", output, "--features=lab", "--num_examples_to_train_on=1280", "--epochs=1").returncode == 0
        more = start("taxifare", output, "--features=lab", "--num_examples_to_train_on=1920", "--epochs=1")
        assert more.returncode == 0 and "resuming from step 20 of 30" in more.stdout
        assert "from 1280 to 1920 examples: the learning-rate schedule changes" in more.stderr
        # By the other flag that sets the length, and the batch's default.
        by_epochs = start("taxifare", output, "--features=lab", "--epochs=2")
        assert by_epochs.returncode == 0 and "training goes on from 1920 to " in by_epochs.stderr, by_epochs.stderr

    def test_start_over_moves_only_our_files(self, unbroken, tmp_path):
        output = tmp_path / "out"
        shutil.copytree(unbroken[1], output)
        (output / "logs" / "notes.txt").write_text("mine")  # not in checkpoints, which must be left empty and still be there
        done = start("taxifare", output, "--lr=0.1", "--start_over")
        assert done.returncode == 0, done.stderr
        (aside,) = tmp_path.glob("out.before-*")
        assert (aside / "model" / "saved_model.pb").exists() and list((aside / "checkpoints").glob("ckpt-*.index"))
        assert (output / "logs" / "notes.txt").read_text() == "mine"
        refused = start("taxifare", output, "--start_over", CLOUD_ML_JOB_ID="1")
        assert refused.returncode == 2 and "--start_over" in refused.stderr

    def test_second_live_run(self, unbroken, tmp_path):
        output = tmp_path / "out"
        command = [forked.interpreter(), "-m", "taxifare.trainer.task", f"--output_dir={output}", "--epochs=2000", "--features=lab"]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: list(output.glob("checkpoints/ckpt-*")) or list(output.glob("run.json")), 180)
            refused = start("taxifare", output)
            assert refused.returncode == 2 and "host " in refused.stderr
            pid = int(re.search(r"pid (\d+)", refused.stderr)[1])
            assert alive(pid)
        finally:
            first.kill()
            first.wait()
        wait_for(lambda: not alive(pid))
        again = start("taxifare", output, "--epochs=2000", "--features=lab", TRAINER_KILL="step=1,signal=TERM")
        assert "in use" not in again.stderr  # a killed run leaves no lock behind

    def test_files_of_others_are_kept(self, unbroken, tmp_path):
        output = tmp_path / "out"
        (output / "model").mkdir(parents=True)
        (output / "model" / "thesis.txt").write_text("mine")
        refused = start("taxifare", output)
        assert refused.returncode == 2 and "thesis.txt" in refused.stderr
        assert (output / "model" / "thesis.txt").read_text() == "mine"

    @pytest.mark.slow
    def test_full_disk_keeps_the_newest_good_checkpoint(self, unbroken, tmp_path):
        """The limit on a file's size stands for the full disk: it bites for root too."""
        output = tmp_path / "out"
        killed = start("taxifare", output, TRAINER_KILL="step=30,signal=KILL")
        assert killed.returncode == -signal.SIGKILL
        before = sorted(path.name for path in (output / "checkpoints").glob("ckpt-*"))
        limited = (
            "import resource, runpy, sys; sys.argv = sys.argv[1:]; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000));"
            "runpy.run_module('taxifare.trainer.task', run_name='__main__')"
        )
        command = [sys.executable, "-c", limited, "task", f"--output_dir={output}", *COMMON, *FLAGS["taxifare"]]
        full = subprocess.run(command, capture_output=True, text=True)
        assert full.returncode == 1 and "cannot write a checkpoint" in full.stderr and "Traceback" not in full.stderr, full.stderr
        assert set(before) <= {path.name for path in (output / "checkpoints").glob("ckpt-*")}
        assert start("taxifare", output).returncode == 0
