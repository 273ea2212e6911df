"""The report on living needs as a person reads it: tables of every contestant, what is ahead of what, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recllm.evaluation.needs import BASELINES, BEST, HEADLINES, MODELS
from recllm.evaluation.needs_values import PARTS
from recllm.evaluation.report import blank_figure, markdown_table, save_figure, short_interval

AIM = 0.25
_BARS = ("hr@5", "hr@5_new", "category_hr@5", "category_hr@5_new")
_TABLES = {
    "Services": ("hr@1", "hr@3", "hr@5", "ndcg@5", "ndcg@10"),
    "Services, venues new to the user": ("hr@1_new", "hr@3_new", "hr@5_new", "ndcg@5_new", "ndcg@10_new"),
    "Services, venues visited before": ("hr@1_repeat", "hr@3_repeat", "hr@5_repeat", "ndcg@5_repeat"),
    "Categories": ("category_hr@1", "category_hr@3", "category_hr@5", "category_ndcg@5", "category_ndcg@10"),
    "Categories, venues new to the user": tuple(f"category_{key}_new" for key in ("hr@1", "hr@3", "hr@5", "ndcg@5")),
    "Needs": ("need_similarity", "type_accuracy", "recoverability", "need_accuracy", "need_fault"),
    "By popularity of the venue": tuple(f"{key}_venue_{part}" for key in ("hr@5", "category_hr@5") for part in PARTS),
    "By frequency of the derived need": tuple(
        f"{key}_need_{part}" for key in ("hr@5", "category_hr@5", "need_similarity") for part in PARTS
    ),
}


def contestants(metrics: Mapping[str, Any]) -> list[str]:
    """The contestants that the metrics hold, the models first."""
    return [name for name in (*MODELS, *BASELINES) if f"{name}/ndcg@5" in metrics]


def needs_table(metrics: Mapping[str, Any], keys: tuple[str, ...], prefix: str = "") -> str:
    """A Markdown table with a row for each contestant that has one of the metrics."""
    names = [name for name in (*MODELS, *BASELINES) if any(f"{prefix}{name}/{key}" in metrics for key in keys)]
    keys = tuple(key for key in keys if any(f"{prefix}{name}/{key}" in metrics for name in names))
    rows = [[name, *(_cell(metrics, f"{prefix}{name}/{key}") for key in keys)] for name in names]
    head = ["", *(key.replace("_", " ") for key in keys)]
    return markdown_table([head, *rows], right=True) if rows else ""


def over_table(metrics: Mapping[str, Any]) -> str:
    """How far `joint` is ahead of every other, at each headline: the paired difference, and the relative gain."""
    rows = []
    for name in (BEST, "strongest", *MODELS[1:], *BASELINES):
        for key in HEADLINES:
            if f"over/{name}/{key}" not in metrics:
                continue
            called = metrics.get(f"strongest/{key}_name") if name == "strongest" else None
            called = metrics[f"{BEST}/name"] if name == BEST else called
            gain = _gain(metrics, f"gain/{name}/{key}")
            title = f"{name} ({called})" if called else name
            rows.append([title, key.replace("_", " "), _cell(metrics, f"over/{name}/{key}"), gain])
    return markdown_table([["joint over", "metric", "difference", "relative"], *rows], right=True) if rows else ""


def aim_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Whether the published +25% over the best baseline is reached on new venues and on categories, in sentences."""
    lines = []
    for key in ("hr@5_new", "category_hr@5"):
        for name in (BEST, "strongest"):
            if (gain := metrics.get(f"gain/{name}/{key}")) is None:
                continue
            low, said = metrics[f"gain/{name}/{key}_lo"], "missed"
            if gain >= AIM:
                said = "kept" if low >= AIM else "kept on average, the interval begins below it"
            whom = metrics[f"{BEST}/name"] if name == BEST else metrics[f"strongest/{key}_name"]
            title = "the best baseline" if name == BEST else "the baseline that is best at it"
            text = _gain(metrics, f"gain/{name}/{key}")
            lines.append(f"- {key.replace('_', ' ')} over {title} ({whom}): {text}, aim {AIM:+.0%}: {said}.")
    return lines


