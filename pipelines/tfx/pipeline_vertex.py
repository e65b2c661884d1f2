"""The pipeline whose training step is a custom job of Vertex AI, with the machines of a job file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from tfx import v1 as tfx

from vertex_local.job.job_file import JobFile

from . import pipeline
from .evaluation import Goal
from .settings import Settings

vertex = tfx.extensions.google_cloud_ai_platform


def create_pipeline(settings: Settings, goal: Goal, job: JobFile, known: Mapping[str, str], image: str) -> tfx.dsl.Pipeline:
    """Return the pipeline whose training step sends a job and waits for its end.

    Args:
        job: whose pools, scheduling and network the training step's job has.
        known: settings; `project` and `region` say where the job is sent.
        image: what the job's replicas run: TFX, the trainer and this folder.
    """
    config = {
        vertex.ENABLE_VERTEX_KEY: True,
        vertex.VERTEX_REGION_KEY: known["region"],
        # `project` beside the CustomJob's own fields is TFX's rule.
        vertex.TRAINING_ARGS_KEY: {
            "project": known["project"], "display_name": f"{settings.trainer}-tfx", "job_spec": job_spec(job, image),
        },
    }  # fmt: skip
    return pipeline.create_pipeline(settings, goal, vertex.Trainer, config)


def job_spec(job: JobFile, image: str) -> dict[str, Any]:
    """Return the CustomJobSpec as TFX takes it: the job file's, with TFX's image, and without what TFX says itself.

    Those are the command, the trainer's arguments and where outputs go. A duration is a dict there, not a text.
    """
    spec = MessageToDict(job.spec, preserving_proto_field_name=True, use_integers_for_enums=True)
    spec.pop("base_output_directory", None)
    for pool, known in zip(spec["worker_pool_specs"], job.pools):
        if known.trains:
            pool["container_spec"] = {"image_uri": image, **({"env": pool["container_spec"]["env"]} if known.env else {})}
    for name in ("timeout", "max_wait_duration"):
        if text := spec.get("scheduling", {}).get(name):
            spec["scheduling"][name] = {"seconds": int(float(text.removesuffix("s")))}
    return spec
