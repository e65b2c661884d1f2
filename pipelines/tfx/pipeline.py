"""The pipeline with TFX's own Trainer: examples, their statistics and schema, a model, its evaluation, and where it is pushed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfx import v1 as tfx

from .evaluation import Goal, eval_config
from .settings import PARTS, Settings

MODULE = "pipelines.tfx.module"  # by its name, so that compiling reads no file and asks no network


def create_pipeline(
    settings: Settings, goal: Goal, trainer: Any = tfx.components.Trainer, config: Mapping[str, Any] | None = None
) -> tfx.dsl.Pipeline:  # fmt: skip
    """Return the pipeline; its training step runs where the pipeline runs.

    Args:
        trainer: another component for training.
        config: what that is told beside the trainer's flags.
    """
    examples, schema, *descriptions = _data(settings)
    # No Transform: what the model must know of the training rows it learns itself, and the served graph holds it.
    training = trainer(
        run_fn=f"{MODULE}.run_fn",
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        train_args=tfx.proto.TrainArgs(splits=["train"]),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
        # The source's fingerprint: TFX would take another model.py's model from its cache.
        custom_config={"trainer": settings.trainer, "flags": list(settings.flags), "source": settings.source, **(config or {})},
    )
    return tfx.dsl.Pipeline(
        pipeline_name=f"{settings.trainer.replace('_', '-')}-tfx",
        pipeline_root=settings.root,
        components=[examples, schema, *descriptions, training, *_judgement(settings, goal, examples, training)],
        enable_cache=True,
        metadata_connection_config=settings.metadata and tfx.orchestration.metadata.sqlite_metadata_connection_config(settings.metadata),
    )


def _data(settings: Settings) -> list[Any]:
    """Return the components that read and describe the data, the examples and the schema first."""
    split = tfx.proto.Input.Split
    splits = tfx.proto.Input(splits=[split(name=name, pattern=f"{part}/*.tfrecord*") for name, part in PARTS.items()])
    examples = tfx.components.ImportExampleGen(input_base=settings.data, input_config=splits)
    statistics = tfx.components.StatisticsGen(examples=examples.outputs["examples"])
    if settings.schema:
        schema = tfx.components.ImportSchemaGen(schema_file=settings.schema)
    else:
        schema = tfx.components.SchemaGen(statistics=statistics.outputs["statistics"], exclude_splits=["eval"])
    anomalies = tfx.components.ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
    return [examples, schema, statistics, anomalies]


def _judgement(settings: Settings, goal: Goal, examples: Any, training: Any) -> list[Any]:
    """Return the components that compare the model with threshold and baseline, and push it if it stands the comparison."""
    slices = ((goal.label,) if goal.by_class else ()) if settings.slice_by is None else settings.slice_by
    blessed = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("latest_blessed_model")
    evaluation = tfx.components.Evaluator(
        examples=examples.outputs["examples"],
        model=training.outputs["model"],
        baseline_model=blessed.outputs["model"],
        eval_config=eval_config(goal, settings.threshold, settings.tolerance, slices),
        module_path=MODULE,
    )
    folder = tfx.proto.PushDestination.Filesystem(base_directory=settings.serving_dir)
    pusher = tfx.components.Pusher(
        model=training.outputs["model"],
        model_blessing=evaluation.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(filesystem=folder),
    )
    return [blessed, evaluation, pusher]
