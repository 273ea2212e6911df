"""What a person sees at the end: tables of routers and of recommenders, the (cost, NDCG) picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recllm.evaluation.latency import latency_table
from recllm.evaluation.routing_groups import group_table
from recllm.planner.texts import TOOLS

ROUTERS = ("planner", "always_retrieve", "always_rank", "always_reason", "random_mix", "margin", "entropy", "oracle")
RECOMMENDERS = ("beam", "exact", "backbone")
_MEGA = 1e6


def router_table(metrics: Mapping[str, Any], role: str = "test") -> Table:
    """One row a router: NDCG@10 and Recall@10 with their intervals, cost in MFLOPs, shares and agreement."""
    table = Table(title=f"{role} targets, n = {metrics['n']:,}, whole catalogue, 95% intervals")
    for name in ("router", "NDCG@10", "Recall@10", "tools MFLOPs", *TOOLS, "oracle agree", "decisive agree"):
        table.add_column(name, justify="left" if name == "router" else "right")
    for router in ROUTERS:
        if f"{router}/cost" not in metrics:
            continue
        values = {key.removeprefix(f"{router}/"): value for key, value in metrics.items() if key.startswith(router)}
        table.add_row(
            router,
            *(f"{values[m]:.4f} [{values[m + '_lo']:.4f}, {values[m + '_hi']:.4f}]" for m in ("ndcg@10", "recall@10")),
            f"{values['cost'] / _MEGA:,.1f}",
            *(f"{values['share_' + tool]:.0%}" for tool in TOOLS),
            f"{values['oracle_agreement']:.1%}",
            "-" if values["decisive_agreement"] is None else f"{values['decisive_agreement']:.1%}",
        )
    return table


def print_routers(metrics: Mapping[str, Any], role: str = "test") -> None:
    """The table, and beneath it the planner's own cost, its place over the line, the headroom and the reward."""
    # A pipe has no width of its own; the table needs about 150 columns.
    console = Console(width=None if Console().is_terminal else 170)
    console.print(router_table(metrics, role))
    console.print(f"headroom (oracle - best fixed tool): {interval_text(metrics, 'headroom')}")
    if "planner/own_cost" in metrics:
        best = max(
            (name for name in ROUTERS if name.startswith("always_")), key=lambda name: metrics[f"{name}/ndcg@10"]
        )
        console.print(
            f"planner's own cost {metrics['planner/own_cost'] / _MEGA:,.1f} MFLOPs, with tools "
            f"{metrics['planner/total_cost'] / _MEGA:,.1f}; over the line retrieve - {best} "
            f"by {metrics['planner/above_line']:+.4f} NDCG@10; over random mixing "
            f"{interval_text(metrics, 'planner/over_random_mix')}"
        )
    if any(name.startswith("by/") for name in metrics):
        console.print(group_table(metrics))
    timed = {name.removeprefix("latency/"): value for name, value in metrics.items() if name.startswith("latency/")}
    if timed:
        console.print(latency_table(timed))
    if "reward/first" in metrics:
        console.print(f"reward {metrics['reward/first']:.4f} -> {metrics['reward/last']:.4f} (first and last tenth)")


def recommender_table(metrics: Mapping[str, Any], role: str) -> Table:
    """One row a recommender: NDCG and Recall with intervals, both at sid level, and what the lists do to the catalogue.

    The columns at sid level are left out where they say the same.
    """
    named = [name for name in RECOMMENDERS if f"{name}/ndcg@10" in metrics]
    seen = "do not compete" if metrics["exclude_seen"] else "compete"
    table = Table(title=f"{role} targets, n = {metrics['n']:,}, whole catalogue, seen items {seen}, 95% intervals")
    sids = any(metrics[f"{name}/sid/ndcg@10"] != metrics[f"{name}/ndcg@10"] for name in named)
    spans = ["ndcg@10", "recall@10"]
    plain = ["ndcg@5", "recall@5", *(["sid/ndcg@10", "sid/recall@10"] if sids else []), "coverage@10", "gini@10"]
    heads = [name.replace("ndcg", "NDCG").replace("recall", "Recall").replace("sid/", "SID ") for name in spans + plain]
    for name in ("recommender", *heads, "novelty, bits", "ms a user"):
        table.add_column(name, justify="left" if name == "recommender" else "right")
    for name in named:
        values = {key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")}
        table.add_row(
            name,
            *(interval_text(values, span) for span in spans),
            *(f"{values[key]:.4f}" for key in plain),
            f"{values['novelty@10']:.2f}",
            f"{values['wall_ms']:.1f}",
        )
    return table


def print_recommenders(metrics: Mapping[str, Any], role: str) -> None:
    """The table, and beneath it what the beam lost and the lead over the backbone, where they were measured."""
    console = Console(width=None if Console().is_terminal else 190)
    console.print(recommender_table(metrics, role))
    if "beam_recall" in metrics:
        found = interval_text(metrics, "beam_recall")
        console.print(f"the beam of {metrics['beams']} finds {found} of the exact first ten", markup=False)
    if "over_backbone" in metrics:
        console.print(f"over the backbone by {interval_text(metrics, 'over_backbone')} NDCG@10 (paired)", markup=False)


def plot_frontier(metrics: Mapping[str, Any], path: Path) -> None:
    """Routers in the (cost, NDCG@10) plane, cost on a logarithmic axis, intervals as bars."""
    figure, axes = blank_figure("tools' cost a user, MFLOPs", "NDCG@10")
    for router in ROUTERS:
        if f"{router}/cost" not in metrics:
            continue
        x, y = metrics[f"{router}/cost"] / _MEGA, metrics[f"{router}/ndcg@10"]
        ends = (y - metrics[f"{router}/ndcg@10_lo"], metrics[f"{router}/ndcg@10_hi"] - y)
        spread = [[max(0.0, end)] for end in ends]  # rounding may put an end past the mean
        marker = {"planner": "*", "oracle": "^"}.get(router, "o")
        axes.errorbar(
            x, y, yerr=spread, fmt=marker, markersize=14 if router == "planner" else 7, capsize=3, label=router
        )
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def interval_text(metrics: Mapping[str, Any], name: str) -> str:
    """A metric with the ends of its interval, four digits."""
    return f"{metrics[name]:.4f} [{metrics[name + '_lo']:.4f}, {metrics[name + '_hi']:.4f}]"


def short_interval(metrics: Mapping[str, Any], name: str) -> str:
    """The same for figures below 1, without their leading zeros."""
    return interval_text(metrics, name).replace("0.", ".")


def markdown_table(rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """A Markdown table with the first row as its head; with `right` all columns but the first are set right."""
    rule = ["---", *["---:" if right else "---"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def print_page(path: Path) -> None:
    """A page of Markdown on the terminal, without its pictures."""
    from rich.markdown import Markdown

    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("!["))
    # A pipe has no width of its own; the tables need about 170 columns.
    Console(width=None if Console().is_terminal else 170).print(Markdown(text, hyperlinks=False))


def blank_figure(xlabel: str, ylabel: str):
    """A figure without a window, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure in the format of the path's ending, png or svg."""
    from matplotlib import rc_context

    metadata = {"Creator": "recllm", "Date": None} if path.suffix == ".svg" else {"Software": "recllm"}
    with rc_context({"svg.hashsalt": "recllm"}):  # or equal figures would get ids of their own
        figure.savefig(path, dpi=130, metadata=metadata)
