"""The process that keeps a run in Vertex AI Experiments and ML Metadata: `python -m vertex_runtime.tracking.client`.

It reads lines of JSON from its standard input, `begin`, `evaluation` and `end`, and goes through google-cloud-aiplatform.
Whatever goes wrong is one line of the run's log, and nothing else: it ends with 0.

On the service, project, region and credentials are the job's. Elsewhere those of `vertex_local`, or of gcloud, are used:
CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM, CLOUDSDK_AUTH_ACCESS_TOKEN_FILE, CLOUDSDK_CORE_PROJECT, CLOUDSDK_AI_REGION.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..reporting import log
from . import nodes

NEEDS = "google-cloud-aiplatform is not installed: pip install google-cloud-aiplatform"
DEFAULT_REGION = "us-central1"  # the SDK's
CONNECT_SECONDS = 10.0
_LOCATION = re.compile("projects/([^/]+)/locations/([^/]+)/")
_CLOSED = "127.0.0.1:9"  # where vertex_local leads clients to when no service runs


class Unavailable(Exception):
    """There is no service that the run could be kept by, and why."""


class Client:
    """A run of an experiment, from its first record to its last."""

    def __init__(self, experiment: Mapping[str, str], tensorboard: str | None, record: Mapping[str, Any]):
        options = _options(experiment["name"], tensorboard)  # before the import, which takes seconds
        from google.cloud import aiplatform

        self._sdk = aiplatform
        aiplatform.init(**options)
        self._experiment = aiplatform.Experiment.get_or_create(experiment["name"].rpartition("/")[2])
        if tensorboard and self._experiment.get_backing_tensorboard_resource() is None:
            self._experiment.assign_backing_tensorboard(tensorboard)
        self._has_series = self._experiment.get_backing_tensorboard_resource() is not None
        name = experiment["run"]
        self._run = aiplatform.ExperimentRun.get(name, experiment=self._experiment)
        if self._run is None:
            self._run = aiplatform.ExperimentRun.create(name, experiment=self._experiment)
        else:
            self._run.update_state(aiplatform.gapic.Execution.State.RUNNING)
        self._run.log_params(nodes.parameters(record))
        log("INFO", f"experiment {self._experiment.name}: this is its run {name}")
        self._execution: Any = None
        self._tell_nodes(record)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep an evaluation: as the run's metrics so far, and as points where there is a TensorBoard instance."""
        finite: dict[str, float | int | str] = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._run.log_metrics(finite)
        if self._has_series and finite:
            self._run.log_time_series_metrics(finite, step=step)

    def end(self, record: Mapping[str, Any]) -> None:
        """Keep the last metrics, the model and how the run ended."""
        if "id" in record:
            self._run.log_metrics(nodes.metrics(record))
            self._tell_nodes(record)
        state = nodes.STATES.get(record["state"], "FAILED")
        if self._execution is not None and "id" not in record:
            self._execution.update(state=self._sdk.gapic.Execution.State[state])
        self._run.update_state(self._sdk.gapic.Execution.State[state])

    def _tell_nodes(self, record: Mapping[str, Any]) -> None:
        """Keep the run as an execution with its artifacts; what is there already is brought up to date."""
        found = nodes.of_run(record)
        execution, state = found["execution"], self._sdk.gapic.Execution.State[found["execution"]["state"]]
        if self._execution is None:
            self._execution = self._made(self._sdk.Execution, execution, state=state)
            self._run.associate_execution(self._execution)
            self._execution.assign_input_artifacts([self._artifact(each) for each in found["inputs"]])
        self._execution.update(state=state, metadata=execution["metadata"])
        if found["outputs"]:
            self._execution.assign_output_artifacts([self._artifact(each) for each in found["outputs"]])

    def _artifact(self, node: Mapping[str, Any]) -> Any:
        return self._made(self._sdk.Artifact, node, uri=node["uri"])

    def _made(self, kind: Any, node: Mapping[str, Any], **fields: Any) -> Any:
        """Return the node of that id, which is made where it is missing."""
        from google.api_core import exceptions

        try:
            return kind.create(
                node["schemaTitle"], resource_id=node["id"], display_name=node["displayName"], schema_version=node["schemaVersion"],
                metadata=node["metadata"], credentials=self._sdk.initializer.global_config.credentials, **fields,
            )  # fmt: skip
        except exceptions.Conflict:  # over REST; over gRPC it is AlreadyExists, one of its kind
            return kind(node["id"])


