"""A proposal's three texts, in the few words that a small model is taught to say."""

from __future__ import annotations

from typing import Any

from recllm.tuning.language.telling import shown
from recllm.tuning.spaces.axes import Axis
from recllm.tuning.spaces.families import direction, family_of
from recllm.tuning.study.proposal import Proposal

# (family, direction) -> why it may help, and what may go wrong.
_WORDS = {
    ("capacity", "up"): ("the model is too small", "over-fitting"),
    ("capacity", "down"): ("the model is too large", "under-fitting"),
    ("regularisation", "up"): ("it over-fits", "under-fitting"),
    ("regularisation", "down"): ("it under-fits", "over-fitting"),
    ("step size", "up"): ("training is too slow", "unsteady training"),
    ("step size", "down"): ("training is unsteady", "slow training"),
    ("schedule", "up"): ("steadier gradients", "fewer steps"),
    ("schedule", "down"): ("more steps an epoch", "noisy gradients"),
    ("priors", "up"): ("counts know more", "counts drown the model"),
    ("priors", "down"): ("the model knows more", "rare items are lost"),
}
_FAMILY = {"objective": "a fitter loss", "structure": "a fitter structure", "history": "a fitter history"}
_EXPECTED = ((0.01, "a little"), (0.03, "some percent"), (0.1, "much"), (float("inf"), "very much"))


def worded(axis: Axis, before: Any, value: Any, gain: float) -> Proposal:
    """The proposal of a change; `gain` is the share by which the score is expected to rise."""
    family, way = family_of(axis.name), direction(axis, before, value)
    why, risk = _WORDS.get((family, way), (_FAMILY.get(family, "a fitter setting"), "a worse fit"))
    expected = next(words for most, words in _EXPECTED if gain <= most)
    return Proposal(f"{axis.name} {shown(value)}: {why}", axis.name, value, f"better by {expected}", risk)
