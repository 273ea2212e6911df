"""Whether a merge is a Pareto improvement over a parent, and points chosen on one half of the questions, read on the
other.

A point improves on a parent where its accuracy is no lower and its tokens are no more, one of them strictly. Both
claims must hold, so p is the larger of two one-sided p-values (intersection-union test, Berger 1982): that the accuracy
is not higher than the parent's less `margin`, and that the tokens are not fewer. Each is a paired bootstrap under the
null: the resampled differences, centred, are compared with the one that was seen (Efron and Tibshirani 1993, chapter
16). An accuracy that is equal on the whole is thus never shown to be no lower without a margin; the interval of the
difference tells how large a loss is still possible. What is the same on every single question (direct answers of one
length) counts as no worse, and the other claim decides. `p_holm` is corrected for every point and parent
compared (Holm 1979). Where the means themselves are no improvement, p is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recllm.merging.curve import front, recommend
from recllm.merging.results import Results, Row
from recllm.metrics.bootstrap import Interval, mean_interval

LEVEL = 0.05
_DRAWS = 10_000
_CHUNK = 2_000_000  # drawn questions held at once
_SMALL = 1e-12  # two sums of the same differences in another order are equal


@dataclass(frozen=True)
class Comparison:
    """One point beside one parent; differences are the point's less the parent's.

    Attributes:
        accuracy, tokens: mean and 95% interval of the difference; of unpaired tokens the interval is the mean alone.
        improves: whether the means are a Pareto improvement (with the margin that was asked for).
        p, p_holm: of the claim that it is one, by itself and corrected for all comparisons.
    """

    row: Row
    parent: str
    accuracy: Interval
    tokens: Interval
    improves: bool
    p: float
    p_holm: float = math.nan

    @property
    def is_shown(self) -> bool:
        """Whether the improvement stands after correction."""
        return self.improves and self.p_holm <= LEVEL


def compare(results: Results, margin: float = 0.0, seed: int = 0, draws: int | None = None) -> list[Comparison]:
    """Every merge beside every parent, in the table's order.

    Args:
        margin: how much lower an accuracy still counts as no lower.
        draws: resamples; by default enough for the smallest p to survive the correction.

    Raises:
        ValueError: a margin outside [0, 1).
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin must lie in [0, 1), got {margin}")
    pairs = [(row, role) for role in results.parents for row in results.merges]
    if not pairs:
        return []
    draws = draws or max(_DRAWS, math.ceil(4 * len(pairs) / LEVEL))
    found = _paired(results, pairs, margin, seed, draws) if results.paired else _unpaired(results, pairs, margin)
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def holm(p_T: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    p_T = np.asarray(p_T, dtype=np.float64)
    order = np.argsort(p_T, kind="stable")
    steps = p_T[order] * np.arange(len(p_T), 0, -1)
    corrected = np.empty(len(p_T))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected.tolist()


def _improves(accuracy: float, tokens: float, margin: float) -> bool:
    return accuracy + margin >= 0 and tokens <= 0 and (accuracy > 0 or tokens < 0)


def _paired(results: Results, pairs: list[tuple[Row, str]], margin: float, seed: int, draws: int) -> list[Comparison]:
    parents = results.parents
    value_QT = np.stack([row.value_Q - parents[role].value_Q for row, role in pairs], axis=1)
    tokens_QT = np.stack([row.tokens_Q - parents[role].tokens_Q for row, role in pairs], axis=1)
    count = len(pairs)
    gains, p_T = _bootstrap(np.hstack([value_QT, -tokens_QT]), np.repeat([margin, 0.0], count), draws, seed)
    found = []
    for number, (row, role) in enumerate(pairs):
        higher, fewer = gains[number], gains[count + number]
        more = Interval(0.0 - fewer.mean, 0.0 - fewer.hi, 0.0 - fewer.lo, fewer.n)
        better = _improves(higher.mean, more.mean, margin)
        p = float(max(p_T[number], p_T[count + number])) if better else 1.0
        found.append(Comparison(row, role, higher, more, better, p))
    return found


def _bootstrap(gain_QT: np.ndarray, margin_T: np.ndarray, draws: int, seed: int) -> tuple[list[Interval], np.ndarray]:
    """Mean gains with 95% percentile intervals, and p of mean gain <= -margin_T; all columns share the resamples."""
    questions, columns = gain_QT.shape
    mean_T = gain_QT.mean(axis=0)
    centred_QT = gain_QT - mean_T
    rng = np.random.default_rng(seed)
    above_T = np.zeros(columns, dtype=np.int64)
    parts = []
    rows = max(1, _CHUNK // max(questions, columns))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        drawn_RQ = rng.integers(0, questions, (count, questions)) + np.arange(count)[:, None] * questions
        times_RQ = np.bincount(drawn_RQ.ravel(), minlength=count * questions).reshape(count, questions)
        moved_RT = (times_RQ / questions) @ centred_QT
        above_T += (moved_RT >= mean_T + margin_T - _SMALL * (1 + np.abs(mean_T))).sum(axis=0)
        # p needs many resamples, an interval as many as ever.
        if start < _DRAWS:
            parts.append(moved_RT.astype(np.float32))
    lo_T, hi_T = np.quantile(np.concatenate(parts), [0.025, 0.975], axis=0)
    intervals = [
        Interval(float(mean), float(mean + lo), float(mean + hi), questions)
        for mean, lo, hi in zip(mean_T, lo_T, hi_T, strict=True)
    ]
    p_T = (1 + above_T) / (draws + 1)
    p_T[~gain_QT.any(axis=0)] = 0.0
    return intervals, p_T


def _unpaired(results: Results, pairs: list[tuple[Row, str]], margin: float) -> list[Comparison]:
    from scipy.stats import norm

    found = []
    for row, role in pairs:
        parent = results.parents[role]
        gap, tokens = row.accuracy - parent.accuracy, row.tokens - parent.tokens
        spread = math.sqrt(sum(_variance(one) for one in (row, parent)))
        interval = Interval(gap, gap - norm.ppf(0.975) * spread, gap + norm.ppf(0.975) * spread, min(row.n, parent.n))
        better = _improves(gap, tokens, margin)
        p = float(norm.sf((gap + margin) / spread)) if better else 1.0
        found.append(Comparison(row, role, interval, Interval(tokens, tokens, tokens, interval.n), better, p))
    return found


def _variance(row: Row) -> float:
    # Half a success and half a failure more: a share of 0 or 1 has a spread, too.
    share = (row.accuracy * row.n + 0.5) / (row.n + 1)
    return share * (1 - share) / row.n


def halves(questions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two boolean masks over the questions, drawn at random: to choose on, and to read on."""
    if questions < 2:
        raise ValueError(f"{questions} question cannot be split into a half to choose on and one to read on")
    choose_Q = np.zeros(questions, dtype=bool)
    choose_Q[np.random.default_rng(seed).permutation(questions)[: questions // 2]] = True
    return choose_Q, ~choose_Q


@dataclass(frozen=True)
class Choice:
    """A point chosen for a purpose.

    Attributes:
        purpose: `best`, `budget N`, or `over PARENT` (the most convincing improvement over it).
        row: the point; None where no point meets the purpose.
        accuracy, tokens: its means with intervals, on questions that had no part in the choice where `is_held_out`.
        comparison: of `over PARENT`, the point beside the parent on the same questions; p is of this one test.
    """

    purpose: str
    row: Row | None
    is_held_out: bool
    accuracy: Interval | None = None
    tokens: Interval | None = None
    comparison: Comparison | None = None


def subset(results: Results, where_Q: np.ndarray) -> Results:
    """The table as those questions alone would give it; intervals are not taken anew."""

    def part(row: Row) -> Row:
        value_Q, tokens_Q = row.value_Q[where_Q], row.tokens_Q[where_Q]
        means = {"accuracy": float(value_Q.mean()), "tokens": float(tokens_Q.mean()), "n": len(value_Q)}
        return replace(row, value_Q=value_Q, tokens_Q=tokens_Q, **means)

    parents = {role: part(row) for role, row in results.parents.items()}
    return replace(results, rows=tuple(map(part, results.rows)), parents=parents)


def choose(results: Results, budgets: Iterable[float] = (), margin: float = 0.0, seed: int = 0) -> list[Choice]:
    """The most accurate point, one for each token budget, and one over each parent.

    With each question's values known, points are chosen on one half of the questions and read on the other, so that a
    winner's accuracy is not its own luck; else on all of them, and `is_held_out` is false.
    """
    held_out = results.paired and results.rows[0].n > 1
    first = second = results
    if held_out:
        first, second = (subset(results, where_Q) for where_Q in halves(results.rows[0].n, seed))
    found = []
    for purpose, budget in (("best", None), *((f"budget {budget:g}", budget) for budget in budgets)):
        row = recommend(first.distinct, budget)
        found.append(_read(purpose, row, second, held_out))
    if not held_out:
        return found
    tried = compare(first, margin, seed)
    for role in results.parents:
        good = [one for one in tried if one.parent == role and one.improves]
        best = min(good, key=lambda one: (one.p, -one.accuracy.mean, one.tokens.mean), default=None)
        found.append(_beside(role, best.row if best else None, second, margin, seed))
    return found


def _read(purpose: str, row: Row | None, results: Results, held_out: bool) -> Choice:
    if row is None:
        return Choice(purpose, None, held_out)
    read = results.row(row.key)
    if read.value_Q is None:
        accuracy = Interval(read.accuracy, read.accuracy_lo, read.accuracy_hi, read.n)
        tokens = Interval(read.tokens, read.tokens, read.tokens, read.n)
    else:
        accuracy, tokens = mean_interval(read.value_Q), mean_interval(read.tokens_Q)
    return Choice(purpose, read, held_out, accuracy, tokens)


def _beside(role: str, row: Row | None, results: Results, margin: float, seed: int) -> Choice:
    chosen = _read(f"over {role}", row, results, True)
    if row is None:
        return chosen
    alone = replace(results, rows=(chosen.row,), parents={role: results.parents[role]})
    return replace(chosen, comparison=compare(alone, margin, seed)[0])


def front_kept(results: Results, seed: int = 0) -> tuple[int, int] | None:
    """(points on the front of one half of the questions, how many of them are on the other half's front, too)."""
    if not results.paired or results.rows[0].n < 2:
        return None
    fronts = [
        {row.key for row in front(subset(results, where_Q).distinct)} for where_Q in halves(results.rows[0].n, seed)
    ]
    return len(fronts[0]), len(fronts[0] & fronts[1])
