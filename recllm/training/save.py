"""Delivering a trained model: adapter folded in, tokenizer, SID table, and proof that the reload equals memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from recllm.needs.vocabulary import FILE as NEEDS_FILE
from recllm.provenance import read_json
from recllm.sid.vocabulary import TABLE_FOLDER
from recllm.training.models import base_of, sliced
from recllm.training.safety.checkpoint import MANIFEST, STAGING, newest_complete

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


def merged(model: torch.nn.Module) -> PreTrainedModel:
    """The plain transformers model with any PEFT adapter folded into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def whole(trainer: Trainer) -> PreTrainedModel | None:
    """The trained model with any adapter folded in, on the main process; None on the others. Every process calls it.

    ZeRO-3 and FSDP leave each process a slice of every tensor; the slices are gathered into a plain copy.
    """
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    state = accelerator.get_state_dict(trainer.model_wrapped) if sliced() else None
    # Otherwise ZeRO-3 slices whatever this process builds or loads from here on, and waits for the others.
    unset_hf_deepspeed_config()
    if not accelerator.is_main_process:
        return None
    return merged(model if state is None else _plain_copy(model, state))


def _plain_copy(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A model of the same architecture and adapters on the CPU that holds `state`."""
    base = base_of(model)
    plain = MODEL_FOR_CAUSAL_LM_MAPPING[type(base.config)](base.config)
    plain.generation_config = base.generation_config
    if base is not model:
        from peft import get_peft_model

        plain = get_peft_model(plain, model.active_peft_config)
    plain.load_state_dict(state, assign=True)
    base_of(plain).tie_weights()
    return plain


def deliver(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, source: str) -> None:
    """Write `folder` in HF layout: safetensors, tokenizer, generation config, and what `source` has beside its weights:
    `sid_table/`, and a needs model's vocabulary.

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
    copy_needs(source, folder)
    check_reload(model, folder)


def copy_needs(source: str | Path, folder: str | Path) -> None:
    """Put the vocabulary of needs that `source` (a model, or the chats that make one) has into `folder`, if it has."""
    if (Path(source) / NEEDS_FILE).is_file():
        shutil.copyfile(Path(source) / NEEDS_FILE, Path(folder) / NEEDS_FILE)


def check_reload(model: PreTrainedModel, folder: str | Path) -> None:
    """Load `folder` again and compare every tensor with memory, bit for bit."""
    again = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in again:
            raise RuntimeError(f"{folder}: tensor {name} was lost in saving")
        if not torch.equal(tensor.detach().cpu(), again[name]):
            raise RuntimeError(f"{folder}: tensor {name} read back differs from memory")


def remove_checkpoints(folder: str | Path) -> None:
    """Drop the intermediate checkpoints of a run that delivered, half saved ones and the best weights beside them."""
    for checkpoint in [*Path(folder).glob("checkpoint*-*"), *Path(folder).glob(STAGING)]:
        shutil.rmtree(checkpoint)


def newest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint (`checkpoint.newest_complete`), or None.

    Where no checkpoint at all has a manifest, a trainer without `protect` wrote them, and the trainer state, which it
    writes last, is all that tells a whole one.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdecimal()]
    if not found or any((path / MANIFEST).exists() for path in found):
        return newest_complete(folder)
    for path in sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True):
        try:
            read_json(path / "trainer_state.json")
        except ValueError:
            continue  # torn: the file is missing, or was cut off itself
        return str(path)
    return None
