"""Cloud Storage: copies in both directions, the lock and the manifest of a run, each with faults; TensorFlow's own `gs://`.

The default suite asks the project's own local service, the slow tests an emulator from the package index, both through
a proxy that answers 503, cuts, loses, shortens, damages and delays.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from storage_stand_in import fake_gcs_server, google_names, proxied
from test_local_support import wait_for
from test_serve_support import Service

storage = pytest.importorskip("google.cloud.storage")

from vertex_runtime import bucket_lock, bucket_manifest, outputs  # noqa: E402
from vertex_runtime.environment import Environment  # noqa: E402
from vertex_runtime.errors import UserError  # noqa: E402
from vertex_submit import copy_files as copying  # noqa: E402
from vertex_submit import transfer  # noqa: E402

NUMBERS = itertools.count(1)
# What may befall requests on the way up and down; the client, or another attempt, must mend it.
UP = ("refuse", "lose", "cut", "slow")
DOWN = ("refuse", "lose", "cut", "shorten", "damage", "slow")


@pytest.fixture(scope="module", params=["own service", pytest.param("fake-gcs-server", marks=pytest.mark.slow)])
def emulator(request, tmp_path_factory):
    if request.param == "own service":
        service = Service(tmp_path_factory.mktemp("service"), "--no_token")
        yield service.endpoint.url
        service.stop()
    else:
        with fake_gcs_server() as url:
            yield url


@pytest.fixture
def proxy(emulator, monkeypatch):
    with proxied(emulator) as found:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.url)
        monkeypatch.setenv("NO_PROXY", "*")
        yield found


@pytest.fixture
def bucket(proxy):
    return storage.Client().create_bucket(f"storage-test-{next(NUMBERS)}")


@pytest.fixture
def client(bucket):
    return bucket.client


def copy(*words: object) -> int:
    return copying.main([str(word) for word in words])


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# ------------------------------------------------------------------ up and down


@pytest.mark.parametrize("fault", UP)
@pytest.mark.parametrize("size", [1000, 900_000])
def test_an_upload_survives(fault, size, bucket, client, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PIECE", 1 << 18)  # the larger one goes in pieces
    (tmp_path / "file").write_bytes(content(size))
    proxy.inject(fault, "^(POST|PUT) /(upload/|resumable)", times=2)
    proxy.inject(fault, "^PUT .*upload_id", times=1)
    (said,) = transfer.upload(client, {tmp_path / "file": f"gs://{bucket.name}/a/file"})
    assert said.startswith("uploaded to") and bucket.blob("a/file").download_as_bytes() == content(size)
    assert any(each.seen for each in proxy.faults)
    (again,) = transfer.upload(client, {tmp_path / "file": f"gs://{bucket.name}/a/file"})
    assert again.endswith("is there already, the same bytes")


@pytest.mark.parametrize("fault", DOWN)
def test_a_download_survives(fault, bucket, client, proxy, tmp_path):
    bucket.blob("a/file").upload_from_string(content(3 << 20))
    injected = proxy.inject(fault, "^GET .*alt=media", times=2)
    (said,) = transfer.download(client, f"gs://{bucket.name}/a", tmp_path / "down")
    assert injected.seen == 2 or (fault == "slow" and injected.seen == 1)
    assert said.startswith("downloaded") and (tmp_path / "down" / "file").read_bytes() == content(3 << 20)
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["file"]


def test_a_download_goes_on_where_another_process_stopped(bucket, client, proxy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    bucket.blob("file").upload_from_string(content(3 << 20))
    proxy.inject("shorten", "^GET .*alt=media")
    down = proxy.inject("refuse", "^GET .*alt=media", times=10_000)
    assert copy(f"gs://{bucket.name}/file", tmp_path / "file") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"gs://{bucket.name}/file: not downloaded" in said and "Start again" in said
    assert not (tmp_path / "file").exists(), "half a file has not the name of a whole one"
    (part,) = tmp_path.iterdir()
    got = part.stat().st_size
    assert 0 < got < 3 << 20
    down.times = 0
    assert copy(f"gs://{bucket.name}/file", tmp_path / "file") == 0
    assert f"bytes={got}-" in proxy.requests[-1] and (tmp_path / "file").read_bytes() == content(3 << 20)


@pytest.mark.slow
def test_many_files_in_both_directions_with_what_completes_them_last(bucket, proxy, tmp_path, capsys):
    names = [f"model/variables/{i}" for i in range(30)] + ["model/saved_model.pb", "manifest.json", "model/a b+ü"]
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(name.encode() * 100)
    (tmp_path / "run" / ".lock").write_text("not copied")
    for fault in ("refuse", "cut", "lose"):
        proxy.inject(fault, "^POST /upload", times=4)
    assert copy(tmp_path / "run", f"gs://{bucket.name}/run") == 0
    assert sorted(blob.name for blob in bucket.list_blobs()) == sorted(f"run/{name}" for name in names)
    created = {blob.name: blob.generation for blob in bucket.list_blobs()}
    assert sorted(created, key=created.get)[-2:] == ["run/model/saved_model.pb", "run/manifest.json"]
    for fault in ("refuse", "shorten", "damage"):
        proxy.inject(fault, "^GET .*alt=media", times=2)
    assert copy(f"gs://{bucket.name}/run", tmp_path / "back") == 0
    assert f"{len(names)} files: " in capsys.readouterr().out
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == name.encode() * 100


def test_nothing_else_is_replaced(bucket, client, proxy, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    bucket.blob("file").upload_from_string("theirs")
    where = f"gs://{bucket.name}/file"
    for words in ((tmp_path / "file", where), (where, tmp_path / "file")):
        assert copy(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "holds something else" in said and "--overwrite" in said
    assert (tmp_path / "file").read_text() == "mine" and bucket.blob("file").download_as_text() == "theirs"
    # What somebody else puts there after the first look is not replaced either.
    proxy.inject("", "^POST /upload", before=lambda: bucket.blob("new").upload_from_string("quicker"))
    with pytest.raises(transfer.NotReplaced):
        list(transfer.upload(client, {tmp_path / "file": f"gs://{bucket.name}/new"}))
    assert bucket.blob("new").download_as_text() == "quicker"
    assert copy("--overwrite", where, tmp_path / "file") == 0 and (tmp_path / "file").read_text() == "theirs"


@pytest.mark.parametrize(
    "words, code, expected",
    [
        (("a", "b"), 2, "give one gs://… and one local path; got a and b"),
        (("gs://x", "gs://y"), 2, "give one gs://"),
        (("nothing", "gs://bucket-1/x"), 2, "nothing: there is no such file"),
        (("gs://Upper/x", "here"), 2, "bucket name 'Upper'"),
        (("gs://no-such-bucket-1/x", "here"), 1, "gs://no-such-bucket-1/x: not downloaded: 404"),
    ],
)
def test_mistakes_are_one_line(words, code, expected, proxy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert copy(*words) == code
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_run_that_is_not_whole_is_not_taken_for_whole(bucket, tmp_path, capsys):
    bucket.blob("run/model/saved_model.pb").upload_from_string("model")
    bucket.blob("run/model/other").upload_from_string("other")
    blob = bucket.blob("run/manifest.json")
    blob.upload_from_string(json.dumps({"complete": False, "files": {"model/saved_model.pb": {}}}))
    run = f"gs://{bucket.name}/run"
    assert copy(run, tmp_path / "down") == 1 and "the run is not complete" in capsys.readouterr().err
    crc = bucket.get_blob("run/model/other").crc32c
    files = {"model/saved_model.pb": {"bytes": 5}, "model/other": {"bytes": 5, "crc32c": crc}}
    blob.upload_from_string(json.dumps({"complete": True, "files": files | {"model/gone": {"bytes": 1}}}))
    assert copy(run, tmp_path / "down") == 1 and "model/gone is not what the manifest says (it is not there)" in capsys.readouterr().err
    blob.upload_from_string(json.dumps({"complete": True, "files": files}))
    bucket.blob("run/model/other").upload_from_string("othar")
    assert copy(run, tmp_path / "down") == 1 and f"instead of {crc}" in capsys.readouterr().err
    assert not (tmp_path / "down").exists()
    bucket.blob("run/model/other").upload_from_string("other")
    for other in ("7", '{"complete": true, "files": [1]}', '{"complete": true, "files": {"x": 7}}'):
        bucket.blob("run/model/manifest.json").upload_from_string(other)  # somebody else's file of that name
    assert copy(run, tmp_path / "down") == 0 and (tmp_path / "down" / "model" / "other").read_text() == "other"


# ------------------------------------------------------------------ the lock


def keeper(uri: str, **owner: object) -> bucket_lock.Keeper:
    mine = bucket_lock.describe_owner(Environment(job=str(owner.pop("job", "7"))))
    return bucket_lock.Keeper(bucket_lock.CloudStore(uri), {**mine, **owner})


def test_one_of_many_gets_the_lock(bucket):
    uri, won, refused = f"gs://{bucket.name}/run/.lock", [], []

    def take(i: int) -> None:
        one = keeper(uri, job=i)
        try:
            one.acquire()
            won.append(one)
        except bucket_lock.Refused as holder:
            refused.append(str(holder))

    threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 7
    assert all(f"job {won[0].owner['job']}, replica chief-0, host " in text for text in refused)
    won[0].release()
    assert bucket.get_blob("run/.lock") is None


@pytest.mark.parametrize(
    "owner, reason",
    [
        ({"pid": 2**22 + 1, "pid_start": "1"}, "its process is gone"),
        ({"machine": "another", "job": 9}, "the service started this replica again"),
        ({"machine": "another", "job": 8}, None),
        ({"machine": "another", "job": 9, "replica": "worker-1"}, None),
        ({}, None),
    ],
)
def test_a_dead_owners_lock_is_taken_over(owner, reason, bucket):
    uri = f"gs://{bucket.name}/run/.lock"
    before, mine = keeper(uri, **owner), keeper(uri, job=9)
    before.acquire()
    if reason is None:
        with pytest.raises(bucket_lock.Refused):
            mine.acquire()
        return
    assert reason in mine.acquire()
    with pytest.raises(bucket_lock.Refused, match="job 9"):
        before.beat()
    before.release()  # is not its own any more
    assert bucket.get_blob("run/.lock").generation == mine.generation


def test_a_lock_without_heartbeats_is_taken_over_by_the_servers_clock(bucket, monkeypatch):
    uri = f"gs://{bucket.name}/run/.lock"
    before, mine = keeper(uri, machine="another", heartbeat="2001-01-01"), keeper(uri, job=9)
    before.acquire()
    with pytest.raises(bucket_lock.Refused):
        mine.acquire()
    first = bucket.get_blob("run/.lock").updated
    time.sleep(0.1)
    before.beat()
    assert bucket.get_blob("run/.lock").updated > first, "a heartbeat is the server's time, whatever the owner's clock says"
    with pytest.raises(bucket_lock.Refused):
        mine.acquire()
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 0.2)
    time.sleep(0.5)
    assert "its last heartbeat is" in mine.acquire()
    assert [blob.name for blob in bucket.list_blobs()] == ["run/.lock"], "no trace of the clock"


@pytest.mark.parametrize("fault", ["refuse", "lose", "cut", "slow"])
def test_the_lock_survives(fault, bucket, proxy):
    """An answer that is lost makes the client ask again, and meet its own object."""
    one = keeper(f"gs://{bucket.name}/run/.lock")
    proxy.inject(fault, "^POST /upload")
    assert one.acquire() is None
    proxy.inject(fault, "^POST /upload")
    one.beat()
    assert bucket.get_blob("run/.lock").generation == one.generation
    bucket.blob("run/.lock").delete()
    one.beat()  # somebody removed it by hand
    proxy.inject(fault, "^DELETE")
    one.release()
    assert bucket.get_blob("run/.lock") is None


HOLD = """
import sys, time
from vertex_runtime.bucket_lock import BucketLock, describe_owner
from vertex_runtime.environment import Environment
from vertex_runtime.errors import UserError
try:
    lock = BucketLock(sys.argv[1], describe_owner(Environment(job=sys.argv[2])))
