"""`run --debug`: a replica under debugpy, attached to by the protocol that editors speak, while the others wait for it."""

from __future__ import annotations

import itertools
import json
import re
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
from test_local_support import call, environ, result, start, wait_for, write_job, write_script

pytest.importorskip("debugpy", reason="debugpy is not installed")
pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")

from vertex_local.errors import UserError  # noqa: E402
from vertex_local.local import debugging  # noqa: E402
from vertex_local.local.ports import Ports  # noqa: E402

ATTACH = ("name", "type", "request", "justMyCode", "subProcess", "pathMappings")
SAMPLE = ROOT / "taxifare" / "tests" / "data"


class Editor:
    """A client of the Debug Adapter Protocol, as an editor is one, that attaches as its launch.json says."""

    def __init__(self, configuration: dict):
        connect, here = configuration["connect"], [each for each in configuration["pathMappings"] if "${" not in each["localRoot"]]
        configuration = {**configuration, "pathMappings": here}  # an editor would know its workspace's folder
        self.socket = wait_for(lambda: _connect(connect["host"], connect["port"]), 60)
        self.stream, self.numbers, self.events = self.socket.makefile("rb"), itertools.count(1), []
        self.ask("initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
        self.attach = self.send("attach", {key: configuration[key] for key in ATTACH})
        self.wait("initialized")

    def __enter__(self) -> Editor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def send(self, command: str, arguments: dict) -> int:
        number = next(self.numbers)
        data = json.dumps({"seq": number, "type": "request", "command": command, "arguments": arguments}).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return number

    def message(self) -> dict:
        length = 0
        while line := self.stream.readline().strip():
            length = int(line.partition(b":")[2])
        assert length, "the adapter has hung up"
        return json.loads(self.stream.read(length))

    def answer(self, number: int) -> dict:
        while True:
            found = self.message()
            if found["type"] == "event":
                self.events.append(found)
            elif found["type"] == "response" and found["request_seq"] == number:
                assert found["success"], found
                return found.get("body") or {}

    def ask(self, command: str, **arguments: object) -> dict:
        return self.answer(self.send(command, arguments))

    def wait(self, event: str) -> dict:
        while True:
            for found in self.events:
                if found["event"] == event:
                    self.events.remove(found)
                    return found.get("body") or {}
            found = self.message()
            if found["type"] == "event":
                self.events.append(found)

    def go(self, path: Path, line: int) -> dict:
        """Set a breakpoint, let the program run into it, and return the frame in which it stands."""
        set_ = self.ask("setBreakpoints", source={"path": str(path)}, breakpoints=[{"line": line}])
        assert len(set_["breakpoints"]) == 1
        self.ask("configurationDone")
        self.answer(self.attach)
        self.thread = self.wait("stopped")["threadId"]
        return self.ask("stackTrace", threadId=self.thread)["stackFrames"][0]

    def value(self, frame: dict, expression: str) -> str:
        return self.ask("evaluate", expression=expression, frameId=frame["id"], context="watch")["result"]

    def leave(self, path: Path) -> None:
        """Take the breakpoints of a file away and let the program run to its end."""
        self.ask("setBreakpoints", source={"path": str(path)}, breakpoints=[])
        self.ask("continue", threadId=self.thread)
        self.ask("disconnect", terminateDebuggee=False)


def _connect(host: str, port: int) -> socket.socket | None:
    try:
        return socket.create_connection((host, port), timeout=60)
    except OSError:
        return None


def configuration(folder: Path, job_id: str) -> dict:
    """Return the configuration of the launch.json in a job's folder, once it is there."""
    path = folder / ".vertex_local" / "jobs" / job_id / "launch.json"
    return wait_for(lambda: path.exists() and json.loads(path.read_text())["configurations"][0], 60)


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_only_the_named_replica_waits_and_stops_at_a_breakpoint(tmp_path):
    """The chief is done long before, the grace is none and the job's time is up: all of it waits for whoever debugs."""
    script = write_script(tmp_path, "own.py", "secret = 42 + attempt\nprint('secret', secret)\n")
    job = write_job(tmp_path, [(script, 1), (script, 2)], scheduling={"timeout": "1s"})
    with start(tmp_path, job, "--job_id=j", "--debug=workerpool1-1", "--grace=0") as process:
        found = configuration(tmp_path, "j")
        assert found["request"] == "attach" and found["pathMappings"][0]["remoteRoot"] == str(tmp_path)
        with Editor(found) as editor:
            frame = editor.go(tmp_path / script, line_of(tmp_path / script, "print('secret'"))
            assert frame["source"]["path"] == str(tmp_path / script)
            assert editor.value(frame, "secret") == "43" and editor.value(frame, "me") == "'workerpool1-1'"
            editor.leave(tmp_path / script)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    said = re.search(r"debug: workerpool1-1 waits on 127.0.0.1:(\d+)", out)
    assert said and int(said[1]) == found["connect"]["port"] and f"copy it to {tmp_path}/.vscode/launch.json" in out
    assert out.index("debug: workerpool1-1 waits") < out.index("[workerpool1-1] secret 43")
    commands = {name: replica["command"] for name, replica in result(tmp_path, "j")["replicas"].items()}
    assert [name for name, command in commands.items() if "debugpy" in command] == ["workerpool1-1"]


@pytest.mark.parametrize(
    "value, says",
    [
        ("workerpool1", "takes REPLICA"), ("workerpool1-0:80", "1024 to 65535"), ("workerpool1-5", "no such replica"),
        ("workerpool2-0", "write it without a shell"),
    ],
)  # fmt: skip
def test_what_cannot_be_debugged_is_one_line(tmp_path, value, says):
    shell = {"replicaCount": 1, "containerSpec": {"imageUri": "host/any:1", "command": ["sh", "-c", "true"]}}
    write_script(tmp_path, "own.py", "")
    done = call(tmp_path, write_job(tmp_path, [("own.py", 1), ("own.py", 1), shell]), f"--debug={value}")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / ".vertex_local" / "jobs").exists(), "it is said before there is a job"


