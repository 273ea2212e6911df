"""What each answer about a need is worth, example by example, and the groups that examples fall in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.metrics.ranking import ndcg_at_k, rank_in_list, rank_of_targets, recall_at_k, reciprocal_rank
from recllm.needs.answers import Askable, NeedsAnswers
from recllm.needs.encoders import Encoder
from recllm.needs.faults import need_fault
from recllm.needs.patterns import Patterns
from recllm.needs.rewards import Places
from recllm.needs.vocabulary import candidates

HITS, CUTS = (1, 3, 5), (5, 10)
RANKED = (*(f"hr@{k}" for k in HITS), *(f"ndcg@{k}" for k in CUTS))
# Metrics of the need, which hold for the examples that have what they compare with.
OF_NEED = ("need_similarity", "type_accuracy", "recoverability", "need_accuracy")
PARTS = ("head", "torso", "tail")


@dataclass(frozen=True, eq=False)
class NeedsBench:
    """A data set, its patterns and the encoder that needs are compared with.

    meanings: derived need -> planted one, where that was learnt on another data set (`planted_of`).
    """

    visits: Visits
    catalog: Catalog
    patterns: Patterns
    encoder: Encoder
    meanings: Mapping[str, str] | None = None

    @cached_property
    def places(self) -> Places:
        """The catalogue with the services that may be answered."""
        return Places.from_catalog(self.catalog, candidates(self.visits, self.catalog))

    @cached_property
    def askable(self) -> Askable:
        """The same, as columns of scores."""
        return Askable.of(self.places)

    def rows(self, fold: str, most: int | None = None, seed: int = 0) -> np.ndarray:
        """Rows of a fold's targets that may be answered; with `most` those of as many whole users, drawn by the seed,
        as do not have more.

        Raises:
            ValueError: the fold has none.
        """
        rows = self.places.answerable(self.visits, fold)
        if most is not None and len(rows) > most:
            users, place_E, count_U = np.unique(self.user_of(rows), return_inverse=True, return_counts=True)
            order = np.random.default_rng(seed).permutation(len(users))
            kept = order[np.cumsum(count_U[order]) <= most]
            rows = rows[np.isin(place_E, kept)]
        if not len(rows):
            raise ValueError(f"the fold {fold!r} has no target that may be answered (of at most {most} a report)")
        return rows

    def user_of(self, rows: np.ndarray) -> np.ndarray:
        """Users (or sessions) of some visits, as places among all."""
        return self.visits.sequences.user_M[rows]

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Items of some visits, int64."""
        return self.visits.sequences.items_M[rows].astype(np.int64)

    def categories(self, rows: np.ndarray) -> list[str]:
        """Categories of some visits."""
        return [self.places.category_N[item] for item in self.targets(rows).tolist()]

    def references(self, rows: np.ndarray) -> list[tuple[str, str]]:
        """Derived need and type of some visits, "" where there is none."""
        return self.patterns.events[rows].select("need", "need_type").rows()

    @cached_property
    def planted_of(self) -> Mapping[str, str]:
        """Derived need -> the planted one that it shares most fitted visits with; empty where none is planted."""
        if self.meanings is not None:
            return self.meanings
        pairs = pl.DataFrame(
            {name: frame["need"] for name, frame in (("derived", self.patterns.events), ("true", self.visits.frame))}
        )
        pairs = pairs[self.visits.rows("fit")].filter((pl.col("derived") != "") & (pl.col("true") != ""))
        counts = pairs.group_by("derived", "true").len().sort("len", "true", descending=[True, False])
        return dict(counts.unique("derived", keep="first", maintain_order=True).select("derived", "true").rows())

    def groups(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Names of groups -> which examples are in them, bool; those without any are left out.

        new, repeat: whether the user had been to the venue. venue_head, torso, tail: the most visited venues that
        together hold a third of the fitted visits, those that hold the next third, the others; need_...: the same of
        derived needs.
        """
        targets = self.targets(rows)
        past = [set(self.visits.sequences.items_M[self.visits.history(row)].tolist()) for row in rows]
        new_E = np.array([target not in seen for target, seen in zip(targets.tolist(), past, strict=True)])
        fitted = self.visits.rows("fit")
        venue_E = _thirds(self.targets(fitted), targets)
        needs = self.patterns.events["need"]
        known = needs[fitted].filter(needs[fitted] != "").to_numpy()
        need_E = _thirds(known, needs[rows].to_numpy())
        has_E = (needs[rows] != "").to_numpy()
        found = {"new": new_E, "repeat": ~new_E}
        found |= {f"venue_{part}": venue_E == i for i, part in enumerate(PARTS)}
        found |= {f"need_{part}": has_E & (need_E == i) for i, part in enumerate(PARTS)}
        return {name: in_E for name, in_E in found.items() if in_E.any()}


def _thirds(fitted_M: np.ndarray, asked_E: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each asked value, by how much of the fitted values those hold that are more frequent than it."""
    values, counts = np.unique(fitted_M, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = (np.cumsum(counts[order]) - counts[order]) / max(counts.sum(), 1)
    part_of = dict(zip(values[order].tolist(), np.minimum((before * len(PARTS)).astype(int), 2), strict=True))
    return np.array([part_of.get(value, len(PARTS) - 1) for value in asked_E.tolist()])


def values(bench: NeedsBench, rows: np.ndarray, answers: NeedsAnswers) -> dict[str, np.ndarray]:
    """Each metric's value of every example, float64 `E`; NaN where it does not apply.

    hr@K, ndcg@K: of the visited service; category_...: of its category. need_similarity: cosine of need and reference,
    0 to 1; type_accuracy; recoverability: reciprocal rank of the true category when the need queries the names of all;
    need_accuracy: whether the need stands for the planted one, that of the derived need nearest to it.
    A need with a fault (`faults.py`) has similarity and recoverability 0.
    """
    rank_E = rank_in_list(answers.services_EK, bench.targets(rows))
    wanted = bench.categories(rows)
    pairs = zip(answers.categories_EK, wanted, strict=True)
    category_rank_E = np.array([float(names.index(true)) if true in names else np.inf for names, true in pairs])
    found = {}
    for prefix, ranks_E in (("", rank_E), ("category_", category_rank_E)):
        found |= {f"{prefix}hr@{k}": recall_at_k(ranks_E, k) for k in HITS}
        found |= {f"{prefix}ndcg@{k}": ndcg_at_k(ranks_E, k) for k in CUTS}
    if answers.needs is not None:
        found |= _need_values(bench, rows, answers.needs, answers.types or [""] * len(rows), wanted)
    return {name: np.asarray(values_E, dtype=np.float64) for name, values_E in found.items()}


def _need_values(
    bench: NeedsBench, rows: np.ndarray, needs: Sequence[str], types: Sequence[str], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    references, kinds = zip(*bench.references(rows), strict=True)
    names = bench.places.categories
    known = list(bench.planted_of)
    texts = list(dict.fromkeys([*needs, *references, *names, *known]))
    place = {text: i for i, text in enumerate(texts)}
    vectors_XD = bench.encoder(texts)
    at_E = np.array([place[need] for need in needs])
    sound_E = np.array([
        need_fault(need, [true], bench.places.venues) is None for need, true in zip(needs, wanted, strict=True)
    ])  # fmt: skip
    cosine_E = (vectors_XD[at_E] * vectors_XD[[place[text] for text in references]]).sum(1).clip(0, 1)
    same_E = np.array([need == text for need, text in zip(needs, references, strict=True)])
    has_E = np.array([text != "" for text in references])
    of_name_EC = vectors_XD[at_E] @ vectors_XD[[place[name] for name in names]].T
    true_E = np.array([names.index(true) for true in wanted])
    found = {
        "need_similarity": np.where(has_E, sound_E * np.where(same_E, 1.0, cosine_E), np.nan),
        "type_accuracy": np.where(has_E, np.array(types) == np.array(kinds), np.nan),
        "recoverability": sound_E * reciprocal_rank(rank_of_targets(np.round(of_name_EC, 6), true_E)),
        "need_fault": 1.0 - sound_E,
    }
    planted = bench.visits.frame["need"][rows].to_list()
    if known and any(planted):
        nearest_E = (vectors_XD[at_E] @ vectors_XD[[place[text] for text in known]].T).argmax(1)
        pairs = zip(needs, nearest_E, strict=True)
        meant = [bench.planted_of.get(need, bench.planted_of[known[i]]) for need, i in pairs]
        right_E = np.array(meant) == np.array(planted)
        found["need_accuracy"] = np.where(np.array(planted) != "", right_E, np.nan)
    return found
