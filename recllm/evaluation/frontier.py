"""Planners of several cost weights beside every other router: which is chosen on validation, and what all do on test.

A planner's quality and cost on validation were measured by the run that trained it (`eval_role: validation`); nothing
here looks at test targets before the choice is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recllm.evaluation.aims import aims, limits
from recllm.evaluation.learned import LearnedRouter
from recllm.evaluation.planner import load_bench, load_planner, planner_latency
from recllm.evaluation.routing import (
    FIXED,
    SIGNALS,
    Routed,
    ThresholdRouter,
    by_planner,
    described,
    fit_thresholds,
    own_costs,
    routing_metrics,
)
from recllm.evaluation.routing_groups import routing_groups
from recllm.evaluation.serve_planner import find_inputs
from recllm.planner.env import answer_rank
from recllm.planner.rollout import Rollout, play
from recllm.provenance import METRICS_FILE, fingerprint, load_run, read_json
from recllm.tools.cache import DEPTH, ToolCache

Inputs = Mapping[str, Any]  # name -> folder; `planners` -> folders


@dataclass(frozen=True)
class Point:
    """A trained planner: its cost weight, and NDCG@10 and cost shares of always-reason's that it has on validation."""

    folder: Path
    cost_weight: float
    ndcg: float
    cost_share: float

    @property
    def name(self) -> str:
        """Its router name in the metrics."""
        return f"planner@{self.cost_weight:g}"

    @classmethod
    def load(cls, folder: str | Path, inputs: Inputs) -> Point:
        """What the run of a planner folder recorded.

        Raises:
            ValueError: the folder is no complete planner, was graded on other targets than all of validation's, or was
                made with another data set or tool cache than `inputs` names.
        """
        folder = Path(folder)
        record = load_run(folder)
        if record is None or record["recipe"] != "grpo_planner":
            raise ValueError(f"{folder} holds no complete run of grpo_planner.py")
        config = record["config"]
        if config.get("eval_role") != "validation":
            raise ValueError(
                f"{folder} was graded on {config.get('eval_role', 'test')}: the choice among planners is made on "
                "validation, so train each of them with --eval_role validation"
            )
        if config.get("eval_users") is not None:
            raise ValueError(f"{folder} was graded on eval_users={config['eval_users']}: planners compete on all users")
        for name in ("dataset", "tool_cache"):
            if record["inputs"].get(name) != fingerprint(inputs[name]):
                raise ValueError(f"{folder} was trained with another {name} than {inputs[name]}: they do not compare")
        found = read_json(folder / METRICS_FILE)
        share = found["planner/cost"] / found["always_reason/cost"]
        return cls(folder, float(config["cost_weight"]), found["planner/ndcg@10"], share)


def load_points(folders: Sequence[str | Path], inputs: Inputs) -> list[Point]:
    """Planners by rising cost weight.

    Raises:
        ValueError: no planner, two of one cost weight (to six digits), or as `Point.load`.
    """
    if not folders:
        raise ValueError("no planner was given: name the folder of at least one")
    points = sorted((Point.load(folder, inputs) for folder in folders), key=lambda point: point.cost_weight)
    for one, other in itertools.pairwise(points):
        if one.name == other.name:
            raise ValueError(f"{one.folder} and {other.folder} have the same cost weight {one.cost_weight:g}")
    return points


def choose(points: Sequence[Point], ceiling: float) -> Point:
    """The best NDCG@10 on validation among planners whose tools cost at most `ceiling` of always-reason's there, the
    cheaper of equals; the cheapest of all where none is below the ceiling."""
    allowed = [point for point in points if point.cost_share <= ceiling]
    if not allowed:
        return min(points, key=lambda point: point.cost_share)
    return max(allowed, key=lambda point: (point.ndcg, -point.cost_share))


class Frontier(NamedTuple):
    """Flat metrics of every router, the planner that was chosen, and (user ids, ranks from 0) for `save_ranks`: `test`
    is the chosen planner, the others are the fixed routers under their names."""

    metrics: dict[str, Any]
    chosen: Point
    ranks: dict[str, tuple[np.ndarray, np.ndarray]]


def evaluate_frontier(folders: Sequence[str | Path], inputs: Inputs, ceiling: float) -> Frontier:
    """Every router on all test targets, and the planner that validation chooses.

    `planner/...` and the fixed routers: as `routing_metrics`, for the chosen one, whose `cost_weight` the threshold
    routers and the learned one share. `planner@W/`, `margin@W/` and `entropy@W/`: the same for each cost weight W.
    `by/...`: the chosen planner's routing by groups. `aim/...` and `limit/...`: see `aims.py`.

    Raises:
        ValueError: as `load_points`.
    """
    points = load_points(folders, inputs)
    chosen = choose(points, ceiling)
    routing, validation, test = (load_bench(inputs, role) for role in ("routing", "validation", "test"))
    played: dict[str, list[Rollout]] = {}
    for point in points:
        model, tokenizer = load_planner(point.folder, inputs["sid_table"])
        played[point.name] = play(model, tokenizer, test, np.arange(len(test)), label=f"{point.name}: test")
    thresholds = fit_thresholds(validation.cache, chosen.cost_weight)
    learned = LearnedRouter.fit(routing, chosen.cost_weight)
    allowed = sum(point.cost_share <= ceiling for point in points)
    metrics = {"cost_weight": chosen.cost_weight, "cost_ceiling": ceiling}
    metrics |= {"planners": len(points), "planners_below_ceiling": allowed}
    metrics |= routing_metrics(test.cache, thresholds, played[chosen.name])
    metrics |= described("learned", learned.route(test), test.cache)
    for point in points:
        metrics |= _point_metrics(point, by_planner(played[point.name]), played[point.name], test.cache)
        for signal in SIGNALS:
            router = ThresholdRouter.fit(validation.cache, signal, point.cost_weight)
            metrics |= described(f"{signal}@{point.cost_weight:g}", router.route(test.cache), test.cache)
    planner = by_planner(played[chosen.name])
    metrics |= routing_groups(test, planner) | limits(test, routing, planner, learned)
    user_E, answered_E = test.examples.user_ids_E, np.array([answer_rank(one.env) for one in played[chosen.name]])
    rank_PE = np.where(test.cache.rank_PE < DEPTH, test.cache.rank_PE, np.inf)
    fixed = {name: (user_E, rank_E) for name, rank_E in zip(FIXED, rank_PE, strict=True)}
    return Frontier(metrics | aims(metrics), chosen, {"test": (user_E, answered_E), **fixed})


def check_tools(folder: str | Path, inputs: Inputs) -> None:
    """Raise ValueError where the tools that latencies are measured with are not to be found: better now than later."""
    try:
        find_inputs(folder, {name: Path(inputs[name]) for name in ("dataset", "tool_cache")})
    except ValueError as error:
        raise ValueError(f"{error}; or leave latencies out with --latency_requests 0") from error


def frontier_latency(chosen: Point, inputs: Inputs, requests: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`latency/...` of the chosen planner and of every tool (see `planner_latency`), and the aims with those on it."""
    model, tokenizer = load_planner(chosen.folder, inputs["sid_table"])
    found = planner_latency(model, tokenizer, {**inputs, "model": chosen.folder}, requests)
    return found | aims({**metrics, **found})


def _point_metrics(point: Point, routed: Routed, rollouts: list[Rollout], cache: ToolCache) -> dict[str, Any]:
    found = described(point.name, routed, cache) | own_costs(point.name, routed, rollouts)
    known = {"validation_ndcg@10": point.ndcg, "validation_cost_share": point.cost_share}
    return found | {f"{point.name}/{name}": value for name, value in known.items()}
