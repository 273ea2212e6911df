"""Supervised fine-tuning on chat data sets with TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig, SFTConfig, SFTTrainer

    from recllm.provenance import RunRecord


def load_chats(folder: str | Path) -> Dataset:
    """A chat data set saved by a data_prep script.

    Raises:
        ValueError: the folder holds no data set, or one without the column `messages` or `prompt`.
    """
    from datasets import Dataset

    if not (Path(folder) / "dataset_info.json").is_file():
        raise ValueError(f"{folder} holds no saved data set; make it with a data_prep script")
    rows = Dataset.load_from_disk(str(folder))
    if not {"messages", "prompt"} & set(rows.column_names):
        raise ValueError(f"{folder}: found the columns {rows.column_names}, need messages (or prompt and completion)")
    return rows


def load_model(model_args: ModelConfig):
    """Tokenizer and model of a checkpoint folder or Hub id, in the dtype asked for (float32 by default on the CPU)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    name, revision = model_args.model_name_or_path, model_args.model_revision
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, attn_implementation=model_args.attn_implementation
    )
    return AutoTokenizer.from_pretrained(name, revision=revision), model


def build_sft_trainer(rows: Dataset, training_args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    """An SFTTrainer over `rows`; columns that are not part of the chat are dropped."""
    from trl import SFTTrainer, get_peft_config

    tokenizer, model = load_model(model_args)
    spoken = [name for name in rows.column_names if name in ("messages", "prompt", "completion", "tools")]
    return SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=rows.select_columns(spoken),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )


def train_and_deliver(trainer: SFTTrainer, record: RunRecord, source: str) -> dict[str, float]:
    """Train from the newest complete checkpoint, deliver merged weights, and return the run's numbers."""
    from recllm.training.save import deliver, newest_checkpoint, remove_checkpoints, whole

    outcome = trainer.train(resume_from_checkpoint=newest_checkpoint(record.folder))
    model = whole(trainer)
    if model is not None:
        deliver(model, trainer.processing_class, record.folder, source)
        remove_checkpoints(record.folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {"loss/first": losses[0], "loss/last": losses[-1]} if losses else {}
    return metrics | {"steps": trainer.state.global_step, "train_seconds": outcome.metrics["train_runtime"]}
