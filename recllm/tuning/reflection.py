"""What a study learns from one trial, by schema (methods 1.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["confirmed", "refuted", "inconclusive"]


@dataclass(frozen=True)
class LearnedRule:
    """A generalised rule: on data like this, setting an axis to a value helps or hurts.

    Args:
        when: in words, what data or configuration it was seen on. dimension, value: the setting. effect: helps or
            hurts. confidence: 0 to 1.
    """

    when: str
    dimension: str
    value: Any
    effect: Literal["helps", "hurts", "neutral"]
    confidence: float


@dataclass(frozen=True)
class Reflection:
    """A trial looked back on.

    Args:
        verdict: whether the hypothesis held, by the measured change and the noise threshold.
        causal_attribution: why, in words. bottleneck: what limits the study now. failure_dimension: what a failed
            trial failed by, else None.
        rule: what may hold elsewhere. next_action: in words. prune: (axis, value) pairs not to try again from here.
        source: `model` or `measured`, which is by rules from the numbers alone.
    """

    verdict: Verdict
    observed_delta: float | None
    causal_attribution: str
    bottleneck: str
    failure_dimension: str | None
    rule: LearnedRule | None
    next_action: str
    prune: tuple[tuple[str, Any], ...] = ()
    source: Literal["model", "measured"] = "measured"

    def row(self) -> dict[str, Any]:
        """As plain JSON values, which `of_row` reads."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Reflection:
        """The reflection of a record."""
        rule = LearnedRule(**row["rule"]) if row["rule"] else None
        return cls(**{**row, "rule": rule, "prune": tuple((name, value) for name, value in row["prune"])})
