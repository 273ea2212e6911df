"""Routers against slow twins on random caches, and a planner that does nothing but one tool."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.evaluation.planner import announce_headroom
from recllm.evaluation.routing import (
    FIXED,
    QUALITIES,
    SIGNALS,
    ThresholdRouter,
    by_planner,
    by_share,
    by_tool,
    headroom,
    random_mix,
    routers,
    routing_metrics,
)
from recllm.planner.env import answer_ndcg, tools_cost
from recllm.planner.labels import oracle_tools
from recllm.planner.texts import TOOLS

SEEDS = range(5)
THRESHOLDS = [ThresholdRouter("margin", 0.5, 2, 0), ThresholdRouter("entropy", -0.4, 2, 1)]


@pytest.fixture(params=SEEDS, scope="module")
def cache(worlds, request):
    return worlds.random_cache(request.param, examples=120)


def outcome(cache, tool, e, cut=10):
    """(NDCG, Recall, cost) of a tool's list, read off the list."""
    found = cache.items_PEK[tool, e].tolist()
    place = found.index(cache.targets_E[e]) if cache.targets_E[e] in found else math.inf
    ndcg = 1 / math.log2(place + 2) if place < cut else 0.0
    return ndcg, float(place < cut), float(cache.cost_PE[tool, e])


def check(routed, cache, tools, looked=False):
    """`looked`: the router has paid for the retrieval before it chose, and reason does not include it."""
    expected = np.array([outcome(cache, int(tool), e) for e, tool in enumerate(tools)])
    if looked:
        expected[:, 2] += np.where(np.asarray(tools) == 2, cache.cost_PE[0], 0)
    assert list(routed.qualities) == list(QUALITIES)
    for cut in (5, 10):
        values = np.array([outcome(cache, int(tool), e, cut)[:2] for e, tool in enumerate(tools)])
        assert np.allclose(routed.qualities[f"ndcg@{cut}"], values[:, 0])
        assert np.array_equal(routed.qualities[f"recall@{cut}"], values[:, 1])
    assert np.array_equal(routed.value_E, routed.qualities["ndcg@10"])
    assert np.allclose(routed.cost_E, expected[:, 2])
    assert np.array_equal(routed.share_PE.argmax(0), tools) and np.array_equal(
        routed.share_PE.sum(0), np.ones(len(tools))
    )


def test_every_router_matches_its_twin(cache):
    examples, margin_E = range(len(cache)), cache.margin_PE[0]
    found = routers(cache, THRESHOLDS)
    assert set(found) == {*FIXED, "margin", "entropy", "oracle"}
    for p, name in enumerate(FIXED):
        check(found[name], cache, np.full(len(cache), p))
    check(found["margin"], cache, np.array([2 if margin_E[e] < 0.5 else 0 for e in examples]), looked=True)
    entropy_E = cache.entropy_PE[0]
    check(found["entropy"], cache, np.array([2 if entropy_E[e] > 0.4 else 1 for e in examples]), looked=True)
    check(found["oracle"], cache, oracle_tools(cache))
    drawn_E = np.random.default_rng(0).integers(0, 3, len(cache))
    check(by_tool(cache, drawn_E), cache, drawn_E)


def test_no_router_beats_the_oracle(cache):
    oracle_E = by_tool(cache, oracle_tools(cache)).value_E
    shares_PE = np.random.default_rng(1).dirichlet(np.ones(3), len(cache)).T
    rivals = [*routers(cache, THRESHOLDS).values(), by_share(cache, shares_PE), random_mix(cache, shares_PE.mean(1))]
    for routed in rivals:
        assert (routed.value_E <= oracle_E + 1e-12).all()


