"""The services and paths that the local service answers."""

from __future__ import annotations

from . import rpc, storage_routes
from .dataset_service import DatasetService
from .endpoint_service import EndpointService
from .job_service import JobService
from .local import Local
from .logging_api import LogReader
from .metadata_service import MetadataService
from .model_service import ModelService
from .operations import OperationPool, Operations
from .persistent_resource_service import PersistentResourceService
from .pipeline_service import PipelineService
from .prediction_service import PredictionService
from .schedule_service import ScheduleService
from .server import METHODS, Route, route
from .tensorboard_service import TensorboardService
from .transcoding import PREFIXES, Rest


def methods(local: Local, operations: OperationPool) -> list[rpc.Method]:
    """Return every RPC of Vertex AI's API that is answered here."""
    services = (
        JobService(local, operations), PipelineService(local, operations), DatasetService(local, operations),
        ModelService(local, operations), EndpointService(local, operations), PredictionService(local), Operations(local, operations),
        MetadataService(local, operations), TensorboardService(local, operations),
        PersistentResourceService(local, operations), ScheduleService(local, operations),
    )  # fmt: skip
    return list(rpc.methods(services))


def table(local: Local, methods: list[rpc.Method]) -> list[Route]:
    """Return every route of the service."""
    api = Rest(methods)
    found = [route(verb, f"/{prefix}/projects/{{rest*}}", api.handle) for verb in METHODS for prefix in PREFIXES]
    return [*found, *storage_routes.table(local), route("POST", "/v2/entries:list", LogReader(local).entries)]
