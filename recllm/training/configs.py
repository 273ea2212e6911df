"""TRL's training arguments with the switches that recllm adds to every run; recipes name them like TRL's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import trl

_ON_NONFINITE = {
    "help": "A NaN or infinite loss or gradient: stop (the batch is saved), or skip the step and count it."
}


@dataclass
class GRPOConfig(trl.GRPOConfig):
    """TRL's GRPOConfig, and what equips a run: see `recllm/training/equip.py`."""

    shared_prefix: bool = field(
        default=True,
        metadata={"help": "Read a prompt once for all its completions, in generation and in the loss."},
    )
    on_nonfinite: str = field(default="stop", metadata=_ON_NONFINITE)
    sample_steps: int = field(
        default=25, metadata={"help": "Steps between two printed tables of sampled completions; 0 prints none."}
    )


@dataclass
class SFTConfig(trl.SFTConfig):
    """TRL's SFTConfig, and what equips a run: see `recllm/training/equip.py`."""

    on_nonfinite: str = field(default="stop", metadata=_ON_NONFINITE)
