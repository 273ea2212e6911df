"""The planner's run from inputs to delivered folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recllm.evaluation.planner import evaluate_planner
from recllm.evaluation.report import plot_frontier
from recllm.pipeline import ensure_inputs, load_pipeline
from recllm.provenance import RunRecord
from recllm.training.grpo import reward_curve
from recllm.training.save import deliver, newest_checkpoint, remove_checkpoints, whole

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer, ModelConfig

# TrainingArguments' own default, which nobody wants to find in the working folder.
_UNNAMED = "trainer_output"
INPUTS = ("dataset", "sid_table", "tool_cache", "traces")


def locate_inputs(args: Any, training_args: GRPOConfig, model_args: ModelConfig) -> dict[str, Path]:
    """The run's input folders: those given by name, the others built by the pipeline; sets model and output folder."""
    given = {name: Path(getattr(args, name)) for name in INPUTS if getattr(args, name)}
    if model_args.model_name_or_path:
        given["model_name_or_path"] = Path(model_args.model_name_or_path)
    needed = {*INPUTS, "model_name_or_path"} - set(given)
    inputs = {**(ensure_inputs(args.pipeline, args.stage, args.outputs_root) if needed else {}), **given}
    model_args.model_name_or_path = str(inputs["model_name_or_path"])
    if training_args.output_dir in (None, _UNNAMED):
        training_args.output_dir = str(load_pipeline(args.pipeline).folder(args.stage, args.outputs_root))
    return inputs


def train_planner(
    trainer: GRPOTrainer,
    record: RunRecord,
    inputs: Mapping[str, Path],
    cost_weight: float,
    users: int | None = None,
    role: str = "test",
) -> dict[str, Any]:
    """Train, deliver merged weights, evaluate on a role's targets and draw the pictures; returns the metrics.

    Only the main process delivers; the others return no metrics.
    """
    outcome = trainer.train(resume_from_checkpoint=newest_checkpoint(record.folder))
    model = whole(trainer)
    if model is None:
        return {}
    tokenizer = trainer.processing_class
    deliver(model, tokenizer, record.folder, str(inputs["model_name_or_path"]))
    metrics = evaluate_planner(model, tokenizer, inputs, cost_weight, role, users)
    metrics |= reward_curve(trainer.state.log_history)
    metrics |= {"steps": trainer.state.global_step, "train_seconds": round(outcome.metrics["train_runtime"], 1)}
    plot_frontier(metrics, record.folder / "frontier.png")
    remove_checkpoints(record.folder)
    return metrics
