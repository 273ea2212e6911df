"""Contestants of living needs on the same targets: models of needs, and the baselines they have to beat.

Users (or the sessions that stand for them) are resampled as clusters, for visits of one user are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.evaluation.needs_values import OF_NEED, NeedsBench, values
from recllm.metrics.bootstrap import Clusters, flat
from recllm.needs.answers import NeedsAnswers
from recllm.needs.asking import Asking
from recllm.needs.baselines import Baselines, Chosen
from recllm.needs.encoders import named_encoder
from recllm.needs.model import NeedsModel
from recllm.needs.patterns import Patterns
from recllm.needs.schema import ServiceNames
from recllm.provenance import METRICS_FILE, load_run, read_json

MODELS = ("joint", "two_models", "no_clustering", "no_curriculum", "no_semantic_reward")
BASELINES = ("popular_by_context", "own_history", "graph", "sasrec", "hstu")
BEST = "best_baseline"
# What the report is about; a baseline is also named that is best at each.
HEADLINES = ("hr@5", "hr@5_new", "category_hr@5", "ndcg@5", "need_similarity")
_CHOICE = "ndcg@5"
# Validation targets that a model's number of categories is chosen on, at most.
_WIDTH_ROWS = 600
# What is told of parts of the venues and needs.
_OF_PARTS = ("hr@5", "ndcg@5", "category_hr@5", "need_similarity", "type_accuracy")
Values = dict[str, np.ndarray]


def load_bench(dataset: str | Path, patterns: str | Path, encoder: str) -> NeedsBench:
    """A data set with its patterns and the named encoder, minilm or tfidf."""
    visits, catalog = Visits.load(dataset), Catalog.load(dataset)
    known = Patterns.load(patterns, visits)
    corpus = {*known.frame["need"], *(name for names in catalog.categories for name in names)}
    return NeedsBench(visits, catalog, known, named_encoder(encoder, sorted(corpus)))


def baselines_of(bench: NeedsBench, backbones: Mapping[str, str | None], graph: Mapping[str, Any]) -> dict[str, Chosen]:
    """The baselines by name; backbones that are not given are left out."""
    found = Baselines(bench.visits, bench.patterns, bench.askable)
    chosen = {"popular_by_context": found.popular_by_context(), "own_history": found.own_history()}
    chosen["graph"] = found.graph(**graph)
    return chosen | {name: found.backbone(folder) for name, folder in backbones.items() if folder}


def answer_by_models(
    bench: NeedsBench, folders: Sequence[str], rows: np.ndarray, categories: int = 1, label: str = "needs"
) -> NeedsAnswers:
    """Answers of one model that says all, or of two, the first saying the need that the second is told.

    Raises:
        ValueError: other than one or two folders, or a model of another data set.
    """
    return answers_by_width(bench, folders, rows, (categories,), label)[categories]


def answers_by_width(
    bench: NeedsBench, folders: Sequence[str], rows: np.ndarray, widths: Sequence[int], label: str = "needs"
) -> dict[int, NeedsAnswers]:
    """As `answer_by_models`, for several widths: how many of the best categories bring services.

    Raises:
        ValueError: as there.
    """
    if len(folders) not in (1, 2):
        raise ValueError(f"{label}: one model answers, or two share it; got {len(folders)} folders")
    models = [NeedsModel.load(folder) for folder in folders]
    for model in models:
        model.vocabulary.check(bench.visits, bench.catalog)
    asking = [Asking(bench.visits, bench.places, ServiceNames(model.table)) for model in models]
    given: list[tuple[str, str] | None] = [None] * len(rows)
    if len(models) == 2:
        given = models[0].write_needs([asking[0].chat(row, "need") for row in rows.tolist()])
    chats = [asking[-1].chat(row, "service", told) for row, told in zip(rows.tolist(), given, strict=True)]
    answers = {}
    for width in widths:
        told = label if len(widths) == 1 else f"{label}, {width} wide"
        answers[width] = replace(models[-1], categories=width).answer(chats, label=told)
    if len(models) == 1:
        return answers
    needs, types = (list(said) for said in zip(*given, strict=True))
    return {
        width: NeedsAnswers(needs, types, found.categories_EK, found.services_EK) for width, found in answers.items()
    }


def chosen_width(
    bench: NeedsBench, folders: Sequence[str], widths: Sequence[int], most: int | None = None, label: str = "needs"
) -> int:
    """How many of the best categories should bring services: the width with the best NDCG@5 on validation, the first of
    equals. most: validation targets, at most; never more than `_WIDTH_ROWS`."""
    if len(widths) == 1:
        return widths[0]
    rows = bench.rows("validation", min(most or _WIDTH_ROWS, _WIDTH_ROWS))
    answers = answers_by_width(bench, folders, rows, widths, label)
    found = {width: values(bench, rows, answer)[_CHOICE].mean() for width, answer in answers.items()}
    return max(found, key=lambda width: float(found[width]))


def evaluate_needs(
    bench: NeedsBench,
    models: Mapping[str, Sequence[str]],
    backbones: Mapping[str, str | None],
    graph: Mapping[str, Any] | None = None,
    most: int | None = None,
    categories: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Flat metrics of every contestant on test targets, `NAME/METRIC[_GROUP]` with `_lo` and `_hi`.

    models: name -> folders (`answer_by_models`); of several `categories` each model's is chosen on validation, and told
    as `NAME/chosen_categories`. `best_baseline/...` repeats the baseline with the best NDCG@5 on
    validation; it states the need of the baseline that is best at `need_similarity` there. `strongest/METRIC` is the
    baseline that is best on validation at that very metric. `over/NAME/METRIC` is the paired difference of joint and
    NAME, `gain/NAME/METRIC` the relative one.
    """
    rows, choice = bench.rows("test", most), bench.rows("validation", most)
    groups, choice_groups = bench.groups(rows), bench.groups(choice)
    baselines = baselines_of(bench, backbones, graph or {})
    on_choice = {name: values(bench, choice, chosen.answer(choice)) for name, chosen in baselines.items()}
    on_test = {name: values(bench, rows, chosen.answer(rows)) for name, chosen in baselines.items()}
    widths = {name: chosen_width(bench, folders, categories, most, name) for name, folders in models.items() if folders}
    on_test |= {
        name: values(bench, rows, answer_by_models(bench, models[name], rows, width, name))
        for name, width in widths.items()
    }
    best = {name: best_at(name, on_choice, choice_groups) for name in HEADLINES}
    clusters = Clusters(bench.user_of(rows))
    metrics: dict[str, Any] = {"n": len(rows), "clusters": len(np.unique(clusters.cluster_E))}
    metrics |= {f"n_{name}": int(in_E.sum()) for name, in_E in groups.items()}
    if len(categories) > 1:
        metrics |= {f"{name}/chosen_categories": width for name, width in widths.items()}
    for name, chosen in baselines.items():
        metrics |= {f"{name}/chosen_{key}": value for key, value in chosen.settings.items()}
        metrics |= {f"validation/{name}/{key}": mean(on_choice[name], key, choice_groups) for key in HEADLINES}
    on_test[BEST] = {**on_test[best[_CHOICE]]}
    if stating := best["need_similarity"]:
        on_test[BEST] |= {key: on_test[stating][key] for key in OF_NEED if key in on_test[stating]}
    for name, found in on_test.items():
        metrics |= described(name, found, groups, clusters)
    metrics |= {f"{BEST}/name": best[_CHOICE], f"{BEST}/need_name": best["need_similarity"]}
    for key, name in best.items():
        if name:
            metrics |= {f"strongest/{key}": mean(on_test[name], key, groups), f"strongest/{key}_name": name}
    if "joint" in on_test:
        metrics |= compared(on_test, best, groups, clusters)
    return {key: value for key, value in metrics.items() if value is not None}


