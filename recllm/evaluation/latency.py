"""Wall time of every tool and of a planner end to end, beside their cost in FLOPs.

What a user waits for depends on the machine and on who else uses it, so it never enters a reward; it is measured here,
at batch 1 and in batches. A planner's request is all that serving it takes: retrieval, the prompt made of what was
found, its own turns, and the tools that it calls. A router that always calls one tool takes that tool's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.metrics.timing import Stopwatch
from recllm.planner.bench import Bench
from recllm.planner.env import tools_cost
from recllm.planner.live import LiveBench, no_progress_bars
from recllm.planner.rollout import play_batch
from recllm.planner.texts import TOOLS
from recllm.tools.build import Tools
from recllm.tools.cache import DEPTH

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLANNER = "planner"
_MEGA = 1e6
# Mean FLOPs a user of one batch, by name of the metric.
Request = Callable[[np.ndarray], dict[str, float]]


def measure_latency(
    tools: Tools,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bench: Bench,
    requests: int = 100,
    batches: int = 20,
    batch_size: int = 16,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """Flat metrics of `requests` single requests and of `batches` batches, on a seeded sample of the bench's examples.

    `X/p50_ms@1` and `X/p95_ms@1` are milliseconds of a request, `X` a tool or `planner`. With a batch size of 16,
    `X/p50_ms@16` is the whole batch's time, which is what each of its users waits, and `X/p50_ms_per_user@16` a
    sixteenth of it. `X/cost` is the mean of the tools' FLOPs a user over the single requests; `planner/own_cost` are
    the planner's own, `planner/total_cost` both. All take turns on the same requests, so that a drift of the machine's
    speed meets them alike; `warmup` rounds come before and are left out. Where the bench is too short for the sample
    its examples return.

    Raises:
        ValueError: an empty bench, `batch_size` below 2, no rounds, or a negative warm-up.
    """
    if not len(bench) or batch_size < 2 or min(requests, batches) < 1 or warmup < 0:
        raise ValueError(
            f"cannot time {requests} requests and {batches} batches of {batch_size} after {warmup} of warm-up on "
            f"{len(bench)} examples: batch_size must be 2 or more, warmup 0 or more, the others 1 or more"
        )
    model.eval()
    calls: dict[str, Request] = {name: _tool_request(tools, bench, name) for name in TOOLS}
    calls[PLANNER] = _planner_request(tools, model, tokenizer, bench)
    rng = np.random.default_rng(seed)
    metrics: dict[str, float] = {"requests@1": requests, f"batches@{batch_size}": batches}
    for size, rounds in ((1, requests), (batch_size, batches)):
        rows_RB = np.resize(rng.permutation(len(bench)), (warmup + rounds, size))
        for name, (watch, costs) in _take_turns(calls, rows_RB, warmup).items():
            metrics |= _times(name, watch, size)
            if size == 1:
                metrics |= {f"{name}/{cost}": float(np.mean([each[cost] for each in costs])) for cost in costs[0]}
    return metrics


def _tool_request(tools: Tools, bench: Bench, name: str) -> Request:
    def request(rows_B: np.ndarray) -> dict[str, float]:
        answer = getattr(tools, name).answer(bench.examples.subset(rows_B), DEPTH)
        return {"cost": float(answer.cost_E.mean())}

    return request


def _planner_request(tools: Tools, model, tokenizer, bench: Bench) -> Request:
    def request(rows_B: np.ndarray) -> dict[str, float]:
        live = LiveBench(tools, bench, bench.examples.subset(rows_B))
        rollouts = play_batch(model, tokenizer, live, np.arange(len(live)), listen=live.listen)
        called = float(np.mean([tools_cost(rollout.env) for rollout in rollouts]))
        own = float(np.mean([rollout.own_cost for rollout in rollouts]))
        return {"cost": called, "own_cost": own, "total_cost": called + own}

    return request


def _take_turns(
    calls: Mapping[str, Request], rows_RB: np.ndarray, warmup: int
) -> dict[str, tuple[Stopwatch, list[dict[str, float]]]]:
    """Stopwatch and costs of each call; the costs of the warm-up are left out as well."""
    taken: dict[str, tuple[Stopwatch, list[dict[str, float]]]] = {name: (Stopwatch(warmup), []) for name in calls}
    with no_progress_bars():
        for place, rows_B in enumerate(rows_RB):
            for name, call in calls.items():
                watch, costs = taken[name]
                with watch:
                    cost = call(rows_B)
                costs += [cost] if place >= warmup else []
    return taken


def _times(name: str, watch: Stopwatch, size: int) -> dict[str, float]:
    found = {}
    for cut in (50, 95):
        milliseconds = 1000 * float(np.percentile(watch.counted, cut))
        found[f"{name}/p{cut}_ms@{size}"] = round(milliseconds, 3)
        if size > 1:
            found[f"{name}/p{cut}_ms_per_user@{size}"] = round(milliseconds / size, 3)
    return found


def latency_table(metrics: Mapping[str, Any]) -> Table:
    """One row a tool and one for the planner: milliseconds at both batch sizes, and MFLOPs a user."""
    from rich.table import Table

    size = _batch_size(metrics)
    title = f"wall ms over {metrics['requests@1']} requests, {metrics[f'batches@{size}']} batches of {size}"
    table = Table("", title=title, title_justify="left")
    spans = {"@1": "_ms@1", f"@{size}": f"_ms@{size}", f"a user @{size}": f"_ms_per_user@{size}"}
    for head in (*(f"{cut} {span}" for span in spans for cut in ("p50", "p95")), "tools MFLOPs", "all MFLOPs"):
        table.add_column(head, justify="right")
    for name in (*TOOLS, PLANNER):
        times = (metrics[f"{name}/{cut}{span}"] for span in spans.values() for cut in ("p50", "p95"))
        cost = metrics[f"{name}/cost"]
        costs = (cost, metrics.get(f"{name}/total_cost", cost))
        table.add_row(name, *(f"{each:,.1f}" for each in times), *(f"{each / _MEGA:,.1f}" for each in costs))
    return table


def _batch_size(metrics: Mapping[str, Any]) -> int:
    return next(int(name.removeprefix("batches@")) for name in metrics if name.startswith("batches@"))
