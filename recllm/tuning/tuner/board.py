"""A measured surface as a board to play on: where every single change leads, and how far it is to a good configuration.

It is for making training material, where the truth may be known and bent: `Board.bent` is another data set that never
was, so that a proposer learns what data sets have in common and to believe what a study's trials say, and not the
tables by heart. Nothing measured is bent in a benchmark or a study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from recllm.tuning.spaces.space import Space
from recllm.tuning.study.trial import LEAST_EPSILON, Situation
from recllm.tuning.trials.runner import OBJECTIVE, Outcome
from recllm.tuning.trials.surface import EVEN, Surface, reached_by

# What a configuration that is one improving change further from a good one is worth of it.
DISCOUNT = 0.7
# Of a move's worth: what it leaves within reach, beside what it gains at once.
REACH = 0.8
GOOD = 0.02


@dataclass(frozen=True)
class Move:
    """A single change, the key of what it makes, and the row of the surface that answers for that."""

    axis: str
    value: Any
    key: str
    row: int


@dataclass(frozen=True, eq=False)
class Moves:
    """Where single changes lead on a surface; each configuration's are looked up once."""

    surface: Surface
    _known: dict[str, tuple[Move, ...]] = field(default_factory=dict)
    _rows_in: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        return self.surface.space

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """What was measured, by row."""
        return [self.surface.outcome(row) for row in range(len(self.surface))]

    def row(self, config: Mapping[str, Any], key: str | None = None) -> int:
        """The row that answers for a checked configuration."""
        return self.surface.row_of(config, key or self.space.key(config))[0]

    def of(self, config: Mapping[str, Any]) -> tuple[Move, ...]:
        """Every single change of a value set, in the order of the axes."""
        own = self.space.key(config)
        if own not in self._known:
            found = []
            for name, value in config.items():
                for other in self.space.by_name[name].values:
                    if other != value:
                        changed = self.space.change(config, name, other)
                        key = self.space.key(changed)
                        found.append(Move(name, other, key, self.row(changed, key)))
            self._known[own] = tuple(found)
        return self._known[own]

    @cached_property
    def even_R(self) -> np.ndarray:
        """Whether a row is one of the evenly spread ones."""
        return self.surface.frame["origin"].is_in(EVEN).to_numpy()

    @property
    def unit_RA(self) -> np.ndarray:
        """Where each row lies on each axis, see `Index`."""
        return self.surface.index.unit_RA

    def rows_in(self, other: Moves) -> np.ndarray:
        """The row of another surface of this space that answers for each row of this one."""
        if id(other) not in self._rows_in:
            rows = [other.row(outcome.config, outcome.key) for outcome in self.outcomes]
            self._rows_in[id(other)] = np.array(rows)
        return self._rows_in[id(other)]

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """`from_E` and `to_E`, the rows of every single change of a measured configuration."""
        pairs = [
            (row, move.row)
            for row, outcome in enumerate(self.outcomes)
            for move in self.of(outcome.config)
            if move.row != row
        ]
        from_E, to_E = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return from_E, to_E


