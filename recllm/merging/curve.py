"""The accuracy-token curve of a sweep: its Pareto set, its area, how strength steers it, and where thinking sets in.

Tokens are the cost and accuracy is the quality of `recllm.metrics.pareto`. The reference of the hypervolume is the
accuracy of the worst parent at the tokens of the longest one, so that a point that no parent's user would want adds
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recllm.merging.results import Results, Row
from recllm.metrics.pareto import hypervolume, pareto_front

LOW, HIGH = 0.05, 0.95  # think shares between which the thinking sets in
_FEWEST = 3  # strengths, for a rank correlation to mean anything


def front(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other dominates, by tokens; equal ones stand or fall together."""
    rows = list(rows)
    kept = pareto_front(tokens_of(rows), accuracy_of(rows)) if rows else []
    return sorted((row for row, stays in zip(rows, kept, strict=True) if stays), key=lambda row: row.tokens)


def tokens_of(rows: Iterable[Row]) -> np.ndarray:
    """float64, the mean tokens of each row."""
    return np.array([row.tokens for row in rows], dtype=np.float64)


def accuracy_of(rows: Iterable[Row]) -> np.ndarray:
    """float64, the accuracy of each row."""
    return np.array([row.accuracy for row in rows], dtype=np.float64)


@dataclass(frozen=True)
class Area:
    """Hypervolume of some points.

    value: tokens x accuracy. share: of the rectangle that the parents span; above 1 where points lie outside of it,
    None where the parents do not span one.
    """

    value: float
    share: float | None


def area(rows: Iterable[Row], results: Results) -> Area | None:
    """The hypervolume of the rows over the parents' reference; None where a parent was not measured."""
    parents = list(results.parents.values())
    if len(parents) < 2:
        return None
    rows = list(rows)
    tokens, accuracy = tokens_of(parents), accuracy_of(parents)
    value = hypervolume(tokens_of(rows), accuracy_of(rows), (float(tokens.max()), float(accuracy.min())))
    spanned = float(np.ptp(tokens) * np.ptp(accuracy))
    return Area(value, value / spanned if spanned > 0 else None)


@dataclass(frozen=True)
class Control:
    """How well strength steers the tokens along one line of points.

    spearman: rank correlation of strength and tokens, None for fewer than three strengths or equal tokens.
    jump: the largest difference of tokens between neighbours, signed; between the strengths jump_from and jump_to.
    jump_share: its size as a share of the line's range of tokens.
    """

    spearman: float | None
    jump: float
    jump_from: float
    jump_to: float
    jump_share: float


def control(strength_P: Sequence[float], tokens_P: Sequence[float]) -> Control | None:
    """Controllability along strengths that rise; None for a single one."""
    strength_P, tokens_P = _rising(strength_P, tokens_P)
    if len(strength_P) < 2:
        return None
    span = float(np.ptp(tokens_P))
    spearman = None
    if len(strength_P) >= _FEWEST and span > 0:
        from scipy.stats import spearmanr

        spearman = float(spearmanr(strength_P, tokens_P).statistic)
    steps = np.diff(tokens_P)
    at = int(np.abs(steps).argmax())
    share = abs(float(steps[at])) / span if span > 0 else 0.0
    return Control(spearman, float(steps[at]), float(strength_P[at]), float(strength_P[at + 1]), share)


def crossings(strength_P: Sequence[float], share_P: Sequence[float], level: float) -> list[float]:
    """The strengths at which the line through the points reaches the level or falls below it, rising."""
    strength_P, share_P = _rising(strength_P, share_P)
    above = share_P >= level
    found = []
    for at in np.flatnonzero(above[1:] != above[:-1]):
        low, high = share_P[at], share_P[at + 1]
        part = (level - low) / (high - low)
        found.append(float(strength_P[at] + part * (strength_P[at + 1] - strength_P[at])))
    return found


@dataclass(frozen=True)
class Phase:
    """Where completions begin to think along one line of points.

    low, high: the first strength at which the think share reaches .05 and .95, interpolated between neighbours; None
        where it does not, or is there from the start.
    start, end: the share at the first and the last strength.
    fall: the largest drop between neighbours, 0 where the share never falls.
    returns: how many times the share crosses .05 or .95 again after the first time.
    """

    low: float | None
    high: float | None
    start: float
    end: float
    fall: float
    returns: int

    @property
    def is_monotone(self) -> bool:
        """Whether the share never falls."""
        return self.fall == 0


def phase(strength_P: Sequence[float], share_P: Sequence[float]) -> Phase | None:
    """Phase boundaries along strengths that rise; None for a single one.

    Raises:
        ValueError: a share outside [0, 1], or strengths that repeat.
    """
    strength_P, share_P = _rising(strength_P, share_P)
    if ((share_P < 0) | (share_P > 1)).any():
        raise ValueError(f"a think share must lie in [0, 1], got {share_P.tolist()}")
    if len(strength_P) < 2:
        return None
    crossed = {level: crossings(strength_P, share_P, level) for level in (LOW, HIGH)}
    # From above a level the first crossing is a fall: the share was there from the start.
    first = {level: found[0] if found and share_P[0] < level else None for level, found in crossed.items()}
    returns = sum(len(found) for found in crossed.values()) - sum(value is not None for value in first.values())
    fall = max(0.0, float(-np.diff(share_P).min()))
    return Phase(first[LOW], first[HIGH], float(share_P[0]), float(share_P[-1]), fall, returns)


def _rising(strength_P: Sequence[float], values_P: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    strength_P, values_P = np.asarray(strength_P, dtype=np.float64), np.asarray(values_P, dtype=np.float64)
    if strength_P.ndim != 1 or strength_P.shape != values_P.shape:
        raise ValueError(f"each strength needs a value, got shapes {strength_P.shape} and {values_P.shape}")
    if not (np.diff(strength_P) > 0).all():
        raise ValueError(f"strengths must rise, got {strength_P.tolist()}")
    if not np.isfinite(values_P).all():
        raise ValueError(f"values must be finite, got {values_P.tolist()}")
    return strength_P, values_P


def controls(results: Results) -> dict[str, Control]:
    """Line of points -> its controllability, of every line with two strengths at least."""
    found = {}
    for line, rows in results.series().items():
        if (known := control([row.strength for row in rows], tokens_of(rows))) is not None:
            found[str(line)] = known
    return found


def phases(results: Results) -> dict[str, Phase]:
    """Line of points -> its phase boundaries, of every line whose think shares are known."""
    found = {}
    for line, rows in results.series().items():
        rows = [row for row in rows if row.think_share is not None]
        if (known := phase([row.strength for row in rows], [row.think_share for row in rows])) is not None:
            found[str(line)] = known
    return found


def recommend(rows: Iterable[Row], budget: float | None = None) -> Row | None:
    """The most accurate row of at most `budget` tokens, of equal ones the shortest; None where all are longer."""
    within = [row for row in rows if budget is None or row.tokens <= budget]
    return min(within, key=lambda row: (-row.accuracy, row.tokens), default=None)
