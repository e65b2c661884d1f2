"""The RPCs of Vertex AI's API: which there are, and how one is called, for REST and gRPC alike.

A service is a class with the name of the API's service. Its methods are the RPCs in snake_case, such as
`JobService.create_custom_job`; a method takes the request's message and returns the response's.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from ..errors import UserError
from ..local import store
from . import messages
from .rest import ApiError

OPERATIONS = "Operations"  # google.longrunning's service, which every service of the API also offers
VERSIONS = ("v1", "v1beta1")  # both have the same messages on the wire, as far as v1 has the fields
NEEDS = "the local service takes the API's paths from google-cloud-aiplatform 1.72 or newer: install it"


@dataclass(frozen=True)
class WithHeaders:
    """A response with headers: HTTP headers, or gRPC's metadata."""

    message: Message
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Method:
    """One RPC: its service and name as the API writes them, the handler, and the request's class."""

    service: str
    name: str
    handler: Callable[[Message], Message | WithHeaders]
    request: type[Message]

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of messages; handlers here return the only message of it."""
        return self.name.startswith("Stream")

    def full_names(self) -> list[str]:
        """Return the paths of the method in gRPC, one for each version of the API."""
        if self.service == OPERATIONS:
            return [f"/google.longrunning.{OPERATIONS}/{self.name}"]
        return [f"/google.cloud.aiplatform.{version}.{self.service}/{self.name}" for version in VERSIONS]

    def http_rules(self) -> list[dict[str, str]]:
        """Return the method's REST rules (verbs, paths, bodies) from the SDK."""
        return http_rules("JobService" if self.service == OPERATIONS else self.service, self.name)

    def call(self, request: Message) -> Message | WithHeaders:
        """Answer one request; raise an ApiError for a request that cannot be answered."""
        try:
            messages.check_text(request)
            return self.handler(request)
        except store.Taken as error:
            raise ApiError("ALREADY_EXISTS", f"{error} exists already.") from None


def methods(services: Iterable[Any]) -> Iterator[Method]:
    """Yield the RPCs that objects of the services' classes answer."""
    for service in services:
        for attribute, handler in inspect.getmembers(service, inspect.ismethod):
            if attribute.startswith("_"):
                continue
            name, service_name = pascal(attribute), type(service).__name__
            own = getattr(operations_pb2, f"{name}Request", None) if service_name == OPERATIONS else messages.kind(f"{name}Request")
            yield Method(service_name, name, handler, own)


def http_rules(service: str, name: str) -> list[dict[str, str]]:
    """Return the SDK's REST rules of one RPC: `method`, `uri` and perhaps `body`."""
    return getattr(_transport(service), f"_Base{name}")._get_http_options()


def every_rule() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (service, RPC, rule) for all RPCs in the SDK, whether they are answered here or not."""
    from google.cloud.aiplatform_v1 import services

    names = sorted(name for name in dir(importlib.import_module("google.cloud.aiplatform_v1")) if name.endswith("ServiceClient"))
    for service in (name.removesuffix("Client") for name in names):
        if not hasattr(services, snake(service)):
            continue
        base = _transport(service)
        for attribute in dir(base):
            if attribute.startswith("_Base") and hasattr(getattr(base, attribute), "_get_http_options"):
                for rule in getattr(base, attribute)._get_http_options():
                    yield service, attribute.removeprefix("_Base"), rule


def _transport(service: str) -> Any:
    try:
        module = importlib.import_module(f"google.cloud.aiplatform_v1.services.{snake(service)}.transports.rest_base")
    except ImportError as error:
        raise UserError(f"{NEEDS} ({error}).") from None
    return getattr(module, f"_Base{service}RestTransport")


def snake(name: str) -> str:
    """Return `JobService` as `job_service`."""
    return re.sub("(?<!^)([A-Z])", r"_\1", name).lower()


def pascal(name: str) -> str:
    """Return `create_custom_job` as `CreateCustomJob`."""
    return "".join(part.capitalize() for part in name.split("_"))


# ------------------------------------------------------------------ what is not answered

# The documents' names of the API's features, by service; any other service is called by its own name.
_FEATURES = {
    "MetadataService": "ML Metadata", "TensorboardService": "Vertex AI TensorBoard instances",
    "FeaturestoreService": "Feature Store", "IndexService": "Vector Search", "MatchService": "Vector Search",
    "IndexEndpointService": "Vector Search", "VizierService": "Vizier studies", "MigrationService": "Resource migration",
    "SpecialistPoolService": "Data labeling",
    "LlmUtilityService": "Generative models",
    "GenAiTuningService": "Tuning of generative models", "NotebookService": "Notebooks", "ModelGardenService": "Model Garden",
}  # fmt: skip
# The same for RPCs that are missing in services that are otherwise answered here, by a part of the RPC's name.
_PARTS = {
    "DataLabelingJob": "Data labeling", "NasJob": "Neural architecture search",
    "NasTrial": "Neural architecture search", "ModelDeploymentMonitoring": "Model monitoring", "ModelMonitoring": "Model monitoring",
    "EvaluatedAnnotation": "Evaluated annotations",
    "DirectRawPredict": "Direct predictions", "StreamingPredict": "Streaming predictions", "GenerateContent": "Generative models",
    "DatasetVersion": "Versions of data sets", "Annotation": "Annotations of data sets", "DataItem": "Items of data sets",
    "BlobData": "Blobs of TensorBoard", "TensorboardUsage": "Figures on TensorBoard's use",
    "TensorboardSize": "Figures on TensorBoard's size",
    "SavedQuer": "Saved queries", "Location": "Locations", "Iam": "Access policies",
}  # fmt: skip


def not_answered(service: str, name: str) -> ApiError:
    """Return the error for an RPC of the API that the local service does not have; it names the RPC's feature as the documents do."""
    words = re.sub("(?<!^)([A-Z])", r" \1", service.removesuffix("Service"))
    other = _FEATURES.get(service, f"{words} requests of the kind {name}")
    feature = next((title for part, title in _PARTS.items() if part in name), other)
    return ApiError("UNIMPLEMENTED", f"the local service does not imitate {feature} ({service}.{name}).")