def test_random_mixing_is_what_drawing_gives_on_average(cache):
    share_P = np.array([0.5, 0.2, 0.3])
    mixed = random_mix(cache, share_P)
    for e in range(len(cache)):
        expected = sum(share_P[p] * np.array(outcome(cache, p, e)) for p in range(3))
        assert [mixed.value_E[e], mixed.qualities["recall@10"][e], mixed.cost_E[e]] == pytest.approx(expected.tolist())
    assert np.allclose(mixed.share_PE.mean(1), share_P)
    draws = np.random.default_rng(0).choice(3, size=(4000, len(cache)), p=share_P)
    drawn = cache.ndcg_PE[draws, np.arange(len(cache))].mean()
    assert mixed.value_E.mean() == pytest.approx(drawn, abs=0.005)
    oracle_E = oracle_tools(cache)
    assert np.array_equal(mixed.agreement(oracle_E), share_P[oracle_E])


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("weight", [0.0, 0.15, 5.0])
def test_a_threshold_router_is_the_best_of_its_kind(cache, weight, signal):
    entropy_E = np.random.default_rng(3).random(len(cache)).astype(np.float32)
    cache = replace(cache, entropy_PE=np.tile(entropy_E, (3, 1)))
    fitted = ThresholdRouter.fit(cache, signal, weight)
    margins = cache.margin_PE[0] if signal == "margin" else -entropy_E

    def value(threshold, low, high):
        total = 0.0
        for e in range(len(cache)):
            tool = low if margins[e] < threshold else high
            ndcg, _, cost = outcome(cache, tool, e)
            cost += cache.cost_PE[0, e] if tool == 2 else 0  # the margin is retrieve's
            total += ndcg - weight * cost / cache.cost_PE[2, e]
        return total / len(cache)

    thresholds = [np.quantile(margins, q) for q in np.arange(0, 1, 0.05)]
    best = max(value(*choice) for choice in itertools.product(thresholds, range(3), range(3)))
    assert value(fitted.threshold, fitted.low, fitted.high) == pytest.approx(best)
    single = max(value(-1.0, p, p) for p in range(3))
    assert best >= single - 1e-12
    tools = [fitted.low if margin < fitted.threshold else fitted.high for margin in margins]
    check(fitted.route(cache), cache, np.array(tools), looked=True)


def test_the_margin_router_finds_a_planted_threshold(worlds):
    margins = np.linspace(0.05, 0.95, 40)
    strong = margins >= 0.5
    ranks = np.array([np.where(strong, 0, 50), np.full(40, 50), np.where(strong, 50, 0)])
    cache = worlds.planted(ranks, margin_PE=np.tile(margins, (3, 1)))
    fitted = ThresholdRouter.fit(cache, "margin", 0.05)
    assert (fitted.low, fitted.high) == (2, 0)
    assert fitted.route(cache).value_E.mean() == 1.0
    dear = ThresholdRouter.fit(cache, "margin", 100.0)  # at this price nobody reasons
    assert dear.route(cache).share_PE[2].sum() == 0


def test_headroom_is_zero_for_equal_tools(worlds, capsys):
    ranks = np.tile(np.random.default_rng(0).integers(0, 60, 80).clip(max=50), (3, 1))
    cache = worlds.planted(ranks)
    found = headroom(cache)
    assert found == {"headroom": 0.0, "headroom_lo": 0.0, "headroom_hi": 0.0}
    announce_headroom(worlds.make_bench(cache))
    assert "WARNING: the interval holds 0" in capsys.readouterr().out


def test_headroom_is_positive_for_complementary_tools(worlds, capsys):
    turn = np.arange(90) % 3
    cache = worlds.planted(np.where(np.arange(3)[:, None] == turn, 0, 50))
    found = headroom(cache)
    assert found["headroom"] == pytest.approx(1 - 1 / 3)
    assert 0 < found["headroom_lo"] <= found["headroom"] <= found["headroom_hi"] <= 1
    announce_headroom(worlds.make_bench(cache))
    out = capsys.readouterr().out
    assert "0.6667 NDCG@10" in out and "on 90 prompts" in out and "WARNING" not in out


def test_headroom_is_over_the_best_fixed_tool(cache):
    means = [np.mean([outcome(cache, p, e)[0] for e in range(len(cache))]) for p in range(3)]
    oracle = np.mean([outcome(cache, int(p), e)[0] for e, p in enumerate(oracle_tools(cache))])
    assert headroom(cache)["headroom"] == pytest.approx(oracle - max(means))


