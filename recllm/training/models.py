"""What a trainer's model is beneath its wrappers."""

from __future__ import annotations

import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def base_of(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model beneath PEFT's adapters, or the model itself where it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def sliced() -> bool:
    """Whether FSDP or ZeRO-3 leaves each process of this run a slice of the weights."""
    return AcceleratorState().distributed_type == "FSDP" or is_deepspeed_zero3_enabled()
