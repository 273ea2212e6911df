"""Chat data sets of the planner: warm-up traces and GRPO prompts. Labels travel as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recllm.planner.bench import Bench
from recllm.planner.labels import choose_rows, decisive, oracle_tools, published_tools, trace, up_routed
from recllm.planner.texts import TOOLS

if TYPE_CHECKING:
    from datasets import Dataset

RULES = {"oracle": oracle_tools, "published": published_tools}


@dataclass(frozen=True)
class Labels:
    """Chosen rows of a bench in training order, with the tool that each should use (an index into `TOOLS`)."""

    row_E: np.ndarray
    tool_E: np.ndarray


def label_rows(bench: Bench, rule: str, decisive_share: float, seed: int, up_routing: float = 0.0) -> Labels:
    """Choose and label rows; `up_routing` is the share of retrieve labels that `up_routed` moves.

    Raises:
        ValueError: the rule is unknown, or no row is decisive (the tools always agree, so there is nothing to plan).
    """
    if rule not in RULES:
        raise ValueError(f"labels {rule!r} is unknown; choose one of {', '.join(RULES)}")
    if not decisive(bench.cache).any():
        raise ValueError("no example is decisive: the tools give the same NDCG@10 everywhere, mend the tools first")
    rng = np.random.default_rng(seed)
    row_E = choose_rows(bench.cache, rng, decisive_share)
    return Labels(row_E, up_routed(RULES[rule](bench.cache)[row_E], up_routing, rng))


def trace_rows(bench: Bench, labels: Labels) -> Dataset:
    """Whole episodes for SFT: `messages`, `row`, `tool`."""
    from datasets import Dataset

    tools = [TOOLS[tool] for tool in labels.tool_E]
    messages = [trace(bench, int(row), tool) for row, tool in zip(labels.row_E, tools, strict=True)]
    return Dataset.from_dict({"messages": messages, "row": labels.row_E.tolist(), "tool": tools})


def prompt_rows(bench: Bench, labels: Labels) -> Dataset:
    """Opening chats for GRPO: `prompt`, `row`, `tool`."""
    from datasets import Dataset

    prompts = [bench.prompt(int(row)) for row in labels.row_E]
    tools = [TOOLS[tool] for tool in labels.tool_E]
    return Dataset.from_dict({"prompt": prompts, "row": labels.row_E.tolist(), "tool": tools})


def label_metrics(bench: Bench, labels: Labels) -> dict[str, float]:
    """Counts and shares of the labels, and of the decisive rows."""
    shares = {f"share_{tool}": float((labels.tool_E == index).mean()) for index, tool in enumerate(TOOLS)}
    return {
        "rows": len(labels.row_E),
        "examples": len(bench),
        "decisive": float(decisive(bench.cache)[labels.row_E].mean()),
        "decisive_of_all": float(decisive(bench.cache).mean()),
        **shares,
    }