@dataclass(frozen=True, eq=False)
class Board:
    """A surface with scores.

    Args:
        score_R: validation NDCG@10 of each row, minus infinity where it failed.
        data: descriptors of the data set. epsilon: the noise threshold of its studies.
    """

    moves: Moves
    score_R: np.ndarray
    data: Mapping[str, float]
    epsilon: float = LEAST_EPSILON

    @classmethod
    def of(cls, surface: Surface) -> Board:
        """The board of a surface as it was measured."""
        score_R = surface.frame[OBJECTIVE].fill_null(-math.inf).to_numpy().copy()
        return cls(Moves(surface), score_R, surface.data, surface.epsilon)

    @property
    def space(self) -> Space:
        return self.moves.space

    def __call__(self, config: Mapping[str, Any], seed: int = 0, /) -> Outcome:
        """A trial of a configuration, as `SurfaceTrials` runs it, with this board's score."""
        checked = self.space.check(config)
        row = self.moves.row(checked)
        measured, score = self.moves.outcomes[row], float(self.score_R[row])
        outcome = replace(measured, config=checked, key=self.space.key(checked))
        if math.isfinite(score):
            return replace(outcome, status="ok", metrics={**measured.metrics, OBJECTIVE: score}, words="")
        return outcome if not measured.ok else replace(outcome, status="nan", metrics={}, words="bent so that it fails")

    @cached_property
    def top(self) -> float:
        """The highest score."""
        return float(self.score_R.max())

    @cached_property
    def target(self) -> float:
        """The score that the best 2% of the evenly spread configurations reach, as `Surface.target` has it."""
        return reached_by(self.score_R[self.moves.even_R], GOOD)

    @cached_property
    def away_R(self) -> np.ndarray:
        """How many improving single changes a row is away from the target: 0 where it reaches it, infinite where no
        way up leads there."""
        from_E, to_E = self.moves.edges
        up_E = self.score_R[to_E] > self.score_R[from_E] + self.epsilon
        from_E, to_E = from_E[up_E], to_E[up_E]
        away_R = np.where(self.score_R >= self.target, 0.0, math.inf)
        while True:
            nearer_R = away_R.copy()
            np.minimum.at(nearer_R, from_E, away_R[to_E] + 1)
            if np.array_equal(nearer_R, away_R):
                return away_R
            away_R = nearer_R

    def worths(self, situation: Situation) -> list[tuple[Move, float]]:
        """Every legal move that no trial has made, with its worth, 0 to 1.

        A move is worth what it gains over the best score so far, as a share of the headroom, and what the remaining
        budget can still reach from there, if the study then stands there. One that does neither is worth nothing.
        """
        history = situation.history
        config, now = history.present, history.best.outcome.score if history.best else -math.inf
        moves = [move for move in self.moves.of(config) if move.key not in history.tried]
        open_ = [move for move in moves if move.axis not in situation.masked]
        found = []
        for move in open_ or moves:  # as for a proposer, masks are lifted where they leave nothing
            score, away = float(self.score_R[move.row]), self.away_R[move.row]
            kept = score > now + history.epsilon
            reach = DISCOUNT**away if away == 0 or (kept and away <= situation.left - 1) else 0.0
            gained = self._gained(score, history.best_score)
            found.append((move, (1 - REACH) * gained + REACH * reach if kept or gained > 0 else 0.0))
        return found

    def _gained(self, score: float, best: float) -> float:
        """How much of the headroom above the best score a score takes."""
        if not score > best:
            return 0.0
        return 1.0 if not math.isfinite(best) else (score - best) / max(self.top - best, score - best)

    def bent(self, rng: np.random.Generator, other: Board | None, strength: float) -> Board:
        """A data set that never was: logarithms of the scores mixed with another's by a random share, and bent.

        Every value of every axis gets an effect of its own; together they have `strength` times the standard deviation
        of the scores. A configuration that failed in the greater part fails.
        """
        share = 0.0 if other is None else float(rng.random())
        log_R = _logs(self.score_R)
        if other is not None:
            theirs_R = _logs(other.score_R)[self.moves.rows_in(other.moves)]
            both_R = (1 - share) * log_R + share * theirs_R
            here_R, there_R = np.isfinite(log_R), np.isfinite(theirs_R)
            log_R = np.where(here_R & there_R, both_R, log_R if share < 0.5 else theirs_R)
        spread = float(np.std(log_R[np.isfinite(log_R)]))
        bent_R = log_R + strength * spread * self._effects(rng)
        score_R = np.where(np.isfinite(bent_R), np.exp(bent_R), -np.inf)
        data = dict(self.data)
        if other is not None:
            data = {name: _between(value, other.data.get(name, value), share) for name, value in data.items()}
        told = {name: float(f"{value * math.exp(rng.normal(0, 0.15)):.4g}") for name, value in data.items()}
        # Noise is as large as the scores are.
        size = float(np.median(score_R[score_R > 0]) / np.median(self.score_R[self.score_R > 0]))
        return replace(self, score_R=score_R, data=told, epsilon=self.epsilon * size)

    def _effects(self, rng: np.random.Generator) -> np.ndarray:
        """A random additive effect of every row, of standard deviation 1 over rows."""
        total_R = np.zeros(len(self.score_R))
        for axis, unit_R in zip(self.space.axes, self.moves.unit_RA.T, strict=True):
            slope, own_V = rng.normal() if axis.ordered else 0.0, 0.5 * rng.normal(size=len(axis.values))
            here_R = ~np.isnan(unit_R)
            place_R = np.rint(unit_R[here_R] * (len(axis.values) - 1)).astype(int)
            total_R[here_R] += 2 * slope * (unit_R[here_R] - 0.5) + own_V[place_R]
        return total_R / max(float(np.std(total_R)), 1e-9)


def _logs(score_R: np.ndarray) -> np.ndarray:
    """Logarithms, where a tenth of the best is as bad as anything: the spread is to be that of sound configurations."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(score_R), np.log(np.maximum(score_R, 0.1 * score_R.max())), -np.inf)


def _between(one: float, other: float, share: float) -> float:
    if one > 0 and other > 0:
        return math.exp((1 - share) * math.log(one) + share * math.log(other))
    return (1 - share) * one + share * other
