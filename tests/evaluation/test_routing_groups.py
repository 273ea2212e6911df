"""Groups of users against plain loops over them."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from recllm.evaluation.routing import by_tool
from recllm.evaluation.routing_groups import FEATURES, GROUPS, features, group_table, routing_groups, thirds
from recllm.planner.texts import TOOLS

_FILE = Path(__file__).resolve().parents[1] / "planner" / "worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="worlds"))


@pytest.mark.parametrize("seed", range(3))
def test_every_group_against_a_loop_over_its_users(seed):
    cache = worlds.random_cache(seed, examples=90)
    bench = worlds.make_bench(cache)
    tool_E = np.random.default_rng(seed).integers(0, 3, 90)
    metrics = routing_groups(bench, by_tool(cache, tool_E))
    for feature, values_E in features(bench).items():
        third_E = thirds(values_E)
        for number, group in enumerate(GROUPS):
            rows = [e for e in range(90) if third_E[e] == number]
            name = f"by/{feature}/{group}"
            if not rows:
                assert f"{name}/n" not in metrics
                continue
            assert metrics[f"{name}/n"] == len(rows)
            assert metrics[f"{name}/from"] == min(values_E[e] for e in rows)
            for place, tool in enumerate(TOOLS):
                assert metrics[f"{name}/share_{tool}"] == pytest.approx(np.mean([tool_E[e] == place for e in rows]))
            mine = [cache.ndcg_PE[tool_E[e], e] for e in rows]
            gain = [value - cache.ndcg_PE[0, e] for value, e in zip(mine, rows, strict=True)]
            assert metrics[f"{name}/ndcg@10"] == pytest.approx(np.mean(mine))
            assert metrics[f"{name}/gain"] == pytest.approx(np.mean(gain))
            assert metrics[f"{name}/gain_lo"] <= np.mean(gain) <= metrics[f"{name}/gain_hi"]
    assert sum(metrics[f"by/popularity/{group}/n"] for group in GROUPS if f"by/popularity/{group}/n" in metrics) == 90


def test_always_retrieving_gains_exactly_nothing():
    cache = worlds.random_cache(0)
    metrics = routing_groups(worlds.make_bench(cache), by_tool(cache, np.int64(0)))
    gains = [value for name, value in metrics.items() if "/gain" in name]
    assert gains and set(gains) == {0.0}


def test_features_by_hand():
    bench = worlds.make_bench(worlds.planted([[0, 1], [0, 1], [0, 1]]), [["A", "B"], ["A"], []] * 44)
    found = features(bench)
    for e in range(2):
        history = bench.examples.history(e)
        names = [name for item in history for name in (["A", "B"], ["A"], [])[item % 3]]
        assert found["history_length"][e] == len(history) == 6
        assert found["popularity"][e] == pytest.approx(bench.popularity_N[history].mean())
        assert found["diversity"][e] == pytest.approx(len(set(names)) / len(names))
    assert set(found) == set(FEATURES)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2, 2]), ([5, 5, 5, 5], [0, 0, 0, 0]), ([0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 2, 2])],
)
def test_thirds_keep_equal_values_together(values, expected):
    assert thirds(np.array(values, dtype=float)).tolist() == expected


def test_the_table_shows_every_group():
    cache = worlds.random_cache(1, examples=60)
    metrics = routing_groups(worlds.make_bench(cache), by_tool(cache, np.int64(2)))
    console = Console(width=170, record=True)
    console.print(group_table(metrics))
    text = console.export_text()
    assert text.count("100%") == sum(name.endswith("/n") for name in metrics) > 3
    assert "popularity" in text and "history length" in text
