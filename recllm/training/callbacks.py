"""What training says while it runs: alarms where GRPO learns nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sign:
    """A logged number that tells of wasted steps where it leaves `low` to `high`, and what then is to be said."""

    name: str
    key: str
    text: str
    low: float = 0.0
    high: float = float("inf")


ZERO_VARIANCE = Sign(
    "zero_variance",
    "frac_reward_zero_std",
    "{:.0%} of the groups have equal rewards and teach nothing: raise num_generations or the temperature, choose more "
    "decisive prompts, or train longer before",
    high=0.8,
)
CLIPPED = Sign(
    "clipped",
    "completions/clipped_ratio",
    "{:.0%} of the completions were cut at max_completion_length and got no reward for an end: raise it, or shorten "
    "what the tools answer",
    high=0.2,
)
OUTSIDE = Sign(
    "outside",
    "allowed_mass",
    "free sampling would stay on SIDs of the catalogue with a probability of {:.2f} only, and the loss is about free "
    "sampling: fine-tune the model first",
    low=0.5,
)


class Alarm(TrainerCallback):
    """Warns, once a run for each, where a sign shows. `raised` counts the logged steps that showed it."""

    def __init__(self, *signs: Sign) -> None:
        self.signs = signs
        self.raised = {sign.name: 0 for sign in signs}

    def on_log(self, args, state, control, logs=None, **kwargs):
        for sign in self.signs:
            value = (logs or {}).get(sign.key)
            if value is None or sign.low <= float(value) <= sign.high:
                continue
            self.raised[sign.name] += 1
            if self.raised[sign.name] == 1:
                logger.warning("step %d: %s (said once)", state.global_step, sign.text.format(float(value)))
