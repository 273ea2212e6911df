"""What every training run gets beside its trainer: shared prompts, whole checkpoints, guards, and a view of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recllm.training.display.curves import draw_curves
from recllm.training.display.progress import show_progress
from recllm.training.overrides import override
from recllm.training.prefix.share import Sharing, share_prefixes
from recllm.training.safety.failure import NonFiniteGuard, guard_finite
from recllm.training.safety.resume import Protection, protect
from recllm.training.safety.reward_guard import guard_rewards


@dataclass(frozen=True)
class Equipment:
    """What was attached to a trainer. `sharing` is None where prompts are not shared, as in supervised training."""

    finite: NonFiniteGuard
    checkpoints: Protection
    sharing: Sharing | None

    def metrics(self) -> dict[str, float]:
        """Flat numbers of what happened: steps skipped, checkpoints that could not be written, calls that shared."""
        found = {"nonfinite_steps": self.finite.count, "failed_saves": self.checkpoints.failed_saves}
        if self.sharing is not None:
            found["shared_prefix/calls"] = self.sharing.share()
        return found


def _train_and_hand_over(publishing: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Train; where that fails, let the checkpoints that are saved still reach the Hub."""
    try:
        return original(*args, **kwargs)
    except Exception:
        publishing.give_up()
        raise


def equip(trainer: Any, publishing: Any = None) -> Equipment:
    """Attach all of it to a TRL trainer (GRPO or supervised), before `train`; the switches are fields of its arguments.

    `publishing` is what `start_run` returned; with it, checkpoints are pushed while training goes on, if it says so.

    Raises:
        OverrideError: a method that is replaced is not the one that this was written for.
        ValueError: a switch has a value that is none of its own.
    """
    sharing, rewarded = None, hasattr(trainer, "reward_funcs")
    if rewarded and getattr(trainer.args, "shared_prefix", True):
        sharing = share_prefixes(trainer)
    if rewarded:
        guard_rewards(trainer)
    finite = guard_finite(trainer)
    checkpoints = protect(trainer)
    show_progress(trainer)
    draw_curves(trainer)
    if publishing is not None:
        for callback in publishing.callbacks():
            trainer.add_callback(callback)
        override(trainer, "train", (), functools.partial(_train_and_hand_over, publishing), "train without publishing")
    return Equipment(finite, checkpoints, sharing)
