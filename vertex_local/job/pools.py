"""What a worker pool's message says, in the words of those who run it. Nothing is kept here: all is read from the message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import schema

ROLES = ("chief", "worker", "ps", "evaluator")
DISK = ("pd-ssd", 100)  # what a machine boots from, and GB of it, where the job does not say


@dataclass(frozen=True)
class Pool:
    """A view of one WorkerPoolSpec, whose place in the job says what its replicas are."""

    message: Any
    index: int

    @property
    def role(self) -> str:
        """What its replicas are: chief, worker, ps or evaluator."""
        return ROLES[self.index]

    @property
    def replicas(self) -> int:
        """How many replicas it has; 0 for the unused pool `{}`."""
        return self.message.replica_count if self.task is not None else 0

    @property
    def task(self) -> Any:
        """Its ContainerSpec or PythonPackageSpec; None for an unused pool."""
        kind = self.message.WhichOneof("task")
        return getattr(self.message, kind) if kind else None

    @property
    def task_field(self) -> str:
        """The task's field as files write it."""
        return "pythonPackageSpec" if self.is_package else "containerSpec"

    @property
    def is_package(self) -> bool:
        """Whether a prebuilt container installs and runs a Python package."""
        return self.message.WhichOneof("task") == "python_package_spec"

    @property
    def is_reduction_server(self) -> bool:
        """Whether it runs the service's own program, which takes no arguments of a trainer and is not started here."""
        return self.role == "ps" and "reductionserver" in self.message.container_spec.image_uri

    @property
    def trains(self) -> bool:
        """Whether its replicas run a trainer, which takes the job's arguments."""
        return bool(self.replicas) and not self.is_reduction_server

    @property
    def image(self) -> str:
        """Its container's image, or the prebuilt one."""
        return self.message.python_package_spec.executor_image_uri if self.is_package else self.message.container_spec.image_uri

    @property
    def command(self) -> tuple[str, ...]:
        """What its container starts instead of the image's own entry point."""
        return tuple(self.message.container_spec.command)

    @property
    def args(self) -> tuple[str, ...]:
        """Its arguments."""
        return tuple(self.task.args) if self.task is not None else ()

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """Its variables."""
        return tuple((variable.name, variable.value) for variable in self.task.env) if self.task is not None else ()

    @property
    def module(self) -> str | None:
        """The Python module that it runs; None for a container."""
        return self.message.python_package_spec.python_module if self.is_package else None

    @property
    def package_uris(self) -> tuple[str, ...]:
        """The Python packages to install."""
        return tuple(self.message.python_package_spec.package_uris)

    @property
    def machine(self) -> str:
        """Its machines' type."""
        return self.message.machine_spec.machine_type

    @property
    def machine_fields(self) -> dict[str, Any]:
        """Its machines in JSON form: machineType, acceleratorType, acceleratorCount and so on."""
        return schema.to_fields(self.message.machine_spec)

    @property
    def disk(self) -> tuple[str, int]:
        """Each of its machines' boot disk: type and GB, the service's defaults where the job says nothing."""
        disk = self.message.disk_spec
        return disk.boot_disk_type or DISK[0], disk.boot_disk_size_gb or DISK[1]