def needs_markdown(metrics: Mapping[str, Any], title: str) -> str:
    """The whole report as a page of Markdown."""
    groups = ", ".join(f"{metrics[key]:,} {key.removeprefix('n_')}" for key in ("n_new", "n_repeat") if key in metrics)
    said = (
        f"Test targets, n = {metrics['n']:,} ({groups}), {metrics['clusters']:,} users or sessions, which are "
        "resampled as clusters: 95% intervals. Venues seen before compete, homes, offices and the like do not. A "
        "contestant that ranks services only ranks categories by the sum of their services' scores. The best baseline "
        f"is {metrics[f'{BEST}/name']}, chosen on validation by NDCG@5; new: the user had never been to the venue."
    )
    widths = [f"{name} {metrics[key]}" for name in MODELS if (key := f"{name}/chosen_categories") in metrics]
    if widths:
        said += f" A model's best categories that bring services, a number chosen on validation: {', '.join(widths)}."
    parts = [f"# {title}", said]
    for head, keys in _TABLES.items():
        if table := needs_table(metrics, keys):
            parts += [f"## {head}", table]
    if bayes := metrics.get("bayes/need_accuracy_ahead"):
        parts.append(
            f"Planted needs: an observer who knows the city's rule reaches an accuracy of {bayes:.4f} before the venue "
            f"is seen; the commonest need alone {metrics['bayes/majority_need']:.4f}."
        )
    if table := over_table(metrics):
        parts += ["## What the joint model is ahead of", *["\n".join(aim_lines(metrics))], table]
    if "cross/n" in metrics:
        keys = ("category_hr@1", "category_hr@3", "category_hr@5", "category_ndcg@5", "need_accuracy", "recoverability")
        table = needs_table(metrics, (*keys, "need_similarity"), "cross/")
        parts += [f"## In the other city, n = {metrics['cross/n']:,}", table]
    return "\n\n".join([*parts, "![Hit rates](needs.png)"]) + "\n"


def plot_needs(metrics: Mapping[str, Any], folder: str | Path) -> None:
    """Bars with intervals: hit rates of services and categories, all venues and new ones; needs.png."""
    figure, axes = blank_figure("", "HR@5")
    names = contestants(metrics)
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        keys = [(i, f"{name}/{key}") for i, key in enumerate(_BARS) if f"{name}/{key}" in metrics]
        height = [metrics[key] for _, key in keys]
        spread = [[max(0.0, metrics[key] - metrics[f"{key}_lo"]) for _, key in keys]]
        spread += [[max(0.0, metrics[f"{key}_hi"] - metrics[key]) for _, key in keys]]
        where = [i + (place - (len(names) - 1) / 2) * width for i, _ in keys]
        axes.bar(where, height, width, yerr=spread, label=name.replace("_", " "), error_kw={"elinewidth": 0.8})
    axes.set_xticks(range(len(_BARS)), ["service", "service, new", "category", "category, new"])
    axes.legend(fontsize=7, ncols=2)
    save_figure(figure, Path(folder) / "needs.png")


def print_needs(metrics: Mapping[str, Any]) -> None:
    """The headlines of every contestant on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"test targets, n = {metrics['n']:,}, 95% intervals, users as clusters")
    for name in ("contestant", *HEADLINES):
        table.add_column(name.replace("_", " "), justify="left" if name == "contestant" else "right")
    for name in contestants(metrics):
        table.add_row(name, *(_cell(metrics, f"{name}/{key}") for key in HEADLINES))
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    console.print(f"best baseline on validation: {metrics[f'{BEST}/name']}", markup=False)


def _cell(metrics: Mapping[str, Any], key: str) -> str:
    return short_interval(metrics, key) if key in metrics else "-"


def _gain(metrics: Mapping[str, Any], key: str) -> str:
    if key not in metrics:
        return "-"
    return f"{metrics[key]:+.0%} [{metrics[key + '_lo']:+.0%}, {metrics[key + '_hi']:+.0%}]"
