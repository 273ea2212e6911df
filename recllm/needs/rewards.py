"""What an answer about a need is worth: the three stages of the curriculum (methods 3.3) over terms of 0 to 1.

    A = .2 format + .5 semantic + .3 recoverable
    B = .1 format + .2 A + .7 category
    C = .1 format + .1 A + .2 B + .6 service + .1 consistent - .5 outside

`format` 1 for a valid answer; an invalid one gets 0 from every term. `semantic` cosine of need and reference, clipped
to 0..1. `recoverable` RR = min(1, rr(true category given the need) / rr(the same given the reference)), where rr is the
reciprocal rank when the text queries the names of all categories: the division keeps a synonym of the category from
beating the reference. A need with a fault (`faults.py`) gets 0 from both. `category` 1, or a half where the answered
one has the true one's parent. `service` half hit@1, half NDCG@5. `consistent` 1 where the first service is of the
answered category. `outside` 1 where a service is no candidate.

The reference answer gets 1 in A and B and 1.1 in C, and no answer gets more. `outside` could bring a readable answer to
-.4, below the 0 of an unreadable one, which would then pay; so an unreadable answer of stage C is outside too and gets
-.5, the least there is. A row without a usable reference need has no A (None): B and C are then shares of their other
terms, weighed up to the same sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.metrics.ranking import ndcg_at_k, rank_in_list, rank_of_targets, recall_at_k, reciprocal_rank
from recllm.needs.encoders import Encoder
from recllm.needs.faults import Venues, need_fault
from recllm.needs.schema import SERVICES, STAGES, UNKNOWN, Reading, ServiceNames, read_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Values = list[float | None]
TERMS = ("format", "semantic", "recoverable", "category", "service", "consistent", "outside")
WEIGHTS = {
    "need": {"format": 0.2, "semantic": 0.5, "recoverable": 0.3},
    "category": {"format": 0.1, "need": 0.2, "category": 0.7},
    "service": {"format": 0.1, "need": 0.1, "category": 0.2, "service": 0.6},
}
CONSISTENT, OUTSIDE = 0.1, -0.5
_PARENT_CREDIT, _DEPTH = 0.5, 5
# Cosines that differ by less are the same: a text's likeness to itself is exactly 1.
_DECIMALS = 6


@dataclass(frozen=True)
class Places:
    """The services of a catalogue as rewards see them: `category_N` and `parent_N` are "" where an item has none.

    candidates: items that may be answered (a home or an office may not).
    """

    titles_N: Sequence[str]
    category_N: Sequence[str]
    parent_N: Sequence[str]
    candidates: frozenset[int]

    @classmethod
    def from_catalog(cls, catalog: Catalog, candidates: Sequence[int]) -> Places:
        """The places of a catalogue whose categories go from root to leaf (`Catalog.kinds`)."""
        parent_N, category_N = zip(*catalog.kinds, strict=True)
        return cls(catalog.titles, category_N, parent_N, frozenset(map(int, candidates)))

    @cached_property
    def categories(self) -> list[str]:
        """Names of the candidates' categories, in alphabetical order: what a need is searched among."""
        return sorted({self.category_N[item] for item in self.candidates} - {""})

    @cached_property
    def parents(self) -> dict[str, set[str]]:
        """Category -> its parents (a name may stand under several)."""
        found: dict[str, set[str]] = {}
        for category, parent in zip(self.category_N, self.parent_N, strict=True):
            found.setdefault(category, set()).update({parent} - {""})
        return found

    @cached_property
    def venues(self) -> Venues:
        """The titles, as a need must not hold them."""
        return Venues(self.titles_N)

    def answerable(self, visits: Visits, fold: str) -> np.ndarray:
        """Rows of a fold's targets that are candidates, int64."""
        rows = visits.rows(fold)
        return rows[np.isin(visits.sequences.items_M[rows], list(self.candidates))]

    def category_of(self, target: int) -> str:
        """The category of a row's target; ValueError where the target is no candidate or has no category."""
        if target not in self.candidates or not self.category_N[target]:
            fault = "has no category" if target in self.candidates else "is no candidate"
            raise ValueError(f"target {target} {fault}: nothing could be right about it; leave the row out")
        return self.category_N[target]