def test_jobs_that_start_at_once_wait_on_ports_of_their_own():
    """Between the choice of a port and debugpy's listening there it is in use, too."""
    debug = debugging.Debug("workerpool0-0")
    with closing(Ports()) as one, closing(Ports()) as other:
        first, second = debugging.choose_port(debug, one.take), debugging.choose_port(debug, other.take)
        assert first != second
        with pytest.raises(UserError, match="is in use; give another port"):
            debugging.choose_port(debugging.Debug("workerpool0-0", second), one.take)


def test_a_port_in_use_and_a_missing_debugpy_are_named(tmp_path):
    write_script(tmp_path, "own.py", "")
    job = write_job(tmp_path, [("own.py", 1)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = call(tmp_path, job, f"--debug=workerpool0-0:{taken.getsockname()[1]}")
    assert done.returncode == 2 and "is in use; give another port" in done.stderr
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = call(tmp_path, job, "--debug=workerpool0-0", f"--python={bare}")
    assert done.returncode == 2 and f"{bare} has no debugpy: pip install debugpy" in done.stderr


def test_python_with_a_module_a_script_or_code_is_wrapped():
    listen = ("-m", "debugpy", "--listen", "127.0.0.1:5678", "--wait-for-client", "--configure-subProcess", "False")
    for before, after in (
        (("/usr/bin/python3",), ("-m", "a.b", "--x")), (("python", "-u", "-X", "dev"), ("task.py",)), (("python3.11",), ("-c", "pass"))
    ):  # fmt: skip
        assert debugging.wrap((*before, *after), 5678) == (*before, *listen, *after)
    for argv in (("python", "-u"), ("python", "-"), ("bash", "x.sh")):
        with pytest.raises(UserError, match="--debug takes a replica whose command"):
            debugging.wrap(argv, 5678)


def test_packages_and_images_are_mapped_to_the_checkout(tmp_path):
    site = tmp_path / "site"
    for name in ("taxifare", "own-1.dist-info", "elsewhere"):
        (site / name).mkdir(parents=True)
    found = debugging.launch_configuration("workerpool0-0", 5678, debugging.in_process(ROOT, site))["configurations"][0]
    package = {"localRoot": "${workspaceFolder}/taxifare", "remoteRoot": str(site / "taxifare")}
    assert found["pathMappings"] == [package, {"localRoot": "${workspaceFolder}", "remoteRoot": str(ROOT)}]
    assert debugging.in_container("/app", tmp_path) == {str(tmp_path): str(tmp_path), "/app": "${workspaceFolder}"}


@pytest.mark.image
def test_a_script_in_a_container_is_debugged(tmp_path):
    """The image has no debugpy: this interpreter's is mounted in it."""
    from vertex_local.local import engines

    image = "localhost/vertex-trainer-tests/python:1"  # tests/test_images.py makes it
    try:
        engine = engines.find_engine()
    except engines.ContainerError as error:
        pytest.skip(str(error))
    if engine.find(image) is None:
        pytest.skip(f"{engine.name} has no {image}")
    script = tmp_path / ".vertex_local" / "buckets" / "bucket" / "own.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys\nsecret = 42\nprint('secret', secret, sys.version)\n")
    container = {"imageUri": image, "command": ["python3", "gs://bucket/own.py"]}
    job = write_job(tmp_path, [{"replicaCount": 1, "containerSpec": container}])
    with start(tmp_path, job, "--job_id=j", "--debug=workerpool0-0", "--containers") as process:
        with Editor(configuration(tmp_path, "j")) as editor:
            frame = editor.go(script, 3)
            assert frame["source"]["path"] == str(script) and editor.value(frame, "secret") == "42"
            editor.leave(script)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "secret 42" in out, out + err


@pytest.mark.slow
@pytest.mark.multiworker
def test_a_worker_of_a_cluster_is_debugged_in_its_model(tmp_path):
    """The chief waits for a worker that comes late and stands still, far longer than its own limits."""
    container = {
        "imageUri": "host/repo/taxifare:v1",
        "args": [f"--train_data_path={SAMPLE}/taxi-train.csv", f"--eval_data_path={SAMPLE}/taxi-valid.csv", "--num_evals=1",
                 "--num_examples_to_train_on=2400", "--startup_timeout=1", "--stall_minutes=0.02"],
    }  # fmt: skip
    pools = [{"replicaCount": 1, "containerSpec": container}] * 2
    job = write_job(tmp_path, pools, baseOutputDirectory={"outputUriPrefix": "gs://bucket/out"})
    model = ROOT / "taxifare" / "trainer" / "model.py"
    with start(tmp_path, job, "--job_id=j", "--debug=workerpool1-0", f"--project_dir={ROOT}", env=environ()) as process:
        found = configuration(tmp_path, "j")
        logs = tmp_path / ".vertex_local" / "jobs" / "j" / "logs" / "workerpool0-0.log"
        wait_for(lambda: logs.exists() and "strategy" not in logs.read_text() and process.poll() is None, 60)
        time.sleep(5)  # the chief's limits are 1 and 1.2 s: both pass while the worker waits
        with Editor(found) as editor:
            frame = editor.go(model, line_of(model, "rate = keras"))
            assert frame["name"] == "build_model" and frame["source"]["path"] == str(model)
            assert editor.value(frame, "hp.batch_size").isdecimal()
            time.sleep(5)
            editor.leave(model)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert result(tmp_path, "j")["restarts"] == 0