def rollouts_of(worlds, cache, plan_of, own=1000, faults=0):
    bench = worlds.make_bench(cache)
    envs = [worlds.env_at(bench, row, plan_of(row)) for row in range(len(bench))]
    return [SimpleNamespace(env=env, own_cost=own, faults=faults, messages=[]) for env in envs]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_planner_of_one_tool_is_that_fixed_router(worlds, cache, tool):
    plans = [tool, f"retrieve {tool}"] if tool != "retrieve" else [tool, "", "reason retrieve"]
    for plan in plans:
        metrics = routing_metrics(cache, THRESHOLDS, rollouts_of(worlds, cache, lambda row, plan=plan: plan))
        names = [
            key.removeprefix("planner/")
            for key in metrics
            if f"always_{tool}/{key.removeprefix('planner/')}" in metrics
        ]
        assert len(names) == 4 * 3 + 1 + 2 + 3
        # The prompt shows retrieve's findings, so a planner that reasons has paid for them too.
        looked = cache.cost_PE[0].mean() if tool == "reason" else 0.0
        looked += cache.cost_PE[2].mean() if plan == "reason retrieve" else 0.0
        for name in names:
            extra = looked if name == "cost" else 0.0
            assert metrics[f"planner/{name}"] == pytest.approx(
                metrics[f"always_{tool}/{name}"] + extra, abs=0, rel=1e-15
            )
        for name in ("ndcg@10", "recall@10", "share_rank", "oracle_agreement"):
            assert metrics[f"random_mix/{name}"] == pytest.approx(metrics[f"always_{tool}/{name}"])
        assert metrics[f"planner/share_{tool}"] == 1.0
        assert metrics["planner/own_cost"] == 1000
        assert metrics["planner/total_cost"] == pytest.approx(1000 + metrics["planner/cost"])
        assert metrics["planner/over_random_mix"] == pytest.approx(0, abs=1e-12)


def test_a_mixed_planner_by_hand(worlds, cache):
    plans = ["", "retrieve", "rank", "reason", "rank reason", "reason rank"]
    rollouts = rollouts_of(worlds, cache, lambda row: plans[row % 6])
    for row in range(0, len(cache), 4):
        rollouts[row].faults = 2
    metrics = routing_metrics(cache, THRESHOLDS, rollouts)
    last = [(plans[row % 6].split() or ["retrieve"])[-1] for row in range(len(cache))]
    oracle_E = oracle_tools(cache)
    agree = np.array([TOOLS[p] == tool for p, tool in zip(oracle_E, last, strict=True)])
    decisive_E = np.array([len({outcome(cache, p, e)[0] for p in range(3)}) > 1 for e in range(len(cache))])
    assert metrics["planner/oracle_agreement"] == pytest.approx(agree.mean())
    assert metrics["planner/decisive_agreement"] == pytest.approx(agree[decisive_E].mean())
    ndcg = np.mean([outcome(cache, TOOLS.index(tool), e)[0] for e, tool in enumerate(last)])
    assert metrics["planner/ndcg@10"] == pytest.approx(ndcg)
    assert metrics["planner/ndcg@10"] == pytest.approx(np.mean([answer_ndcg(each.env) for each in rollouts]))
    assert metrics["planner/cost"] == pytest.approx(np.mean([tools_cost(each.env) for each in rollouts]))
    assert metrics["planner/faulty_share"] == 0.25
    for tool in TOOLS:
        assert metrics[f"planner/share_{tool}"] == pytest.approx(1 / 3)
        assert metrics[f"random_mix/share_{tool}"] == pytest.approx(1 / 3)
    fixed = {name: metrics[f"{name}/ndcg@10"] for name in FIXED}
    best = max(fixed, key=fixed.get)
    assert metrics["planner/over_best_fixed"] == pytest.approx(ndcg - fixed[best])
    assert metrics["planner/over_random_mix"] == pytest.approx(ndcg - metrics["random_mix/ndcg@10"])
    assert (
        metrics["planner/regret"] == pytest.approx(metrics["oracle/ndcg@10"] - ndcg) and metrics["planner/regret"] >= 0
    )
    assert metrics["planner/above_line"] == pytest.approx(ndcg - metrics["planner/line_ndcg"])


