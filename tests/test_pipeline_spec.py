"""Compiled pipelines without their environment: what is read, checked and refused, conditions, and programs as forks."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_local_support import alive, environ, wait_for

from vertex_local.__main__ import main
from vertex_local.errors import UserError
from vertex_local.job import pipeline_spec
from vertex_local.job.pipeline_spec import PipelineError
from vertex_local.pipelines import command, conditions, placeholders, python, spec, steps
from vertex_local.pipelines.forks import Fork, ForkServer
from vertex_local.pipelines.tasks import Task, Tasks, log_name

GOOGLE = "google_cloud_pipeline_components.container.v1"


def pipeline(*command: str, **parameters: dict) -> dict:
    """A compiled pipeline of one step."""
    return {
        "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.3", "pipelineInfo": {"name": "one"},
        "components": {"comp-step": {"executorLabel": "exec-step"}},
        "deploymentSpec": {"executors": {"exec-step": {"container": {"image": "host/any:1", "command": list(command)}}}},
        "root": {
            "dag": {"tasks": {"step": {"componentRef": {"name": "comp-step"}, "taskInfo": {"name": "step"}}}},
            "inputDefinitions": {"parameters": parameters},
        },
    }  # fmt: skip


# ------------------------------------------------------------------ specs and parameters


KNOWN = {
    "n": {"parameterType": "NUMBER_INTEGER"}, "rate": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 0.5},
    "name": {"parameterType": "STRING", "defaultValue": "x"}, "yes": {"parameterType": "BOOLEAN", "isOptional": True},
    "items": {"parameterType": "LIST", "defaultValue": []}, "table": {"parameterType": "STRUCT", "isOptional": True},
}  # fmt: skip


def test_text_becomes_what_the_parameters_take():
    one = pipeline("true", **KNOWN)
    given = [("n", "3"), ("rate", "1e-3"), ("name", "007"), ("yes", "True"), ("items", "[1, 2]"), ("table", '{"a": 1}')]
    values = pipeline_spec.Pipeline("one.yaml", "", one).values(given, {})
    assert values == {"n": 3, "rate": 0.001, "name": "007", "yes": True, "items": [1, 2], "table": {"a": 1}}
    spec.check_parameters(one, values)
    spec.check_parameters(one, {"n": 3.0})  # as JSON's numbers come over the wire


@pytest.mark.parametrize("name, text, told", [
    ("n", "3.5", "takes a whole number; got '3.5'"), ("n", "true", "takes a whole number"), ("rate", "fast", "takes a number; got 'fast'"),
    ("rate", "Infinity", "takes a number"), ("yes", "maybe", "takes true or false"), ("items", "{}", "takes a list in JSON"),
    ("table", "[", "takes an object in JSON"),
])  # fmt: skip
def test_text_of_another_type_is_refused(name, text, told):
    with pytest.raises(PipelineError, match=f"--parameter: {name}: {told}"):
        pipeline_spec.Pipeline("one.yaml", "", pipeline("true", **KNOWN)).values([(name, text)], {})


@pytest.mark.parametrize("values, told, field", [
    ({"n": 1, "m": 2}, "parameter 'm': the pipeline has none of that name; it has items, n, name", "runtimeConfig.parameterValues"),
    ({}, "parameter n: has no default and got no value", "runtimeConfig.parameterValues"),
    ({"n": "1"}, "parameter n: takes a whole number; got '1'", "runtimeConfig.parameterValues.n"),
])  # fmt: skip
def test_wrong_values_are_named_with_their_field(values, told, field):
    with pytest.raises(PipelineError, match=told) as caught:
        spec.check_parameters(pipeline("true", **KNOWN), values)
    assert caught.value.field == field


def test_what_cannot_run_here_is_said_before_anything_runs():
    spec.check(pipeline("python3", "-u", "-m", f"{GOOGLE}.custom_job.launcher"))
    bad = {
        "asks for a service that is not imitated here": pipeline("python3", "-u", "-m", f"{GOOGLE}.bigquery.query_job.launcher"),
        "gives no command": pipeline(),
        "is a containerized Python component": pipeline("python3", "-m", "kfp.dsl.executor_main"),
    }
    for told, one in bad.items():
        with pytest.raises(PipelineError, match=told) as caught:
            spec.check(one)
        assert caught.value.unsupported, told
    old, lost, named = pipeline("true"), pipeline("true"), pipeline("true")
    old["schemaVersion"], named["pipelineInfo"]["name"] = "1.0", "My Pipeline"
    del lost["components"]["comp-step"]
    for told, one in {"schemaVersion '1.0': takes 2.x": old, "is not in the spec": lost, "name 'My Pipeline': has": named}.items():
        with pytest.raises(PipelineError, match=told):
            spec.check(one)


@pytest.mark.parametrize("name, text, told", [
    ("none.yaml", None, "cannot be read: No such file"), ("job.yaml", "workerPoolSpecs: []", "is a job's file, no compiled pipeline"),
    ("bad.yaml", "a: [", "is neither YAML nor JSON"), ("pipeline.py", "import kfp", "compile it first"),
])  # fmt: skip
def test_files_that_hold_no_pipeline(tmp_path, capsys, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["pipeline", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and said.count("\n") == 1


def test_a_pipeline_job_in_json_and_the_platform_of_a_yaml_file_are_read(tmp_path):
    one = pipeline("true")
    (tmp_path / "job.json").write_text(json.dumps({"pipelineSpec": one, "runtimeConfig": {}}))
    (tmp_path / "two.yaml").write_text(f"{yaml.safe_dump(one)}\n---\nplatforms: {{kubernetes: {{}}}}\n")
    assert pipeline_spec.read(str(tmp_path / "job.json")).spec == pipeline_spec.read(str(tmp_path / "two.yaml")).spec == one


def test_steps_that_ask_for_explanations_are_named():
    one = pipeline("true")
    given = {
        "explanation_metadata": {"runtimeValue": {"constant": {"inputs": {"x": {}}}}},
        "explanation_parameters": {"runtimeValue": {"constant": {}}},
        "generate_explanation": {"runtimeValue": {"constant": True}},
        "explanation_metadata_artifact": {"componentInputParameter": "pipelinechannel--path"},
        "display_name": {"runtimeValue": {"constant": "explanation"}},
    }
    one["root"]["dag"]["tasks"]["step"]["inputs"] = {"parameters": given}
    asked = ["explanation_metadata", "generate_explanation", "explanation_metadata_artifact"]
    said = list(pipeline_spec.warnings(pipeline_spec.Pipeline("one.yaml", "", one), date(2026, 11, 29)))
    assert [line.partition(": Vertex AI has deprecated explanations")[0] for line in said] == [f"one.yaml: step.{name}" for name in asked]


def test_flags_that_are_wrong_start_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFP_PYTHON", raising=False)
    Path("one.yaml").write_text(yaml.safe_dump(pipeline("true", n=KNOWN["n"])))
    for flags, told in {
        ("--parameter", "m=1"): "one.yaml has no parameter 'm'; it has n.",
        ("--parameter", "n=x"): "--parameter: n: takes a whole number; got 'x'.",
        (): "--parameter: n is missing, and has no default: give --parameter n=…, a whole number.",
        ("--parameter", "n=1", "--parameter", "n=2"): "is given twice",
        ("--parameter", "n=1", "--pipeline_root", "/tmp/x"): "--pipeline_root: takes gs://bucket/folder",
        ("--parameter", "n=1", "--job_id", "Big"): "--job_id: has up to 128 small letters",
    }.items():  # fmt: skip
        assert main(["pipeline", "one.yaml", *flags]) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setattr(python, "_ROOT", tmp_path)
    assert main(["pipeline", "one.yaml", "--parameter", "n=1"]) == 2
    assert "pipelines need an environment with kfp" in capsys.readouterr().err
    monkeypatch.setenv("KFP_PYTHON", sys.executable)
    if python.versions(sys.executable)["kfp"] is None:
        assert main(["pipeline", "one.yaml", "--parameter", "n=1"]) == 2
        assert f"{sys.executable} has no kfp" in capsys.readouterr().err
    assert not Path(".vertex_local").exists()


@pytest.mark.parametrize("name", ["train", "2-steps", "x" * 128])
def test_a_run_gets_a_name_that_the_service_takes_whatever_the_pipelines_is(name):
    assert pipeline_spec.JOB_ID.fullmatch(command._new_id(name))


def test_the_log_that_the_command_names_is_that_of_the_last_attempt_and_of_a_long_name():
    long = hashlib.sha256(b"x" * 150).hexdigest()[:12]
    for name, attempts, ending in (("add", 1, "add"), ("add", 3, "add-retry-2"), ("x" * 150, 1, long)):
        found = []
        known = Tasks("projects/p/locations/l", "job", found.append)
        task = known.begin(Task(name, "comp", Task("root", "root", None, "root"), "container"))
        for _ in range(attempts - 1):
            known.to(task, "RUNNING", "not yet")
        known.to(task, "FAILED", "never")
        assert command._log_name(found[-1]) == log_name(task.unique_name, attempts) and command._log_name(found[-1]).endswith(ending)


# ------------------------------------------------------------------ conditions


@pytest.mark.parametrize("condition, inputs, expected", [
    ("inputs.parameter_values['side'] == 'heads'", {"side": "heads"}, True),
    ("inputs.parameter_values['side'] == 'it\\'s && !'", {"side": "it's && !"}, True),
    ("!(inputs.parameter_values['a'] == 'x') && inputs.parameter_values['a'] == 'y'", {"a": "y"}, True),
    ("!(inputs.parameter_values['a'] == 'x') && !(inputs.parameter_values['a'] == 'y')", {"a": "y"}, False),
    ("int(inputs.parameter_values['n']) > 2 || false", {"n": "3"}, True),
    ("inputs.parameter_values['share'] != 0.5", {"share": 0.5}, False),
    ("inputs.parameter_values['yes'] == true", {"yes": True}, True),
    ("inputs.parameter_values['n'] <= -1", {"n": -1}, True),
])  # fmt: skip
def test_conditions_hold_as_on_the_service(condition, inputs, expected):
    assert conditions.holds(condition, inputs) is expected


@pytest.mark.parametrize("condition, told", [
    ("inputs.parameter_values['gone'] == 1", "there is no input gone"), ("__import__('os').getcwd() == ''", "is not supported here"),
    ("inputs.parameter_values['a'] >", "SyntaxError"), ("inputs.parameter_values['a'] > 1", "TypeError"),
])  # fmt: skip
def test_conditions_that_cannot_be_evaluated_are_no_false_ones(condition, told):
    with pytest.raises(conditions.ConditionError, match=told):
        conditions.holds(condition, {"a": "text"})


# ------------------------------------------------------------------ what a container's command is


SERVICE = {"bucket_root": "/buckets"}
COMPONENT = [
    "sh", "-c", "\nPIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install --quiet 'kfp==2.17.3' '--no-deps' && \"$0\" \"$@\"\n"
    "python3 -m pip install --quiet --index-url https://x 'pandas>=2' rich && \"$0\" \"$@\"\n",
    "sh", "-ec", 'printf "%s" "$0" > "$program_path/ephemeral_component.py"\npython3 -m kfp.dsl.executor_main "$@"\n',
    "def f(): pass", "--executor_input", '{"path": "/gcs/some-bucket/x", "uri": "gs://some-bucket/x"}',
]  # fmt: skip


def test_a_component_is_its_source_its_requirements_and_its_words():
    plan = steps.plan(COMPONENT, SERVICE, Path("/packages"))
    assert (plan["kind"], plan["server"], plan["source"]) == ("component", "kfp", "def f(): pass")
    assert plan["requirements"] == ["pandas>=2", "rich"]
    assert plan["args"][1] == '{"path": "/buckets/some-bucket/x", "uri": "gs://some-bucket/x"}', "a URI stays what others know it by"


def test_in_an_environment_without_pip_uv_installs_what_a_component_wants(tmp_path, monkeypatch):
    program = f"#!{sys.executable}\nimport os, sys\nprint(*sys.argv[1:], file=open('asked', 'w'))\nos.makedirs(sys.argv[7])\n"
    (tmp_path / "uv").write_text(program)
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = steps._installed(["rich"], tmp_path / "packages")
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(f"pip install --python {sys.executable} --quiet --target ") and asked.endswith("/site rich\n")
    assert Path(folder, "installed").exists()


def test_launchers_and_other_programs():
    payload = json.dumps({"command": COMPONENT, "args": ["gs://b/x"]})
    words = ["python3", "-u", "-m", f"{GOOGLE}.custom_job.launcher", "--payload", payload]
    plan = steps.plan(words, SERVICE, Path("/packages"))
    assert plan["kind"] == "launcher" and plan["args"] == words[4:]
    plan = steps.plan(["train", "--data=gs://some-bucket/x"], SERVICE, Path("/packages"))
    assert (plan["kind"], plan["args"]) == ("command", ["train", "--data=/buckets/some-bucket/x"])


def test_placeholders_that_kfp_does_not_know():
    artifact = {"artifacts": [{"uri": "gs://some-bucket/x"}]}
    parameters = {"a": 'say "hi"', "pools": ["{{$.json_escape[1]}}"]}
    given = {"inputs": {"parameterValues": parameters}, "outputs": {"artifacts": {"out": artifact}}}
    values = {"pipeline_google_cloud_location": "here"}

    def resolved(text: str) -> str:
        return placeholders.resolve(text, given, values, "/buckets")

    assert resolved("{{$.pipeline_google_cloud_location}}/{{$.unknown}}") == "here/{{$.unknown}}"
    assert resolved("{{$.outputs.artifacts['out'].path}}") == "/buckets/some-bucket/x"
    assert json.loads(f"""{{"text": "{resolved("{{$.inputs.parameters['a'].json_escape[1]}}")}"}}""") == {"text": 'say "hi"'}
    whole = json.loads(json.loads(f'"{resolved("{{$.json_escape[1]}}")}"'))
    assert whole["inputs"] == {"parameterValues": {"a": 'say "hi"'}}, "what asks for the input is no part of it"


# ------------------------------------------------------------------ forks


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a module of programs, of which it has imported what is slow."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "programs.py").write_text(
        "import os, signal, sys, time\n"
        "from vertex_local.pipelines.forks import emit\n"
        "IMPORTED = os.getpid()\n"
        "def talk(argument):\n"
        "    emit({'parent': IMPORTED, 'argument': argument, 'cwd': os.getcwd(), 'env': os.environ['MINE'], 'pid': os.getpid()})\n"
        "    print('out'); print('err', file=sys.stderr)\n"
        "    print('no end of line', end='')\n"
        "    return argument['code']\n"
        "def fail(argument):\n    raise KeyError('lost')\n"
        "def leave(argument):\n    sys.exit('error: so it is')\n"
        "def child(argument):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n        time.sleep(600)\n"
        "    emit([os.getpid(), pid])\n    time.sleep(argument)\n"
        "def stubborn(argument):\n"
        "    signal.signal(signal.SIGTERM, lambda *_: emit('asked'))\n    emit('ready')\n"
        "    while True:\n        time.sleep(1)\n"
    )
    env = environ(PYTHONPATH=f"{ROOT}:{folder}")
    started = ForkServer(sys.executable, ["programs", "no.such.module"], folder, env, "x", folder)
    yield started
    started.close()


def fork(server, tmp_path, function, argument=None) -> Fork:
    env = {**environ(), "MINE": "mine"}
    return Fork(server.address, f"programs:{function}", argument, env=env, cwd=tmp_path, log=tmp_path / "logs" / "step.log")


def test_a_fork_is_a_program_of_its_own(server, tmp_path):
    one = fork(server, tmp_path, "talk", {"code": 7})
    (event,) = one.lines()
    assert one.code == 7 and event["argument"] == {"code": 7} and event["env"] == "mine" and event["cwd"] == str(tmp_path)
    assert event["parent"] == server.process.pid != event["pid"], "imported before it was asked for"
    assert sorted((tmp_path / "logs" / "step.log").read_text().splitlines()) == ["err", "no end of line", "out"]
    index = (tmp_path / "lines" / "step.log").read_text().splitlines()
    assert sum(int(line.split()[2]) for line in index) == (tmp_path / "logs" / "step.log").stat().st_size
    assert {line.split()[1] for line in index} == {"out", "err"}


def test_exceptions_and_exits_are_codes_and_lines(server, tmp_path):
    assert fork(server, tmp_path, "fail").wait() == 1
    assert fork(server, tmp_path, "leave").wait() == 1
    log = (tmp_path / "logs" / "step.log").read_text()
    assert "KeyError: 'lost'" in log and "error: so it is" in log


def test_what_a_program_leaves_behind_ends_with_it(server, tmp_path):
    one = fork(server, tmp_path, "child", 0)
    (pids,) = one.lines()
    assert one.code == 0
    wait_for(lambda: not any(map(alive, pids)))


def test_a_program_ends_when_it_is_told_to_or_nobody_holds_it(server, tmp_path):
    one = fork(server, tmp_path, "child", 600)
    pids = next(one.lines())
    one.terminate()
    assert one.wait() == -signal.SIGTERM
    other = fork(server, tmp_path, "child", 600)
    more = next(other.lines())
    other.close()
    wait_for(lambda: not any(map(alive, [*pids, *more])))


@pytest.mark.slow
def test_a_stubborn_program_is_killed(server, tmp_path):
    one = fork(server, tmp_path, "stubborn")
    lines = one.lines()
    assert next(lines) == "ready"
    one.terminate()
    assert next(lines) == "asked" and not list(lines) and one.code == -signal.SIGKILL


def test_a_server_that_is_gone_is_said_in_a_line(server, tmp_path):
    with pytest.raises(UserError, match="is gone"):
        Fork(f"{server.address}-not", "programs:talk", None, env={}, cwd=tmp_path, log=tmp_path / "logs" / "x.log")


def test_the_server_ends_with_whoever_made_it(tmp_path):
    """Its programs, too: a service that is killed leaves nothing behind."""
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nfrom vertex_local.pipelines.forks import emit\ndef main(argument):\n    emit(os.getpid())\n    time.sleep(600)\n"
    )
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom vertex_local.pipelines.forks import Fork, ForkServer\n"
        "folder = Path(sys.argv[1])\n"
        "env = {**os.environ, 'PYTHONPATH': os.environ['PYTHONPATH'] + ':' + str(folder)}\n"
        "server = ForkServer(sys.executable, [], folder, env, 's', folder)\n"
        "fork = Fork(server.address, 'sleeper:main', None, env=env, cwd=folder, log=folder / 'logs' / 'x.log')\n"
        "(folder / 'pids').write_text(f'{server.process.pid} {next(fork.lines())}')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environ(), timeout=120)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)))

