"""Delivering a trained model: adapter folded in, tokenizer, SID table, and proof that the reload equals memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from recllm.sid.vocabulary import TABLE_FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merged(model: torch.nn.Module) -> PreTrainedModel:
    """The plain transformers model with any PEFT adapter folded into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def deliver(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, source: str) -> None:
    """Write `folder` in HF layout: safetensors, tokenizer, generation config, and `sid_table/` where `source` has one.

    Raises:
        RuntimeError: a tensor read back differs from the one in memory (a full disk, a dropped tied weight).
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table = Path(source) / TABLE_FOLDER
    if table.is_dir():
        shutil.copytree(table, folder / TABLE_FOLDER, dirs_exist_ok=True)
    check_reload(model, folder)


def check_reload(model: PreTrainedModel, folder: str | Path) -> None:
    """Load `folder` again and compare every tensor with memory, bit for bit."""
    again = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in again:
            raise RuntimeError(f"{folder}: tensor {name} was lost in saving")
        if not torch.equal(tensor.detach().cpu(), again[name]):
            raise RuntimeError(f"{folder}: tensor {name} read back differs from memory")


def remove_checkpoints(folder: str | Path) -> None:
    """Drop the intermediate checkpoints of a run that delivered."""
    for checkpoint in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def newest_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, or None. The trainer state is what is written last."""
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    return str(complete[-1]) if complete else None