def _options(experiment: str, tensorboard: str | None) -> dict[str, Any]:
    """Return what leads the SDK to the project and region that the names say, else the variables, and to another endpoint if one is set.

    Raises:
        Unavailable: it would lead nowhere.
    """
    named = _LOCATION.match(experiment) or _LOCATION.match(tensorboard or "")
    project, region = named.groups() if named else (None, None)
    env = os.environ
    for name in ("AIP_EXPERIMENT_NAME", "AIP_EXPERIMENT_RUN_NAME"):
        env.pop(name, None)  # by which the SDK would look for the experiment before it knows the project
    project = project or env.get("CLOUD_ML_PROJECT_ID") or env.get("GOOGLE_CLOUD_PROJECT") or env.get("CLOUDSDK_CORE_PROJECT")
    region = region or env.get("CLOUD_ML_REGION") or env.get("GOOGLE_CLOUD_REGION") or env.get("CLOUDSDK_AI_REGION")
    options: dict[str, Any] = {"project": project, "location": region}
    address = env.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM", "").rstrip("/").partition("://")[2]
    if address == _CLOSED:
        raise Unavailable("no service runs here; start one with: python -m vertex_local serve")
    if address:
        options |= {"api_endpoint": address, "api_transport": "rest", "credentials": _credentials()}
        if trusted := env.get("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"):
            env["REQUESTS_CA_BUNDLE"] = trusted  # over the one that the machine has for all programs
    if address or not any(env.get(name) for name in ("HTTPS_PROXY", "https_proxy")):  # a proxy reaches what this process cannot
        _reach(address or f"{region or DEFAULT_REGION}-aiplatform.googleapis.com:443")
    return options


def _reach(address: str) -> None:
    """See that somebody listens at host:port: the SDK would try for minutes."""
    host, _, port = address.partition("/")[0].partition(":")
    try:
        socket.create_connection((host, int(port or 443)), CONNECT_SECONDS).close()
    except OSError as error:
        raise Unavailable(f"{address} cannot be reached: {error}") from None


def _credentials() -> Any:
    """Return what gcloud's variables say, for an endpoint of one's own."""
    import google.auth.credentials
    import google.oauth2.credentials

    path = os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    if not path:
        return google.auth.credentials.AnonymousCredentials()
    with open(path) as file:
        return google.oauth2.credentials.Credentials(file.read().strip())


def follow(lines: Iterable[str]) -> None:
    """Keep a run as the lines say; the first thing that goes wrong ends it with one line."""
    client, name = None, ""
    try:
        for line in lines:
            told = json.loads(line)
            if told["kind"] == "begin":
                name = told["experiment"]["name"]
                client = Client(told["experiment"], told["tensorboard"], told["record"])
            elif told["kind"] == "evaluation":
                client.evaluated(told["step"], told["metrics"])
            else:
                client.end(told["record"])
    except ImportError:
        _give_up(name, NEEDS)
    except Unavailable as error:
        _give_up(name, str(error))
    except Exception as error:  # noqa: BLE001 - of the SDK, of the network, of credentials
        _give_up(name, " ".join(f"{type(error).__name__}: {error}".split())[:300])


def _give_up(experiment: str, reason: str) -> None:
    log("WARNING", f"experiment {experiment}: the run is kept in run.json only: {reason.rstrip('.')}.")


def main() -> None:
    """Follow the standard input to its end; signals are for the run, whose end closes it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(3)
    logging.disable(logging.WARNING)  # the SDK tells of everything that it makes
    follow(sys.stdin)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the SDK's threads hold nothing that is still needed


if __name__ == "__main__":
    main()