@dataclass(frozen=True)
class Judge:
    """Values of the terms. `encoder` is frozen; behind a `CachedEncoder` texts are encoded once.

    semantic: whether the reference's meaning is paid for; without, A is .4 format + .6 recoverable (an ablation).
    """

    places: Places
    encoder: Encoder
    semantic: bool = True

    def terms(
        self, readings: Sequence[Reading], stages: Sequence[str], needs: Sequence[str | None], targets: Sequence[int]
    ) -> dict[str, Values]:
        """Every term of `TERMS` for each answer: 0..1, None where it does not apply to the row.

        stages, needs (reference, None or "" where there is none) and targets (item ids) are the rows'.

        Raises:
            ValueError: a target that is no candidate or has no category, or an unknown stage.
        """
        rows = list(zip(readings, stages, needs, targets, strict=True))
        if unknown := set(stages) - set(STAGES):
            raise ValueError(f"stage {min(unknown)!r} is unknown; the stages are {', '.join(STAGES)}")
        wanted = [self.places.category_of(target) for target in targets]
        semantic, recoverable = self._needs(readings, needs, wanted)
        service = _service(readings, targets, self.places.candidates)
        values: dict[str, Values] = {name: [] for name in TERMS}
        for i, (reading, stage, _, _) in enumerate(rows):
            answer, keys = reading.answer, STAGES[stage]
            values["format"].append(float(answer is not None))
            values["semantic"].append(semantic[i] if self.semantic else None)
            values["recoverable"].append(recoverable[i])
            values["category"].append(self._category(reading, wanted[i]) if keys > 2 else None)
            values["service"].append(service[i] if keys > 3 else None)
            first = answer.services[0] if answer and answer.services else UNKNOWN
            held = first in self.places.candidates and self.places.category_N[first] == answer.category
            values["consistent"].append(float(held) if keys > 3 else None)
            outside = answer is None or not self.places.candidates.issuperset(answer.services)
            values["outside"].append(float(outside) if keys > 3 else None)
        return values

    def stages(self, values: Mapping[str, Values], stages: Sequence[str]) -> Values:
        """Each answer's reward in its row's stage, given `terms`; None where nothing applies."""
        by_stage = dict(zip(STAGES, (stage_a(values), stage_b(values), stage_c(values)), strict=True))
        return [by_stage[stage][i] for i, stage in enumerate(stages)]

    def _needs(
        self, readings: Sequence[Reading], needs: Sequence[str | None], wanted: Sequence[str]
    ) -> tuple[Values, Values]:
        """`semantic` and `recoverable`; None without a reference that is one."""
        venues, texts = self.places.venues, {}
        usable = [bool(need) and not need_fault(need, [true], venues) for need, true in zip(needs, wanted, strict=True)]
        judged = []  # the rows whose need is compared, all texts of which are encoded at once
        for i, (reading, true) in enumerate(zip(readings, wanted, strict=True)):
            answer = reading.answer
            if usable[i] and answer and not need_fault(answer.need, [true, answer.category], venues):
                judged.append(i)
                texts |= {answer.need: None, needs[i]: None}
        semantic: Values = [0.0 if able else None for able in usable]
        recoverable = list(semantic)
        if not judged:
            return semantic, recoverable
        place = {text: u for u, text in enumerate(texts)}
        given_B = np.array([place[readings[i].answer.need] for i in judged])
        gold_B = np.array([place[needs[i]] for i in judged])
        true_B = np.array([self.places.categories.index(wanted[i]) for i in judged])
        vectors_XD = self.encoder([*texts, *self.places.categories])
        vectors_UD, categories_CD = vectors_XD[: len(texts)], vectors_XD[len(texts) :]
        # A text has one row here, as an answer and as a reference, so that a reference equals itself to the last bit.
        scores_UC = np.round(vectors_UD @ categories_CD.T, _DECIMALS)
        rr_given_B, rr_gold_B = (
            reciprocal_rank(rank_of_targets(scores_UC[at_B], true_B)) for at_B in (given_B, gold_B)
        )
        cosine_B = np.round((vectors_UD[given_B] * vectors_UD[gold_B]).sum(axis=1), _DECIMALS).clip(0, 1)
        # A reference without a word that the encoder knows is still like itself.
        cosine_B = np.where(given_B == gold_B, 1.0, cosine_B)
        for i, cosine, share in zip(judged, cosine_B, np.minimum(1, rr_given_B / rr_gold_B), strict=True):
            semantic[i], recoverable[i] = float(cosine), float(share)
        return semantic, recoverable

    def _category(self, reading: Reading, wanted: str) -> float:
        given = reading.answer.category if reading.answer else None
        if given == wanted:
            return 1.0
        parents = self.places.parents
        return _PARENT_CREDIT if parents.get(given, set()) & parents[wanted] else 0.0


