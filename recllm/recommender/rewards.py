"""The recommender's reward, term by term: what one answer, or its place in a group of answers, is worth.

A term is a pure function of columns, one value a completion: `item` (what the completion names, None where it is not
exactly one sid of the catalogue), `target`, `table`, and for terms that compare within a group `group` (members share a
number) and `place` (0 is the member that the model scores highest). Where a table lets items share a sid, the first of
them stands for all, as item and as target. Whatever the weights, as long as none is negative, an invalid answer is
never worth more than a valid miss of the same group, and a miss never more than a hit.

`Reward` is a term as TRL calls it: it reads the item out of the completion's text, never out of what a rollout claims.
The reward on a beam after each thought stands in `rollout_beam.py`; without a thought it would be the same for all
members of a group, so the recommender's recipe does not list it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recllm.data.prompts import THINK_CLOSE, THINK_OPEN
from recllm.metrics.ranking import ndcg_at_k
from recllm.sid.table import SidTable

Term = Callable[..., list[float | None]]
# TwiSTAR's .5 [a] + .5 [ab] + 1 [abc] + 8 [abcd], divided by its maximum of 10: what the whole sid, the last prefix
# before it and all shorter prefixes together are worth.
_WHOLE, _LAST_PREFIX, _SHORTER = 0.8, 0.1, 0.1


def exact(*, item: Sequence[int | None], target: Sequence[int], table: SidTable, **columns: Any) -> list[float]:
    """1 where the completion is the target, else 0; of n items behind one sid a hit is worth its chance, 1 / n."""
    pairs = zip(item, target, strict=True)
    return [1 / len(table.items(table.sid(wanted))) if got == wanted else 0.0 for got, wanted in pairs]


def rank(
    *,
    item: Sequence[int | None],
    target: Sequence[int],
    group: Sequence[int],
    place: Sequence[int],
    **columns: Any,
) -> list[float]:
    """MiniOneRec's ranking reward, at most 0 (arXiv 2510.24431; added to `exact` a hit is worth 1).

    In a group with a hit, a miss that the model put at place i gets -(1 / log2(i + 2)) / sum_j 1 / log2(j + 2) over the
    group's places j: the more confident, the worse. A hit gets 0, and so does everything in a group without a hit. An
    invalid completion counts as if it stood first.

    Raises:
        ValueError: the places of a group are not 0 to its size - 1.
    """
    values = [0.0] * len(item)
    for members in members_of(group):
        if sorted(place[i] for i in members) != list(range(len(members))):
            raise ValueError(
                f"group {group[members[0]]} of {len(members)} has the places {[place[i] for i in members]}"
            )
        if not any(item[i] == target[i] for i in members):
            continue
        penalty_G = ndcg_at_k(np.arange(len(members)), len(members))
        penalty_G /= penalty_G.sum()
        for i in members:
            if item[i] != target[i]:
                values[i] = -float(penalty_G[0 if item[i] is None else place[i]])
    return values


def prefix(*, item: Sequence[int | None], target: Sequence[int], table: SidTable, **columns: Any) -> list[float]:
    """Hierarchical hit, 0..1: what the leading codes that the answer shares with the target are worth together.

    TwiSTAR's weights (see `prefix_weights`) divided by their sum; an invalid completion gets 0 even where its beginning
    is right.
    """
    earned_L1 = np.concatenate([[0.0], prefix_weights(table.levels).cumsum()])
    earned_L1[-1] = 1.0
    values = []
    for got, wanted in zip(item, target, strict=True):
        same_L = table.codes_NL[wanted] == table.codes_NL[wanted if got is None else got]
        values.append(0.0 if got is None else float(earned_L1[same_L.cumprod().sum()]))
    return values


TERMS: dict[str, Term] = {"exact": exact, "rank": rank, "prefix": prefix}


def prefix_weights(levels: int) -> np.ndarray:
    """What each further matching code adds, float64 of shape (levels,), rising, with sum 1.

    The whole sid .8, the prefix one code shorter .1, all shorter ones share .1 evenly; where there are none, the prefix
    of a two-level sid gets both shares. Four levels: .05, .05, .1, .8.
    """
    if levels < 3:
        return np.array([1.0] if levels == 1 else [_SHORTER + _LAST_PREFIX, _WHOLE])
    return np.array([_SHORTER / (levels - 2)] * (levels - 2) + [_LAST_PREFIX, _WHOLE])


@dataclass(frozen=True)
class Reward:
    """A term over a catalogue as TRL calls it; `__name__` is what its mean is logged under."""

    name: str
    term: Term
    table: SidTable

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """The term of each completion (a text, or a chat of one assistant message); columns are the row's."""
        item = [read_item(self.table, completion) for completion in completions]
        target = [self.table.items(self.table.sid(wanted))[0] for wanted in columns["target"]]
        return self.term(**{**columns, "completions": completions, "item": item, "target": target, "table": self.table})


def read_item(table: SidTable, completion: Any) -> int | None:
    """The item that a completion names, the first behind its sid; None where that is not exactly one sid of an item.

    The answer is the whole text or, after a thought between the markers, what follows it. Never raises.
    """
    if isinstance(completion, list):
        whole = (
            len(completion) == 1 and completion[0].get("role") == "assistant" and not completion[0].get("tool_calls")
        )
        completion = completion[0].get("content") if whole else None
    if not isinstance(completion, str):
        return None
    if completion.startswith(THINK_OPEN):
        completion = completion.partition(THINK_CLOSE)[2].lstrip("\n")
    return next(iter(table.items(table.parse(completion))), None)


def allowed_mass(
    *,
    item: Sequence[int | None],
    target: Sequence[int],
    group: Sequence[int],
    allowed: Sequence[Sequence[float]],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Probability that free sampling stays inside the trie along the completion, 0..1: exp of the sum of `allowed`.

    `allowed` holds, for each token, the log of the mass that the whole vocabulary's distribution puts on the tokens
    which the trie allows. The policy gradient works on that distribution, the draw on its renormalised part: the
    nearer to 1, the less the two differ. None where it was not recorded (NaN). Not a term of the reward. Besides,
    `log_metric` gets

    allowed_mass: the mean of the values. group_duplicates: share of answers that repeat an earlier one of their group;
    0 without replacement. group_hit_rate: mean share of hits in a group. groups_without_hit: share of groups that hold
    none, which teach nothing by `exact` and `rank`.
    """
    values = [float(np.exp(np.sum(log_mass))) for log_mass in allowed]
    known = [value for value in values if not np.isnan(value)]
    hits, groups = [got == wanted for got, wanted in zip(item, target, strict=True)], list(members_of(group))
    repeats = sum(len(members) - len({item[i] for i in members}) for members in groups)
    shares = [sum(hits[i] for i in members) / len(members) for members in groups]
    if log_metric is not None and values:
        if known:
            log_metric("allowed_mass", sum(known) / len(known))
        log_metric("group_duplicates", repeats / len(values))
        log_metric("group_hit_rate", sum(shares) / len(shares))
        log_metric("groups_without_hit", Counter(shares)[0.0] / len(shares))
    return [None if np.isnan(value) else value for value in values]


MONITORS: dict[str, Term] = {"allowed_mass": allowed_mass}


def members_of(group: Sequence[int]) -> Iterator[list[int]]:
    """Positions of each group's members, groups in order of first appearance."""
    found: dict[int, list[int]] = defaultdict(list)
    for position, number in enumerate(group):
        found[number].append(position)
    return iter(found.values())
