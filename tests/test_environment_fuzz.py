"""What the service's variables and the flags may hold by mistake: always one line that says what to do, never a bare exception."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

import pytest

from vertex_runtime.arguments import CommonHyperparameters, integer, integers, option, parse, step_range
from vertex_runtime.environment import QUOTED, Environment, quoted
from vertex_runtime.errors import UserError

DIGITS, DEEP = "9" * 5000, 100_000
HOSTS = {"workerpool0": ["a:1"], "workerpool1": ["b:1", "c:1"]}
SPEC: dict[str, Any] = {
    "cluster": {**HOSTS, "workerpool2": ["r:1"], "workerpool3": ["e:1"]},
    "environment": "cloud",
    "task": {"type": "workerpool1", "index": 1, "trial": "3"},
    "job": "{\"python_module\":\"\"}",
    "open_ports": [3333],
}  # fmt: skip
CONFIG = {"cluster": {"chief": ["10.0.0.1:2222"], "worker": ["[::1]:2222", "w-1.local:2222"]}, "task": {"type": "worker", "index": 0}}
TEXTS = {
    "AIP_MODEL_DIR": "gs://bucket/model", "AIP_CHECKPOINT_DIR": "gs://bucket/checkpoints", "AIP_TENSORBOARD_LOG_DIR": "gs://bucket/logs",
    "AIP_DATA_FORMAT": "csv", "AIP_TRAINING_DATA_URI": "gs://bucket/training-*", "AIP_VALIDATION_DATA_URI": "gs://bucket/validation-*",
    "AIP_TEST_DATA_URI": "gs://bucket/test-*", "CLOUD_ML_TRIAL_ID": "2", "CLOUD_ML_HP_METRIC_FILE": "/tmp/output.metrics",
    "CLOUD_ML_JOB_ID": "123", "TPU_CONFIG": "",
}  # fmt: skip


def line_of(variables: dict[str, str]) -> str:
    """Return the line that these variables end a run with, after looking at its form."""
    with pytest.raises(UserError) as caught:
        Environment.from_mapping(variables)
    line = str(caught.value)
    assert len(line) < 600 and line.isprintable(), line
    return line


def task(**fields: Any) -> str:
    return json.dumps({"cluster": HOSTS, "task": {"type": "workerpool0", "index": 0, **fields}})


def hosts(*hosts: Any) -> str:
    return json.dumps({"cluster": {"workerpool0": list(hosts)}, "task": {"type": "workerpool0", "index": 0}})


def raw_index(text: str) -> str:
    return task(index="HERE").replace('"HERE"', text)


WRONG_TASKS = {
    "type a list": (task(type=["workerpool0"]), "task type must be one of .*; got ['workerpool0']"),
    "type an object": (task(type={"a": 1}), "task type must be one of .*; got {'a': 1}"),
    "type null": (task(type=None), "task type must be one of .*; got None"),
    "type a number": (task(type=0), "task type must be one of .*; got 0"),
    "type unknown": (task(type="boss"), "task type must be one of .*; got 'boss'"),
    "task a list": (json.dumps({"cluster": HOSTS, "task": [1]}), "`task` must be an object .*; got [1]"),
    "task an empty list": (json.dumps({"cluster": HOSTS, "task": []}), "`task` must be an object .*; got []"),
    "cluster a text": (json.dumps({"cluster": "a:1"}), "`cluster` must map pools .*; got 'a:1'"),
    "index infinite": (raw_index("Infinity"), "task index must be a whole number .*; got inf"),
    "index minus infinite": (raw_index("-Infinity"), "task index must be a whole number .*; got -inf"),
    "index not a number": (raw_index("NaN"), "task index must be a whole number .*; got nan"),
    "index 1e400": (raw_index("1e400"), "task index must be a whole number .*; got inf"),
    "index true": (task(index=True), "task index must be a whole number .*; got True"),
    "index a half": (task(index=0.5), "task index must be a whole number .*; got 0.5"),
    "index null": (task(index=None), "task index must be a whole number .*; got None"),
    "index a list": (task(index=[0]), "task index must be a whole number .*; got [0]"),
    "index negative": (task(index=-1), "task index must be a whole number from 0 .*; got -1"),
    "index of 4,000 digits": (raw_index(DIGITS[:4000]), "task index must be a whole number .*; got 999"),
    "index of 5,000 digits": (raw_index(DIGITS), "is not JSON that can be read (a number in it has too many digits); got .*Unset it"),
    "index a text of 5,000 digits": (task(index=DIGITS), "task index must be a whole number .*; got '999"),
    "index outside": (task(index=1), "task chief 1 is not in the cluster, which has 1 of that kind"),
    "trial a list": (task(trial=[1]), "`trial` in the task) must be a plain id such as 1; got [1]"),
    "trial an object": (task(trial={"id": 1}), "must be a plain id such as 1; got {'id': 1}"),
    "trial true": (task(trial=True), "must be a plain id such as 1; got True"),
    "trial 1e400": (task(trial="HERE").replace('"HERE"', "1e400"), "must be a plain id such as 1; got inf"),
    "trial a path": (task(trial="../1"), "must be a plain id such as 1; got '../1'"),
    "trial a surrogate": (task(trial="\ud800"), r"must be a plain id such as 1; got '\ud800'"),
    "trial a NUL": (task(trial="\0"), r"must be a plain id such as 1; got '\x00'"),
    "trial too long": (task(trial="1" * 1000), "must be a plain id such as 1; got '111"),
    "cut": (task()[:-1], "is not JSON that can be read (Expecting ',' delimiter"),
    "brackets": ("[" * DEEP, "is not JSON that can be read (it is nested too deeply); got '[[[.*Unset it to train alone"),
    "objects": ('{"a":' * DEEP, "is not JSON that can be read (it is nested too deeply); got '{\"a\":.*Unset it"),
    "a number": ("1e400", "must be a JSON object with `cluster` and `task`; got '1e400'"),
    "two pools for a role": (json.dumps({"cluster": {"chief": ["a:1"], "master": ["b:1"]}}), "two pools for the chief, one of them 'mas"),
    "a pool of a long name": (json.dumps({"cluster": {"b" * 10**6: ["a:1"]}}), "unknown pool 'bbb"),
    "hosts a text": (json.dumps({"cluster": {"chief": "a:1"}}), "pool 'chief' must be a list of host:port strings; got 'a:1'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["CLUSTER_SPEC", "TF_CONFIG"])
@pytest.mark.parametrize(("text", "message"), WRONG_TASKS.values(), ids=WRONG_TASKS)
def test_wrong_clusters_and_tasks(name, text, message):
    line = line_of({name: text})
    assert line.startswith(name) or "`trial` in the task" in line
    parts, at = message.split(".*"), 0
    for part in parts:  # in this order
        assert part in line[at:], line
        at = line.index(part, at) + len(part)


WRONG_HOSTS = [
    "a", "a:", ":1", "a:0", "a:65536", "a:1.5", "a:-1", "a:x", "a:+1", "a: 1", "a:१", "a b:1", "http://a:1", "a:1/", "a:1:2", "::1:2222",
    "[::1]", "[::1]:0", "[zz]:1", "a..b:1", f"{'a' * 64}:1", f"a:{DIGITS}", "\ud800:1", "\0:1", "a\n:1",
    "", 1, None, True, ["a:1"], {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("host", WRONG_HOSTS, ids=lambda host: quoted(host)[:20].encode("ascii", "replace").decode())
def test_wrong_hosts(host):
    line = line_of({"CLUSTER_SPEC": hosts("a:1", host)})
    assert "host 1 of pool 'workerpool0' must be host:port with a whole port from 1 to 65535" in line
    assert line.endswith(f"such as 10.0.0.2:2222 or [::1]:2222; got {quoted(host)}.")


RIGHT_HOSTS = ["a:1", "10.0.0.1:65535", "[::1]:2222", "[fe80::1%eth0]:2222", "cmle-training-workerpool0-ab_c-0:2222", "ü.de:80"]


@pytest.mark.parametrize("host", RIGHT_HOSTS)
def test_right_hosts(host):
    env = Environment.from_mapping({"CLUSTER_SPEC": hosts(host, "b:2")})
    assert env.workers == (host, "b:2") and json.loads(env.tf_config())["cluster"] == {"chief": [host, "b:2"]}


@pytest.mark.parametrize(("index", "kept"), [(1, 1), ("1", 1), (1.0, 1)])
def test_right_indices(index, kept):
    assert Environment.from_mapping({"TF_CONFIG": task(type="worker", index=index)}).index == kept


@pytest.mark.parametrize(("trial", "kept"), [("7", "7"), (7, "7"), (0, "0"), ("", None), (None, None)])
def test_right_trials(trial, kept):
    assert Environment.from_mapping({"TF_CONFIG": task(trial=trial)}).trial == kept


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"CLOUD_ML_JOB_ID", "TPU_CONFIG"}))
def test_bytes_that_are_not_utf8(name):
    """As os.environ holds them: a lone surrogate each."""
    assert name in (line := line_of({name: "gs\udcff" * 1000})) and r"got 'gs\udcff" in line


def test_values_are_quoted_short():
    nested: list = []
    for _ in range(DEEP):
        nested = [nested]
    for value in ("x" * 1000, "\n" * 1000, "\0" * 119, {"a": ["b" * 1000]}, int("9" * 4000), 10**5000, nested, [10**5000]):
        assert len(quoted(value)) <= QUOTED and quoted(value).isprintable()
    assert quoted("x" * 118) == f"'{'x' * 118}'" and quoted([1, "a"]) == "[1, 'a']"
    while nested:  # from the outside in: freeing it all at once takes as deep a stack
        nested = nested[0]


@dataclass(frozen=True)
class Limited(CommonHyperparameters):
    nnsize: tuple[int, ...] = option((32, 8), "sizes")
    share: int = option(1, "at most 9", maximum=9)


WHOLE, FINITE, SIZES = "needs a whole number; got", "needs a finite number; got", "needs whole numbers such as"
LARGE = "between -2**63 and 2**63; got"
WRONG_FLAGS = [
    ("batch_size", "inf", WHOLE), ("batch_size", "-inf", WHOLE), ("batch_size", "nan", WHOLE), ("batch_size", "1e400", WHOLE),
    ("batch_size", DIGITS, WHOLE), ("batch_size", "1.5", WHOLE), ("batch_size", "", WHOLE), ("batch_size", "\udcff", WHOLE),
    ("batch_size", "1e300", LARGE), ("batch_size", DIGITS[:4000], LARGE), ("seed", str(2**63), LARGE), ("seed", "-1", "at least 0; got"),
    ("epochs", "inf", FINITE), ("epochs", "nan", FINITE), ("epochs", "1e400", FINITE), ("epochs", DIGITS, FINITE),
    ("epochs", "x" * 5000, FINITE), ("epochs", "-" + DIGITS[:300], "must be above 0; got"), ("share", "10", "must be at most 9; got"),
    ("nnsize", "32 inf", SIZES), ("nnsize", "32 1e400", SIZES), ("nnsize", f"32 {DIGITS}", SIZES), ("nnsize", "32 1e300", LARGE),
    ("nnsize", "32 nan", SIZES), ("nnsize", "0 " * 3000, "one or more sizes above 0"),
    ("in_memory", "y" * 5000, "must be one of auto, yes, no"),
    *[("profile", text, "needs A,B with 1 <= A <= B, such as 20,30; got") for text in (
        "1e400", "1,1e400", "inf,inf", "nan,nan", "1", "1,2,3", "2,1", "0,1", ",", f"1,{DIGITS}", DIGITS, "1,1e300", "x" * 5000, "\udcff",
    )],
]  # fmt: skip


@pytest.mark.parametrize(("flag", "value", "message"), WRONG_FLAGS, ids=[f"{flag}={value[:12]!r}" for flag, value, _ in WRONG_FLAGS])
def test_wrong_flags(flag, value, message):
    with pytest.raises(UserError) as caught:
        step_range(parse(Limited, [f"--{flag}={value}"], "a trainer")[1].profile)
    line = str(caught.value)
    assert f"--{flag}: " in line and message in line and quoted(value) in line
    assert len(line) < 300 and line.isprintable()


def test_right_flags():
    assert [integer(text) for text in ("128", "128.0", "1e3", "-2", str(2**53 + 1))] == [128, 128, 1000, -2, 2**53 + 1]
    assert integers("32 8") == integers("32,8.0") == (32, 8)
    assert step_range("20,30") == (20, 30) and step_range("") is None


ODD = [
    None, True, False, 0, 1, -1, 1.5, float("inf"), float("nan"), 10**400, "", "1", "a:1", "a:0", "\ud800", "\0", "x" * 2000, [], {}, [[]],
    [1], ["a:1"], {"a": 1}, {"type": ["chief"]}, "chief", "workerpool1", "master", "ps", "evaluator", {"chief": ["a:1"]},
    {"chief": [["a:1"]]}, "[::1]:1", 1e308,
]  # fmt: skip
KEYS = ["cluster", "task", "type", "index", "trial", "chief", "worker", "master", "ps", "evaluator", "workerpool0", "workerpool3", "\ud800"]
PIECES = ["[" * DEEP, '{"a":' * DEEP, DIGITS, "1e400", "NaN", "-Infinity", "\udcff", "\0", "\n", *'"{}[],:', "\\u", "\\ud800"]


def mutate_json(value: Any, chance: random.Random) -> Any:
    """Replace, delete or insert a node of a copy of `value`, or several."""
    root = {"": copy.deepcopy(value)}
    if chance.random() < 0.2:  # what is looked at most closely is but a few of the nodes
        root[""]["task"][chance.choice(("type", "index", "trial"))] = copy.deepcopy(chance.choice(ODD))
        return root[""]
    for _ in range(chance.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = [(root, "")]
        for parent, key in places:  # grows meanwhile
            node = parent[key]
            places += [(node, at) for at in (node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ())]
        parent, key = chance.choice(places)
        odd = copy.deepcopy(chance.choice(ODD))
        deed = chance.choice(("replace", "delete", "insert"))
        if deed == "replace" or parent is root:
            parent[key] = odd
        elif deed == "delete":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, odd)
        else:
            parent[chance.choice(KEYS)] = odd
    return root[""]


def mutate_text(text: str, chance: random.Random) -> str:
    """Cut a text, flip bits of its bytes, or put odd pieces into it; as os.environ would give it back."""
    deed = chance.choice(("cut", "flip", "piece"))
    at = chance.randrange(len(text) + 1)
    if deed == "cut":
        return text[:at] if chance.random() < 0.5 else text[at:]
    if deed == "piece":
        return text[:at] + chance.choice(PIECES) + text[at + chance.choice((0, 0, 1, 3)) :]
    data = bytearray(text.encode("utf-8", "surrogateescape"))
    for _ in range(min(len(data), chance.choice((1, 2, 8)))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data.decode("utf-8", "surrogateescape")


def mutated(chance: random.Random) -> dict[str, str]:
    """Return a valid environment with one to three of its variables spoilt."""
    parts: dict[str, Any] = {"CLUSTER_SPEC": SPEC, "TF_CONFIG": CONFIG}
    variables = {name: json.dumps(parts[name]) for name in parts if chance.random() < 0.7}
    variables |= {name: text for name, text in TEXTS.items() if chance.random() < 0.3}
    for name in chance.sample(sorted(variables), min(len(variables), chance.choice((1, 1, 2, 3)))):
        if name in parts and chance.random() < 0.7:
            variables[name] = json.dumps(mutate_json(parts[name], chance), ensure_ascii=chance.random() < 0.5)
        else:
            variables[name] = mutate_text(variables[name], chance)
    return variables


@pytest.mark.slow
def test_10000_spoilt_environments():
    chance = random.Random(20261124)
    accepted = refused = 0
    for i in range(10_000):
        variables = mutated(chance)
        try:
            env = Environment.from_mapping(variables)
            config = env.tf_config()
            assert config is None or json.loads(config)["task"]["type"] in ("chief", "worker")
            assert env.worker_index >= 0 and env.is_chief in (True, False)
            assert env.name == f"{env.role}-{env.index}" and all(host.rpartition(":")[2].isdigit() for host in env.workers)
            accepted += 1
        except UserError as error:
            assert 10 < len(str(error)) < 600 and str(error).isprintable(), (i, str(error))
            refused += 1
        except Exception as error:
            shown = {name: text[:300] for name, text in variables.items()}
            raise AssertionError(f"environment {i}: {error!r} of {shown}") from error
    assert accepted > 1000 and refused > 1000, (accepted, refused)