except UserError as error:
    sys.exit(str(error))
print(lock.process.pid, flush=True)
if len(sys.argv) > 3:
    time.sleep(300)
lock.close()
"""


def hold(bucket, job: str, *stay: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, f"gs://{bucket.name}/run", job, *stay]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def test_a_process_holds_the_lock_while_it_lives(bucket):
    first = hold(bucket, "1", "stay")
    try:
        helper = int(first.stdout.readline())
        second = hold(bucket, "2")
        said = second.communicate(timeout=120)[1]
        assert second.returncode == 1 and said.count("\n") == 1
        for part in (f"gs://{bucket.name}/run is in use by a live run", "job 1, replica chief-0", f"pid {first.pid}", "--output_dir"):
            assert part in said
        os.kill(helper, signal.SIGKILL)  # whoever did that, the lock is kept on
        generation = bucket.get_blob("run/.lock").generation
        wait_for(lambda: bucket.get_blob("run/.lock").generation != generation)
        assert "is started again" in first.stderr.readline()
        first.kill()
        wait_for(lambda: bucket.get_blob("run/.lock") is None)  # by the process that keeps it
    finally:
        first.kill()
    third = hold(bucket, "3")
    assert third.communicate(timeout=120)[1] == "" and third.returncode == 0
    assert bucket.get_blob("run/.lock") is None


# ------------------------------------------------------------------ the manifest, and the lock without preconditions


def test_outputs_on_another_remote_file_system(tmp_path, monkeypatch, capsys):
    """`file://` stands for a file system of TensorFlow's that google-cloud-storage does not know."""
    monkeypatch.setattr(bucket_manifest, "PAUSE_SECONDS", 0.0)
    root, env = f"file://{tmp_path}/run", Environment()
    places = outputs.Outputs(f"{root}/model", f"{root}/checkpoints", f"{root}/logs", root)
    with outputs.prepare(places, False, env):
        assert "file:// is not Cloud Storage" in capsys.readouterr().err
        with pytest.raises(UserError, match="is in use by a live run"):
            outputs.prepare(places, False, env)
        outputs.write_json(root, "run.json", {"state": "running"})
        outputs.record(root, f"{root}/model/saved_model.pb", f"{root}/checkpoints/gone")
        (tmp_path / "run" / "model" / "saved_model.pb").write_text("model")
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["complete"] is False
        outputs.seal(root)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    size = (tmp_path / "run" / "run.json").stat().st_size
    assert manifest["complete"] and manifest["files"] == {"model/saved_model.pb": {"bytes": 5}, "run.json": {"bytes": size}}
    assert not (tmp_path / "run" / ".lock").exists()
    (tmp_path / "run" / "model" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="mine.txt was not written by a run"):
        outputs.prepare(places, False, env)
    (tmp_path / "run" / "model" / "mine.txt").rename(tmp_path / "run" / "mine.txt")
    with outputs.prepare(places, True, env):
        (aside,) = tmp_path.glob("run.before-*")
        moved = sorted(str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file())
        assert moved == ["manifest.json", "model/saved_model.pb", "run.json"]
        assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


