"""Which planner is chosen, what a report says of its aims, and what the learned router and the limits know."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.evaluation import frontier
from recllm.evaluation.aims import aims, auc, limits
from recllm.evaluation.frontier import Point, choose, load_points
from recllm.evaluation.frontier_report import aim_rows, frontier_rows, markdown, plot_planners
from recllm.evaluation.learned import LearnedRouter, signals
from recllm.evaluation.routing import (
    QUALITIES,
    SIGNALS,
    ThresholdRouter,
    after_retrieval,
    by_planner,
    by_tool,
    described,
    own_costs,
    routing_metrics,
)
from recllm.evaluation.routing_groups import routing_groups
from recllm.planner.labels import oracle_tools
from recllm.planner.texts import TOOLS
from recllm.provenance import RunRecord


def point(weight, ndcg, share):
    return Point(f"planner_{weight}", weight, ndcg, share)


@pytest.mark.parametrize(
    ("points", "weight"),
    [
        ([point(0, 0.12, 0.6), point(0.1, 0.11, 0.4), point(0.3, 0.10, 0.1)], 0.1),  # the best below the ceiling
        ([point(0, 0.11, 0.4), point(0.1, 0.11, 0.2)], 0.1),  # the cheaper of equals
        ([point(0, 0.12, 0.9), point(0.1, 0.11, 0.7)], 0.1),  # none below it: the cheapest
        ([point(0, 0.12, 0.5), point(0.1, 0.11, 0.1)], 0),  # at the ceiling is allowed
    ],
)
def test_the_best_planner_below_the_ceiling_is_chosen(points, weight):
    assert choose(points, 0.5).cost_weight == choose(points[::-1], 0.5).cost_weight == weight


@pytest.fixture
def inputs(tmp_path):
    """Folders that stand for a data set and a tool cache."""
    for name in ("dataset", "tool_cache", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return {name: tmp_path / name for name in ("dataset", "tool_cache")}


def trained(folder, weight, inputs, role="validation", recipe="grpo_planner", ndcg=0.1, **config):
    record = RunRecord.start(folder, recipe, {"cost_weight": weight, "eval_role": role, **config}, inputs)
    record.finish({"planner/ndcg@10": ndcg, "planner/cost": 30.0, "always_reason/cost": 120.0})
    return folder


def test_points_are_read_from_what_the_runs_recorded(tmp_path, inputs):
    folders = [trained(tmp_path / name, weight, inputs) for name, weight in (("b", 0.5), ("a", 0.0), ("c", 1e-3))]
    points = load_points(folders, inputs)
    assert [one.cost_weight for one in points] == [0.0, 0.001, 0.5]
    assert [one.name for one in points] == ["planner@0", "planner@0.001", "planner@0.5"]
    assert all(one.ndcg == 0.1 and one.cost_share == 0.25 for one in points)


def test_planners_that_cannot_compete_are_refused(tmp_path, inputs):
    one = trained(tmp_path / "one", 0.1, inputs)
    rivals = {
        "test_graded was graded on test": trained(tmp_path / "test_graded", 0.2, inputs, role="test"),
        "same cost weight": trained(tmp_path / "again", 0.1 + 1e-9, inputs),
        "eval_users=50": trained(tmp_path / "few", 0.2, inputs, eval_users=50),
        "another tool_cache": trained(tmp_path / "else", 0.2, {**inputs, "tool_cache": tmp_path / "another"}),
        "holds no complete run": trained(tmp_path / "sft", 0.3, inputs, recipe="sft"),
        "no complete run of grpo_planner": tmp_path / "nothing",
    }
    for message, folder in rivals.items():
        with pytest.raises(ValueError, match=message):
            load_points([one, folder], inputs)
    with pytest.raises(ValueError, match="no planner was given"):
        load_points([], inputs)
    (one / "run.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match="no complete run"):
        load_points([one], inputs)


def test_nothing_but_the_grades_depends_on_test_targets(worlds, tmp_path, inputs, monkeypatch):
    """With other test targets, the thresholds, the learned router and the choice are the same."""
    folders = [trained(tmp_path / f"p{ndcg}", ndcg, inputs, ndcg=ndcg) for ndcg in (0.1, 0.2)]
    benches = {role: noisy_bench(worlds, seed, 300) for seed, role in enumerate(("routing", "validation", "test"))}

    def played(model, tokenizer, bench, rows, label):
        envs = [worlds.env_at(bench, row, TOOLS[row % 3]) for row in rows]
        return [SimpleNamespace(env=env, own_cost=1000, faults=0) for env in envs]

    monkeypatch.setattr(frontier, "load_bench", lambda inputs, role: benches[role])
    monkeypatch.setattr(frontier, "load_planner", lambda folder, table: (None, None))
    monkeypatch.setattr(frontier, "play", played)
    first = frontier.evaluate_frontier(folders, {**inputs, "sid_table": tmp_path}, 0.5)
    cache = benches["test"].cache
    others = replace(cache, targets_E=np.roll(cache.targets_E, 7))
    benches["test"] = replace(benches["test"], cache=others)
    second = frontier.evaluate_frontier(folders, {**inputs, "sid_table": tmp_path}, 0.5)
    assert first.chosen == second.chosen and first.chosen.cost_weight == 0.2
    graded = {name for name in first.metrics if first.metrics[name] != second.metrics[name]}
    for name in ("planner", "margin", "entropy", "learned", "margin@0.1", "planner@0.1"):
        kept = {f"{name}/share_{tool}" for tool in TOOLS} | {f"{name}/cost"}
        assert kept <= set(first.metrics) and not kept & graded
        # An episode's target is the example's own, which stayed.
        assert f"{name}/ndcg@10" in graded or name.startswith("planner")
    rank_E = first.ranks["always_reason"][1]
    assert np.array_equal(np.isinf(rank_E), cache.rank_PE[2] >= 50) and np.isinf(rank_E).any()
    assert first.metrics["planners_below_ceiling"] == 2


def test_aims_say_by_how_much_they_are_kept_or_missed():
    metrics = {
        "always_reason/cost": 100.0,
        "cost_ceiling": 0.5,
        "planner/cost": 40.0,
        "planner/total_cost": 70.0,
        "planner/over_best_fixed": -0.01,
        "planner/over_random_mix": 0.02,
        "planner/decisive_agreement": 0.8,
        **{"planner/share_retrieve": 0.5, "planner/share_rank": 0.4, "planner/share_reason": 0.1},
        **{"latency/planner/p50_ms@1": 30.0, "latency/reason/p50_ms@1": 40.0},
        **{"latency/planner/p95_ms@1": 50.0, "latency/reason/p95_ms@1": 45.0},
    }
    found = aims(metrics)
    slack = {name: found[f"aim/{name}/slack"] for name in found_names(found)}
    expected = {
        "over_best_fixed": -0.01,
        "over_random_mix": 0.02,
        "tools_cost_share": 0.1,
        "total_cost_share": -0.2,
        "largest_share": 0.45,
        "slow_share_off": 0.002,
        "decisive_agreement": 0.017,
        "p50_ms": 10.0,
        "p95_ms": -5.0,
    }
    assert slack == pytest.approx(expected)
    missed = [row[0] for row in aim_rows(found) if row[-1].startswith("missed")]
    assert len(missed) == sum(value < 0 for value in expected.values()) and len(aim_rows(found)) == len(expected) + 1
    ends = {
        "planner/over_random_mix_lo": -0.01,
        "planner/over_random_mix_hi": 0.05,
        "planner/over_best_fixed_lo": -0.02,
    }
    spans = found | metrics | ends | {"planner/over_best_fixed_hi": -0.005}
    said = {row[0]: row[-1] for row in aim_rows(spans)}
    assert said["NDCG@10 over random mixing at equal shares"] == "open: the interval holds 0"
    assert said["NDCG@10 over the best fixed tool"] == "missed by 0.01"
    del metrics["latency/planner/p50_ms@1"], metrics["latency/planner/p95_ms@1"]
    assert not any("_ms" in name for name in aims(metrics | {"planner/decisive_agreement": None}))


def found_names(found):
    return [name.removeprefix("aim/") for name in found if name.count("/") == 1]


def test_area_under_the_curve_by_counting_pairs():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert auc(values, positive) == pytest.approx(np.mean(pairs))
    assert auc(values, np.ones(60, bool)) is None and auc(values, np.zeros(60, bool)) is None


def test_limits_tell_what_each_tool_adds_and_which_signal_finds_it(worlds):
    # Where the margin is small reason alone finds the target, elsewhere retrieve does; rank never helps.
    margins = np.linspace(0.05, 0.95, 400)
    high = margins >= 0.5
    ranks = np.array([np.where(high, 0, 50), np.where(high, 1, 50), np.where(high, 50, 0)])
    bench = worlds.make_bench(worlds.planted(ranks, margin_PE=np.tile(margins, (3, 1))))
    planner = by_tool(bench.cache, oracle_tools(bench.cache))
    found = limits(bench, bench, planner, LearnedRouter.fit(bench, 0.3))
    assert found["limit/decisive_share"] == 1.0 and found["limit/decisive_n"] == 400
    assert found["limit/adds_reason"] == pytest.approx(0.5) and found["limit/adds_rank"] == 0
    assert found["limit/adds_reason_lo"] < 0.5 < found["limit/adds_reason_hi"]
    assert found["limit/adds_retrieve"] == pytest.approx(0.5 * (1 - 1 / np.log2(3)))
    assert found["limit/oracle_share_reason"] == 0.5
    assert found["limit/auc_reason_margin"] == found["limit/auc_reason_planner"] == 1.0
    assert found["limit/auc_rank_margin"] is None
    assert found["limit/auc_reason_learned"] > 0.95 and found["limit/learned_decisive_agreement"] > 0.9


def test_a_signals_direction_is_the_routing_folds(worlds):
    """Where the rule is turned round on the graded examples, an area below a half says so."""
    margins = np.linspace(0.05, 0.95, 400)

    def bench(high):
        ranks = np.array([np.where(high, 0, 50), np.full(400, 50), np.where(high, 50, 0)])
        return worlds.make_bench(worlds.planted(ranks, margin_PE=np.tile(margins, (3, 1))))

    usual, turned = bench(margins >= 0.5), bench(margins < 0.5)
    nobody, trees = by_tool(turned.cache, np.int64(0)), LearnedRouter.fit(usual, 0.3)
    assert limits(usual, usual, nobody, trees)["limit/auc_reason_margin"] == 1.0
    assert limits(turned, usual, nobody, trees)["limit/auc_reason_margin"] == 0.0


def test_without_a_decisive_example_the_limits_are_those_of_the_tools(worlds):
    bench = worlds.make_bench(worlds.planted(np.tile([0, 3, 50, 20], (3, 1))))
    found = limits(bench, bench, by_tool(bench.cache, np.int64(0)), LearnedRouter.fit(bench, 0.3))
    assert not any(found.values()) and {f"limit/adds_{tool}" for tool in TOOLS} <= set(found)


def noisy_bench(worlds, seed, examples=900):
    """Reason is right below a margin of .5, retrieve above it, each two times in three."""
    rng = np.random.default_rng(seed)
    margins, hit = rng.random(examples), rng.random((3, examples)) < 2 / 3
    low = margins < 0.5
    ranks = np.where(hit & np.stack([~low, np.zeros(examples, bool), low]), 0, 50)
    return worlds.make_bench(worlds.planted(ranks, margin_PE=np.tile(margins, (3, 1))))


def test_the_learned_router_finds_a_planted_rule_on_other_examples_and_heeds_the_price(worlds):
    bench = noisy_bench(worlds, 1)
    low = bench.cache.margin_PE[0] < 0.5
    routed = LearnedRouter.fit(noisy_bench(worlds, 0), cost_weight=0.05).route(bench)
    near = np.abs(bench.cache.margin_PE[0] - 0.5) > 0.1
    assert (routed.share_PE[2] == low)[near].mean() > 0.97
    assert np.allclose(routed.cost_E, (routed.share_PE * after_retrieval(bench.cache)).sum(0))
    dear = LearnedRouter.fit(noisy_bench(worlds, 0), cost_weight=50.0).route(bench)
    assert dear.share_PE[0].all()


def test_signals_are_what_is_known_before_the_choice(worlds):
    bench = noisy_bench(worlds, 0, examples=60)
    found = signals(bench)
    assert list(found) == ["margin", "entropy", "history_length", "popularity", "diversity"]
    blind = replace(bench, cache=replace(bench.cache, targets_E=bench.cache.targets_E + 1))
    for name, values_E in signals(blind).items():
        assert np.array_equal(values_E, found[name])


@pytest.fixture(scope="module")
def report(worlds):
    """Metrics as `evaluate_frontier` makes them, of two scripted planners."""
    bench = noisy_bench(worlds, 2, examples=240)
    plans = {"planner@0": lambda row: TOOLS[row % 3], "planner@0.3": lambda row: TOOLS[row % 2]}
    played = {}
    for name, plan in plans.items():
        envs = [worlds.env_at(bench, row, plan(row)) for row in range(len(bench))]
        played[name] = [SimpleNamespace(env=env, own_cost=2_000_000, faults=0) for env in envs]
    thresholds = [ThresholdRouter(signal, 0.5, 2, 0) for signal in SIGNALS]
    metrics = {"cost_weight": 0.3, "cost_ceiling": 0.5, "planners": 2, "planners_below_ceiling": 1}
    metrics |= routing_metrics(bench.cache, thresholds, played["planner@0.3"])
    learned = by_tool(bench.cache, np.int64(1))
    metrics |= described("learned", learned, bench.cache)
    for name, rollouts in played.items():
        routed = by_planner(rollouts)
        metrics |= described(name, routed, bench.cache) | own_costs(name, routed, rollouts)
        for router in thresholds:
            signal = name.replace("planner", router.signal)
            metrics |= described(signal, router.route(bench.cache), bench.cache)
    planner, taught = by_planner(played["planner@0.3"]), noisy_bench(worlds, 3, 240)
    metrics |= routing_groups(bench, planner) | limits(bench, taught, planner, LearnedRouter.fit(taught, 0.3))
    return metrics | aims(metrics)


def test_the_table_has_every_router_once_with_its_numbers(report):
    head, *rows = frontier_rows(report)
    assert [row[0] for row in rows] == [
        "planner, weight 0.3 (chosen)",
        "planner, weight 0",
        *("always_retrieve", "always_rank", "always_reason", "random_mix", "margin", "entropy", "learned", "oracle"),
    ]
    assert all(len(row) == len(head) for row in rows)
    for row, name in zip(rows[2:], [row[0] for row in rows[2:]], strict=True):
        for cell, quality in zip(row[1:5], QUALITIES, strict=True):
            low, high = report[f"{name}/{quality}_lo"], report[f"{name}/{quality}_hi"]
            assert cell == f"{report[f'{name}/{quality}']:.4f} [{low:.4f}, {high:.4f}]".replace("0.", ".")
    reason = dict(zip(head, rows[4], strict=True))
    assert reason["total of reason"] == "100%" and reason["reason"] == "100.0%"
    chosen = dict(zip(head, rows[0], strict=True))
    assert float(chosen["with own"].replace(",", "")) == pytest.approx(report["planner/total_cost"] / 1e6, abs=0.06)


def test_the_report_names_aims_limits_and_groups(report):
    page = markdown(report, "Toy")
    assert page.startswith("# Toy\n") and "missed by" in page and "| kept |" in page
    assert "weight 0.3 was chosen on validation: the best NDCG@10 of the 1 among 2" in page and "history length" in page
    assert "so the cheapest was taken" in markdown(report | {"planners_below_ceiling": 0}, "Toy")
    assert "There is one planner" in markdown(report | {"planners": 1}, "Toy")
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


@pytest.mark.parametrize(("low", "said"), [(1e-6, "open: the interval holds 0"), (1e-3, "kept")])
def test_a_gain_too_small_to_be_shown_is_no_gain(report, low, said):
    gain = {"aim/over_random_mix": 2 * low, "aim/over_random_mix/slack": 2 * low}
    gain |= {
        "planner/over_random_mix": 2 * low,
        "planner/over_random_mix_lo": low,
        "planner/over_random_mix_hi": 3 * low,
    }
    assert {row[0]: row[-1] for row in aim_rows(report | gain)}["NDCG@10 over random mixing at equal shares"] == said


def test_the_frontier_is_drawn_twice(report, tmp_path):
    plot_planners(report, tmp_path)
    first = (tmp_path / "frontier.svg").read_bytes()
    plot_planners(report, tmp_path)
    assert (tmp_path / "frontier.svg").read_bytes() == first  # equal reports are equal files
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "frontier.svg").read_text()
    assert text.rstrip().endswith("</svg>") and text.count("<path") > 20