def _service(readings: Sequence[Reading], targets: Sequence[int], candidates: frozenset[int]) -> list[float]:
    lists_BK = np.full((len(readings), SERVICES), UNKNOWN, dtype=np.int64)
    for row_K, reading in zip(lists_BK, readings, strict=True):
        services = reading.answer.services if reading.answer else ()
        # Numbers that are no service may not even fit.
        row_K[: len(services)] = [item if item in candidates else UNKNOWN for item in services]
    rank_B = rank_in_list(lists_BK, np.asarray(targets, dtype=np.int64))
    return (0.5 * recall_at_k(rank_B, 1) + 0.5 * ndcg_at_k(rank_B, _DEPTH)).tolist()


def stage_a(values: Mapping[str, Values]) -> Values:
    """A of each answer, 0..1; None where the row has no reference need."""
    known = values["recoverable"]
    mixed = _mix("need", values)
    return [None if known[i] is None else value for i, value in enumerate(mixed)]


def stage_b(values: Mapping[str, Values]) -> Values:
    """B of each answer, 0..1; None where `category` does not apply."""
    mixed = _mix("category", {**values, "need": stage_a(values)})
    return [None if values["category"][i] is None else value for i, value in enumerate(mixed)]


def stage_c(values: Mapping[str, Values]) -> Values:
    """C of each answer, -.5..1.1; None where `service` does not apply."""
    mixed = _mix("service", {**values, "need": stage_a(values), "category": stage_b(values)})
    extra = zip(mixed, values["service"], values["consistent"], values["outside"], strict=True)
    return [
        None if applies is None else value + CONSISTENT * consistent + OUTSIDE * outside
        for value, applies, consistent, outside in extra
    ]


def _mix(stage: str, values: Mapping[str, Values]) -> list[float]:
    """The weighted terms of each answer over the weight of those that apply."""
    weights = WEIGHTS[stage]
    mixed = []
    for row in zip(*(values[name] for name in weights), strict=True):
        known = [(weight, value) for weight, value in zip(weights.values(), row, strict=True) if value is not None]
        mixed.append(sum(weight * value for weight, value in known) / sum(weight for weight, _ in known))
    return mixed


@dataclass(frozen=True)
class NeedReward:
    """The reward, or one of `TERMS`, as TRL calls it; `__name__` is what its mean is logged under.

    Rows bring the columns `stage`, `need` and `target`. It reads what was written, the tokens.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    names: ServiceNames
    judge: Judge

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        stage: Sequence[str],
        need: Sequence[str | None],
        target: Sequence[int],
        **columns: Any,
    ) -> Values:
        return self.values(completion_ids, stage, need, target)[self.name]

    def values(
        self,
        completion_ids: Sequence[Sequence[int]],
        stage: Sequence[str],
        need: Sequence[str | None],
        target: Sequence[int],
    ) -> dict[str, Values]:
        """The `reward` and every term of `TERMS` for each completion."""
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in completion_ids]
        readings = [read_answer(text, at, self.names) for text, at in zip(texts, stage, strict=True)]
        values = self.judge.terms(readings, stage, need, target)
        return {"reward": self.judge.stages(values, stage), **values}
