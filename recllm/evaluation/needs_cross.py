"""A model of needs in another city: the needs and categories are the same, the venues are not.

The model is asked about the other city's visits as it is about its own, but services are not written: it knows none of
them. Its needs and categories are graded. What it competes with is what is popular in a context at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.evaluation.needs import described
from recllm.evaluation.needs_values import NeedsBench, values
from recllm.metrics.bootstrap import Clusters, flat
from recllm.needs.answers import CATEGORIES, NeedsAnswers
from recllm.needs.asking import Asking
from recllm.needs.counting import Cells, PopularByContext
from recllm.needs.model import NeedsModel
from recllm.needs.patterns import Patterns
from recllm.needs.schema import SERVICES


@dataclass(frozen=True)
class NoNames:
    """Stands for the names of services where the model knows none."""

    def write(self, item: int) -> str:
        """Nothing, whatever the item."""
        return ""


def abroad(home: NeedsBench, dataset: str | Path, patterns: str | Path | None) -> NeedsBench:
    """Another city's visits, judged by what derived needs mean at home.

    Without its own patterns there is no reference for the needs, and the planted ones alone are held against them.

    Raises:
        ValueError: the cities have no category in common.
    """
    visits, catalog = Visits.load(dataset), Catalog.load(dataset)
    if patterns is None:
        nothing = {"pattern_id": pl.lit(-1, pl.Int32), "need": pl.lit(""), "need_type": pl.lit("")}
        known = replace(home.patterns, events=visits.frame.with_columns(**nothing).select(*nothing))
    else:
        known = Patterns.load(patterns, visits)
    # What a need stands for was learnt at home.
    bench = NeedsBench(visits, catalog, known, home.encoder, home.planted_of)
    if not set(bench.places.categories) & set(home.places.categories):
        raise ValueError(f"{dataset} has no category that the model's own city has: nothing carries over")
    return bench


def evaluate_abroad(
    home: NeedsBench, there: NeedsBench, folders: Sequence[str], most: int | None = None
) -> dict[str, float]:
    """Flat metrics `cross/joint/...` and `cross/popular_by_context/...` of needs and categories on the test targets of
    the other city, and `cross/over/METRIC`, the paired difference."""
    rows = there.rows("test", most)
    model = NeedsModel.load(folders[0])
    model.vocabulary.check(home.visits, home.catalog)
    asking = Asking(there.visits, there.places, NoNames())
    ours = model.answer([asking.chat(row, "service") for row in rows.tolist()], label="cross")
    answers = {"joint": ours, "popular_by_context": popular_at_home(home, there, rows)}
    clusters, groups = Clusters(there.user_of(rows)), there.groups(rows)
    metrics: dict[str, float] = {"cross/n": len(rows)}
    held = {name: _without_services(values(there, rows, found)) for name, found in answers.items()}
    for name, found in held.items():
        kept = {group: in_E for group, in_E in groups.items() if group.startswith("need_")}
        metrics |= described(f"cross/{name}", found, kept, clusters)
    for key, values_E in held["joint"].items():
        where_E = np.isfinite(values_E) & np.isfinite(held["popular_by_context"].get(key, np.full(len(rows), np.nan)))
        if where_E.any():
            difference_E = values_E - held["popular_by_context"][key]
            metrics |= flat(f"cross/over/{key}", clusters.mean(difference_E, where_E))
    return metrics


def _without_services(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: values_E for key, values_E in found.items() if not key.startswith(("hr@", "ndcg@"))}


def popular_at_home(home: NeedsBench, there: NeedsBench, rows: np.ndarray) -> NeedsAnswers:
    """Categories and derived needs that are popular in the context of each row, as they were fitted at home."""
    columns = ["hour", "weekday", "weather", "scene"]
    cells = Cells.of(pl.concat([home.visits.frame.select(columns), there.visits.frame.select(columns)]))
    fitted, after = home.visits.rows("fit"), rows + len(home.visits)
    names = home.places.categories
    place = {name: i for i, name in enumerate(names)}
    label_M = np.array([place.get(home.places.category_N[item], -1) for item in home.visits.sequences.items_M])
    share_EC = PopularByContext(cells, label_M, fitted, len(names))(after)
    order_EK = np.argsort(-share_EC, axis=1, kind="stable")[:, :CATEGORIES]
    pairs = home.patterns.events.filter(pl.col("need") != "").select("need", "need_type").unique(maintain_order=True)
    if not pairs.height:
        raise ValueError("the home city's patterns have no derived need: nothing carries over; find patterns first")
    known = {pair: i for i, pair in enumerate(pairs.rows())}
    label_M = np.array([known.get(pair, -1) for pair in home.patterns.events.select("need", "need_type").iter_rows()])
    best_E = PopularByContext(cells, label_M, fitted, len(known))(after).argmax(1)
    needs, types = (pairs[name].gather(best_E).to_list() for name in ("need", "need_type"))
    services_EK = np.full((len(rows), SERVICES), -1, dtype=np.int64)
    return NeedsAnswers(needs, types, [[names[i] for i in best_K] for best_K in order_EK], services_EK)
