"""What models of needs compete with, in one harness: each baseline answers rows of visits with `NeedsAnswers`.

`popular_by_context` and `own_history` count (`counting.py`) and state a need the same way, the likeliest derived need;
`graph` retrieves (`graph.py`); `sasrec` and `hstu` are backbones fitted by recipes/train_backbone.py. All are fitted on
the fold "fit", and what they leave open is chosen on validation. Seen venues compete, and askable ones alone do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.data.checkins import Visits
from recllm.data.splits import Examples
from recllm.metrics.ranking import ndcg_at_k, rank_in_list
from recllm.needs.answers import Askable, NeedsAnswers, Scorer, answer_by_scores
from recllm.needs.counting import Cells, OwnHistory, PopularByContext

if TYPE_CHECKING:
    from recllm.backbones.base import Backbone
    from recllm.needs.patterns import Patterns

Contestant = Callable[[np.ndarray], NeedsAnswers]
# Rows of validation that choices are made on, at most, and the metric's cut-off.
_CHOICE_ROWS, _CUT, _EVERY = 1500, 5, 3
_LEANS = (10.0, 30.0, 100.0, 300.0)
_OWN = {"memory": (10.0, 30.0, 100.0, 1000.0), "alike": (0.0, 3.0, 10.0), "lean": (1.0, 10.0, 100.0, 1000.0)}


@dataclass(frozen=True, eq=False)
class Chosen:
    """A contestant and what was chosen for it on validation, names to numbers."""

    answer: Contestant
    settings: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Baselines:
    """The baselines of a data set, fitted when they are asked for."""

    visits: Visits
    patterns: Patterns
    askable: Askable
    seed: int = 0

    @cached_property
    def cells(self) -> Cells:
        """Contexts of all visits."""
        return Cells.of(self.visits.frame)

    @cached_property
    def choice_rows(self) -> np.ndarray:
        """Validation rows that choices are made on: those with an askable target, or some of them."""
        rows = self.visits.rows("validation")
        rows = rows[self.askable.columns(self.visits.sequences.items_M[rows]) >= 0]
        return np.sort(np.random.default_rng(self.seed).permutation(rows)[:_CHOICE_ROWS])

    def measure(self, score: Scorer, every: int = 1) -> float:
        """NDCG@5 of a scorer's services on validation, or on every so many of its rows."""
        rows = self.choice_rows[::every]
        found = answer_by_scores(score, rows, self.askable)
        targets = self.visits.sequences.items_M[rows]
        return float(ndcg_at_k(rank_in_list(found.services_EK, targets), _CUT).mean())

    @cached_property
    def _popular(self) -> PopularByContext:
        label_M = self.askable.columns(self.visits.sequences.items_M)
        start = PopularByContext(self.cells, label_M, self.visits.rows("fit"), len(self.askable))
        tried = [replace(start, lean=lean) for lean in _LEANS]
        return max(tried, key=self.measure)

    def popular_by_context(self) -> Chosen:
        """What is popular in the context."""
        return Chosen(self._stating(self._popular, lambda table: table), {"lean": self._popular.lean})

    def own_history(self) -> Chosen:
        """The user's own visits, recent ones and those in an alike context counting more."""
        best = OwnHistory(self.visits, self._popular)
        # One after the other: all combinations would take minutes.
        for name, options in _OWN.items():
            best = max((replace(best, **{name: value}) for value in options), key=self.measure)
        settings = {name: getattr(best, name) for name in _OWN}
        return Chosen(self._stating(best, lambda table: replace(best, popular=table)), settings)

    def graph(self, **options: Any) -> Chosen:
        """Retrieval over users, contexts and venues; `options` are those of `GraphOptions`."""
        from recllm.needs.graph import GraphOptions, VenueGraph

        graph = VenueGraph(self.visits, self.askable, self.cells, GraphOptions(**options))
        # After every epoch, so of fewer rows.
        report = graph.fit(lambda score: self.measure(score, _EVERY))
        settings = {"best_epoch": report.best_epoch, "seconds": report.seconds}
        return Chosen(self._silent(graph.scorer()), settings)

    def backbone(self, folder: str | Path) -> Chosen:
        """A backbone that was fitted on this data set. ValueError where its items are other ones."""
        from recllm.backbones.train import load_sequential

        model = load_sequential(folder)
        if model.num_items <= self.askable.items_C[-1]:
            raise ValueError(f"{folder} knows {model.num_items} items, fewer than the data set: train it on this one")
        return Chosen(self._silent(backbone_scorer(model, self.visits, self.askable)), {})

    def _silent(self, score: Scorer) -> Contestant:
        return lambda rows: answer_by_scores(score, rows, self.askable)

    def _stating(self, score: Scorer, of_needs: Callable[[PopularByContext], Scorer]) -> Contestant:
        """A contestant that also states the derived need with the highest share; `of_needs` makes its scorer."""
        events = self.patterns.events
        pairs = events.filter(events["need"] != "").select("need", "need_type").unique(maintain_order=True).rows()
        place = {pair: i for i, pair in enumerate(pairs)}
        if not pairs:
            return self._silent(score)
        label_M = np.array([place.get(pair, -1) for pair in events.select("need", "need_type").iter_rows()])
        table = PopularByContext(self.cells, label_M, self.visits.rows("fit"), len(pairs), self._popular.lean)
        need_score = of_needs(table)

        def answer(rows: np.ndarray) -> NeedsAnswers:
            found = answer_by_scores(score, rows, self.askable)
            best = [pairs[i] for i in need_score(rows).argmax(1)]
            needs, types = zip(*best, strict=True)
            return replace(found, needs=list(needs), types=list(types))

        return answer


def backbone_scorer(model: Backbone, visits: Visits, askable: Askable) -> Scorer:
    """Softmax of a backbone's scores over the askable venues."""
    from recllm.backbones.fit import score_batches

    sequences = visits.sequences

    def score(rows: np.ndarray) -> np.ndarray:
        users = sequences.user_M[rows]
        examples = Examples(users, rows - sequences.offsets_U1[users], sequences)
        scores_BC = np.zeros((len(rows), len(askable)), dtype=np.float32)
        for places, scores_BN in score_batches(model, examples):
            scores_BC[places] = scores_BN[:, askable.items_C].float().softmax(1).cpu().numpy()
        return scores_BC

    return score