def test_paths_in_a_manifest():
    records = "gs://bucket/out/checkpoints"
    for path in ("gs://bucket/out/model/saved_model.pb", "gs://bucket/out/checkpoints/ckpt-1.index", "gs://other/x"):
        assert bucket_manifest.absolute(bucket_manifest.relative(path, records), records) == path
    assert bucket_manifest.relative("gs://bucket/out/model/x", records) == "../model/x"


def test_a_mounted_bucket_is_locked_as_its_bucket(monkeypatch):
    assert outputs.bucket_of("/gcs/bucket/run") is None, "a plain folder, unless it is a mount"
    monkeypatch.setattr(os.path, "ismount", lambda path: path == "/gcs")
    assert outputs.bucket_of("/gcs/bucket/run") == "gs://bucket/run" == outputs.bucket_of("gs://bucket/run")


# ------------------------------------------------------------------ TensorFlow's own gs://

FLAGS = ("--batch_size=64", "--epochs=6", "--num_evals=3", "--checkpoint_steps=10", "--early_stopping=4", "--lr=0.002")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    with fake_gcs_server() as url, google_names(url, tmp_path_factory.mktemp("cloud")) as found:
        yield found


@pytest.fixture
def objects(cloud, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.emulator)
    cloud.proxy.faults.clear()
    return storage.Client().create_bucket(f"gs-test-{next(NUMBERS)}")


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "taxifare.trainer.task", *FLAGS, *flags]