def test_the_line_runs_from_retrieve_to_the_best_fixed_tool(worlds):
    # retrieve is worth 0, reason 1, and the planner reasons for half of the users.
    cache = worlds.planted([[50] * 40, [50] * 40, [0] * 40], cost_PE=np.array([[10], [20], [110]]) + np.zeros((3, 40)))
    rollouts = rollouts_of(worlds, cache, lambda row: "reason" if row % 2 else "retrieve")
    metrics = routing_metrics(cache, THRESHOLDS, rollouts)
    assert metrics["planner/ndcg@10"] == 0.5
    assert metrics["planner/cost"] == (10 + 120) / 2
    assert metrics["planner/line_ndcg"] == pytest.approx((65 - 10) / (110 - 10))
    assert metrics["planner/above_line"] == pytest.approx(0.5 - 0.55)


def test_the_line_of_a_best_retriever_is_its_own_quality(worlds):
    cache = worlds.planted([[0] * 9, [50] * 9, [50] * 9])
    metrics = routing_metrics(cache, THRESHOLDS, rollouts_of(worlds, cache, lambda row: "rank"))
    assert metrics["planner/line_ndcg"] == 1.0


def test_every_key_that_is_promised_exists(worlds, cache):
    metrics = routing_metrics(cache, THRESHOLDS, rollouts_of(worlds, cache, lambda row: TOOLS[row % 3]))
    promised = {"headroom", "headroom_lo", "headroom_hi", "planner/own_cost", "planner/total_cost"}
    for router in ("planner", *FIXED, "random_mix", "margin", "entropy", "oracle"):
        promised |= {f"{router}/{name}{end}" for name in QUALITIES for end in ("", "_lo", "_hi")}
        promised |= {f"{router}/{name}" for name in ("cost", "oracle_agreement", "decisive_agreement")}
        promised |= {f"{router}/share_{tool}" for tool in TOOLS}
        for name in QUALITIES:
            low, mid, high = (metrics[f"{router}/{name}{end}"] for end in ("_lo", "", "_hi"))
            assert 0 <= low <= mid <= high <= 1
        assert sum(metrics[f"{router}/share_{tool}"] for tool in TOOLS) == pytest.approx(1)
    assert promised <= set(metrics)
    assert (
        metrics["n"] == len(cache) and metrics["oracle/oracle_agreement"] == metrics["oracle/decisive_agreement"] == 1.0
    )
    assert all(math.isfinite(value) for value in metrics.values() if not isinstance(value, str))
    alone = routing_metrics(cache, THRESHOLDS)
    assert alone == {key: metrics[key] for key in alone} and not any(key.startswith("planner") for key in alone)
    assert routing_metrics(cache, THRESHOLDS, rollouts_of(worlds, cache, lambda row: TOOLS[row % 3])) == metrics


def test_without_a_decisive_user_there_is_no_decisive_agreement(worlds):
    cache = worlds.planted(np.tile([0, 3, 50, 20], (3, 1)))
    metrics = routing_metrics(cache, THRESHOLDS, rollouts_of(worlds, cache, lambda row: "rank"))
    assert metrics["planner/decisive_agreement"] is None and metrics["oracle/oracle_agreement"] == 1.0


def test_a_planners_shorter_list_counts_as_it_is(worlds):
    bench = worlds.make_bench(worlds.planted([[4, 4], [0, 0], [50, 50]]))
    envs = [worlds.env_at(bench, row) for row in range(2)]
    envs[0].retrieve(3)
    envs[1].retrieve(5)
    routed = by_planner([SimpleNamespace(env=env) for env in envs])
    assert routed.qualities["recall@10"].tolist() == [0, 1] and routed.value_E.tolist() == [
        0,
        pytest.approx(1 / math.log2(6)),
    ]


def test_a_margin_router_pays_for_the_margin_it_reads(worlds):
    cache = worlds.planted([[50], [50], [0]], cost_PE=[[10], [20], [100]])
    assert ThresholdRouter("margin", 2.0, 2, 0).route(cache).cost_E.tolist() == [110]
