"""The coverage rule: too many trials on one or two axes close them for the next proposal (methods 1.3)."""

from __future__ import annotations

from collections import Counter

from recllm.tuning.study.reflection import change_of
from recllm.tuning.study.trial import History

WINDOW = 6


def masked_axes(history: History, window: int = WINDOW) -> frozenset[str]:
    """The axes that the next proposal may not change.

    Where more than two thirds of the last `window` trials that changed one axis changed the same one, it is masked;
    where they changed one of two, both are. Fewer such trials mask nothing, and neither does a mask that would leave no
    axis to change under the configuration that the study stands on.

    Raises:
        ValueError: `window` is below 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    changes = (change_of(history, trial) for trial in reversed(history.trials))
    touched = [change[0] for change in changes if change][:window]
    if len(touched) < window:
        return frozenset()
    often = Counter(touched).most_common(2)
    # One axis alone is closed alone.
    if 3 * often[0][1] > 2 * window:
        often = often[:1]
    if 3 * sum(count for _, count in often) <= 2 * window:
        return frozenset()
    masked = frozenset(name for name, _ in often)
    return frozenset() if masked.issuperset(history.present) else masked


def coverage(history: History) -> dict[str, int]:
    """How many trials changed each axis of the space, in the order of the axes."""
    counts = Counter(change[0] for trial in history.trials if (change := change_of(history, trial)))
    return {axis.name: counts[axis.name] for axis in history.space.axes}