def weights(bucket, folder: str, path: Path) -> dict[str, bytes]:
    """Return the tensors of the newest checkpoint below a bucket's folder."""
    import tensorflow as tf

    for blob in bucket.list_blobs(prefix=f"{folder}/ckpt-"):
        assert "tempstate" not in blob.name
        blob.download_to_filename(str(path / blob.name.rpartition("/")[2]))
    newest = sorted(path.glob("ckpt-*.index"))[-1]
    reader = tf.train.load_checkpoint(str(newest)[: -len(".index")])
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map() if name != "state_json"}


@pytest.mark.slow
def test_killed_runs_on_gs_end_like_an_unbroken_one(cloud, objects, tmp_path):
    """Kills between checkpoints, while one is being written, in the export; meanwhile the network fails now and then."""
    whole, broken = f"gs://{objects.name}/whole", f"gs://{objects.name}/broken"
    cloud.run(*command(f"--output_dir={whole}"))
    for place in ("step=35", "checkpoint=2", "evaluation=2", "export=1"):
        faults = [cloud.proxy.inject(kind, "upload_id|^GET /gs-test", times=2) for kind in ("refuse", "lose", "slow")]
        killed = cloud.run(*command(f"--output_dir={broken}"), code=-signal.SIGKILL, TRAINER_KILL=f"{place},signal=KILL")
        assert any(fault.seen for fault in faults), killed.stdout
        for fault in faults:
            fault.times = 0
        manifest = json.loads(objects.blob("broken/manifest.json").download_as_bytes())
        assert manifest["complete"] is False
    assert copying.main([broken, str(tmp_path / "not-whole")]) == 1
    done = cloud.run(*command(f"--output_dir={broken}"))
    assert re.search(r"resuming from step \d+ of", done.stdout)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert weights(objects, "whole/checkpoints", tmp_path / "a") == weights(objects, "broken/checkpoints", tmp_path / "b")
    manifest = json.loads(objects.blob("broken/manifest.json").download_as_bytes())
    assert manifest["complete"] and all({"bytes", "crc32c"} <= file.keys() for file in manifest["files"].values())
    assert {"run.json", "metrics.json", "model/saved_model.pb"} <= manifest["files"].keys()
    there = {blob.name.removeprefix("broken/") for blob in objects.list_blobs(prefix="broken/checkpoints/ckpt-")}
    assert there == {name for name in manifest["files"] if name.startswith("checkpoints/")} and len(there) >= 6
    assert objects.get_blob("broken/.lock") is None
    row = json.loads(re.search(r"predict: echo '(.*?)' \|", done.stdout)[1])
    ask = [sys.executable, str(ROOT / "vertex_runtime" / "predict.py")]
    words = cloud.command([*ask, f"{broken}/model"])
    asked = subprocess.run(words, input=json.dumps(row), env={**os.environ, **cloud.variables()}, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert copying.main([broken, str(tmp_path / "down")]) == 0
    local = subprocess.run([*ask, str(tmp_path / "down" / "model")], input=json.dumps(row), capture_output=True, text=True)
    assert json.loads(asked.stdout) == json.loads(local.stdout)


@pytest.mark.slow
def test_a_second_run_on_gs_is_refused_while_the_first_lives(cloud, objects):
    """By the service's variables, as in a job; killed with all of its processes, it is followed by a restart of its replica."""
    base = f"gs://{objects.name}/job"
    service = {f"AIP_{name}": f"{base}/{folder}" for name, folder in
               (("MODEL_DIR", "model"), ("CHECKPOINT_DIR", "checkpoints"), ("TENSORBOARD_LOG_DIR", "logs"))}  # fmt: skip
    env = {**os.environ, **cloud.variables(), **service}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    data = [f"--{name}_data_path={ROOT}/taxifare/tests/data/taxi-{file}.csv" for name, file in (("train", "train"), ("eval", "valid"))]
    endless = command("--epochs=100000", *data)
    words = cloud.command(endless)
    first = subprocess.Popen(words, env={**env, "CLOUD_ML_JOB_ID": "11"}, **pipes)
    try:
        wait_for(lambda: any(blob.name.endswith(".index") for blob in objects.list_blobs(prefix="job/checkpoints/ckpt-")), 120)
        second = cloud.run(*endless, code=2, CLOUD_ML_JOB_ID="12", **service)
        (line,) = second.stderr.splitlines()
        assert "in use by a live run (job 11, replica chief-0" in line and "--output_dir" in line
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert objects.get_blob("job/checkpoints/.lock") is not None, "what kept the lock was killed, too"
    again = {**service, "CLOUD_ML_JOB_ID": "11", "TRAINER_KILL": "checkpoint=1,signal=TERM"}
    third = cloud.run(*endless, code=-signal.SIGTERM, **again)
    assert "so it is taken over" in third.stdout + third.stderr and "resuming from step" in third.stdout
    wait_for(lambda: objects.get_blob("job/checkpoints/.lock") is None)


@pytest.mark.slow
def test_start_over_on_gs_moves_what_the_manifest_names(cloud, objects):
    root = f"gs://{objects.name}/again"
    cloud.run(*command(f"--output_dir={root}"))
    objects.blob("again/mine.txt").upload_from_string("mine")
    before = {blob.name for blob in objects.list_blobs(prefix="again/") if not blob.name.endswith("/")}
    done = cloud.run(*command(f"--output_dir={root}", "--start_over", "--lr=0.004"))
    assert "--start_over moved" in done.stdout and objects.blob("again/mine.txt").download_as_text() == "mine"
    moved = {re.sub(r"again\.before-[\d-]+/", "again/", blob.name) for blob in objects.list_blobs(prefix="again.before-")}
    assert {name for name in moved if not name.endswith("/")} == before - {"again/mine.txt"}