def picked(found: Values, key: str, groups: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Values of a metric, or of `METRIC_GROUP`, and which examples they hold for; None where there is none."""
    name = key.removesuffix("_new")
    if name not in found or (key != name and "new" not in groups):
        return None
    where_E = np.isfinite(found[name]) & (groups["new"] if key != name else True)
    return (found[name], where_E) if where_E.any() else None


def mean(found: Values, key: str, groups: Mapping[str, np.ndarray]) -> float | None:
    """Mean of a headline; None where it does not apply."""
    held = picked(found, key, groups)
    return None if held is None else float(held[0][held[1]].mean())


def best_at(key: str, found: Mapping[str, Values], groups: Mapping[str, np.ndarray]) -> str | None:
    """The contestant with the best mean, the first of equals; None where none states it."""
    known = {name: value for name, each in found.items() if (value := mean(each, key, groups)) is not None}
    return max(known, key=known.get) if known else None


def described(name: str, found: Values, groups: Mapping[str, np.ndarray], clusters: Clusters) -> dict[str, float]:
    """A contestant's metrics with intervals, over all examples and by groups."""
    metrics = {}
    for key, values_E in found.items():
        for group, in_E in {"": np.ones(len(values_E), dtype=bool), **groups}.items():
            if group not in ("", "new", "repeat") and key not in _OF_PARTS:
                continue
            where_E = in_E & np.isfinite(values_E)
            if where_E.any():
                metrics |= flat(f"{name}/{key}{'_' + group if group else ''}", clusters.mean(values_E, where_E))
    return metrics


def compared(
    on_test: Mapping[str, Values], best: Mapping[str, str | None], groups: Mapping[str, np.ndarray], clusters: Clusters
) -> dict[str, float]:
    """Paired differences and relative gains of `joint` over the others, at each headline."""
    metrics = {}
    rivals = [name for name in (BEST, *MODELS[1:], *BASELINES) if name in on_test]
    for key in HEADLINES:
        others = {name: on_test[name] for name in rivals}
        others |= {"strongest": on_test[best[key]]} if best[key] else {}
        for name, found in others.items():
            ours, theirs = picked(on_test["joint"], key, groups), picked(found, key, groups)
            if ours is None or theirs is None:
                continue
            where_E = ours[1] & theirs[1]
            metrics |= flat(f"over/{name}/{key}", clusters.mean(ours[0] - theirs[0], where_E))
            if (gain := clusters.gain(ours[0], theirs[0], where_E)) is not None:
                metrics |= flat(f"gain/{name}/{key}", gain)
    return metrics


def bayes_ahead(dataset: str | Path) -> dict[str, float]:
    """What the Bayes observer of a synthetic city knows ahead of the test's visits; nothing for other data sets."""
    if (load_run(dataset) or {}).get("recipe") != "needs_world":
        return {}
    found = read_json(Path(dataset) / METRICS_FILE)
    names = ("need_accuracy_ahead", "need_accuracy_ahead_expected", "majority_need")
    return {f"bayes/{name}": found[f"bayes/test/{name}"] for name in names if f"bayes/test/{name}" in found}
