"""Grading a planner: threshold routers fitted on validation, greedy episodes on test, all routers' metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.evaluation.routing import by_planner, fit_thresholds, headroom, routing_metrics
from recllm.evaluation.routing_groups import routing_groups
from recllm.planner.bench import Bench
from recllm.planner.rollout import play
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import check_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_bench(inputs: Mapping[str, Path | str], role: str) -> Bench:
    """The bench of a role from the input folders `dataset`, `sid_table` and `tool_cache`."""
    return Bench.load(inputs["dataset"], inputs["sid_table"], inputs["tool_cache"], role)


def load_planner(folder: str | Path, sid_table: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A planner and its tokenizer.

    Raises:
        ValueError: the planner was trained with another SID table than `sid_table`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recllm.device import device_here

    check_table(folder, SidTable.load(sid_table))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device_here())
    return model, AutoTokenizer.from_pretrained(folder)


def announce_headroom(bench: Bench) -> dict[str, float]:
    """Print the oracle's lead over the best fixed tool on these examples, and warn where its interval holds 0."""
    found = headroom(bench.cache)
    low, high = found["headroom_lo"], found["headroom_hi"]
    print(f"headroom on {len(bench)} prompts: {found['headroom']:.4f} NDCG@10 [{low:.4f}, {high:.4f}]", flush=True)
    if low <= 0:
        print(
            "WARNING: the interval holds 0, so the tools are not complementary; mend them before planning", flush=True
        )
    return found


def evaluate_planner(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, Path | str],
    cost_weight: float,
    role: str = "test",
    users: int | None = None,
) -> dict[str, Any]:
    """Flat metrics of the planner and its rivals on a role's targets.

    The threshold routers are fitted on validation, or on the routing fold where validation is what is graded.

    `users` grades on the first so many of the role's users, all routers alike; the metrics' `n` tells.
    """
    fold = "routing" if role == "validation" else "validation"
    thresholds = fit_thresholds(load_bench(inputs, fold).cache, cost_weight)
    bench = load_bench(inputs, role)
    if users is not None and users < len(bench):
        bench = bench.first(users)
    began = time.monotonic()
    rollouts = play(model, tokenizer, bench, np.arange(len(bench)), label=f"planner: {role}")
    latency = (time.monotonic() - began) / len(bench)
    metrics = routing_metrics(bench.cache, thresholds, rollouts) | routing_groups(bench, by_planner(rollouts))
    return metrics | {"planner/wall_ms": round(1000 * latency, 3)}


def planner_latency(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Mapping[str, Path | str], requests: int
) -> dict[str, float]:
    """Wall time of the tools and of the planner on this machine, live, on validation users; see `latency.py`.

    `requests` at batch 1, a fifth as many batches of 16. `inputs` has `model`, `dataset`, `sid_table` and `tool_cache`,
    which leads to the tools.
    """
    from recllm.evaluation.latency import measure_latency
    from recllm.evaluation.serve_planner import find_inputs, load_served_tools

    given = {name: Path(inputs[name]) for name in ("dataset", "tool_cache")}
    tools = load_served_tools(find_inputs(inputs["model"], given), Path(inputs["sid_table"]))
    bench = load_bench(inputs, "validation")
    found = measure_latency(tools, model, tokenizer, bench, requests, batches=max(1, requests // 5))
    return {f"latency/{name}": value for name, value in found.items()}
