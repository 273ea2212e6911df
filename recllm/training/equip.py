"""What every training run gets beside its trainer: shared prompts, whole checkpoints, guards, and a view of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recllm.training.display.curves import Curves
from recllm.training.display.progress import show_progress
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
            calls = self.sharing.shared.total() + self.sharing.reasons.total()
            found["shared_prefix/calls"] = self.sharing.shared.total() / calls if calls else 0.0
        return found


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
    trainer.add_callback(Curves())
    for callback in publishing.callbacks() if publishing is not None else ():
        trainer.add_callback(callback)
    return Equipment(finite, checkpoints, sharing)
