"""What training says while it runs: alarms where GRPO learns nothing."""

from __future__ import annotations

import logging

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# Above these shares a step is mostly wasted.
MAX_ZERO_STD = 0.8
MAX_CLIPPED = 0.2


class GRPOAlarm(TrainerCallback):
    """Warns where most groups have no reward variance (no advantage) or most completions were cut off.

    `raised` counts the logged steps that gave each alarm.
    """

    def __init__(self) -> None:
        self.raised = {"zero_variance": 0, "clipped": 0}

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        zero, clipped = logs.get("frac_reward_zero_std", 0.0), logs.get("completions/clipped_ratio", 0.0)
        if float(zero) > MAX_ZERO_STD:
            self.raised["zero_variance"] += 1
            logger.warning(
                "step %d: %.0f%% of the groups have equal rewards and teach nothing; raise the temperature or "
                "num_generations, or choose more decisive prompts",
                state.global_step,
                100 * float(zero),
            )
        if float(clipped) > MAX_CLIPPED:
            self.raised["clipped"] += 1
            logger.warning(
                "step %d: %.0f%% of the completions were cut at max_completion_length=%d and got no reward for an "
                "end; raise it or shorten what the tools answer",
                state.global_step,
                100 * float(clipped),
                args.max_completion_length,
            )
