"""The table at the end of a run, and its pictures."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from recllm.evaluation.report import ROUTERS, plot_frontier, print_routers, router_table
from recllm.evaluation.routing import SIGNALS, ThresholdRouter, routing_metrics
from recllm.planner.texts import TOOLS

THRESHOLDS = [ThresholdRouter(signal, 0.5, 2, 0) for signal in SIGNALS]
matplotlib_image = pytest.importorskip("matplotlib.image")


@pytest.fixture(scope="module")
def metrics(worlds):
    bench = worlds.make_bench(worlds.random_cache(0, examples=120))
    envs = [worlds.env_at(bench, row, TOOLS[row % 3]) for row in range(len(bench))]
    rollouts = [SimpleNamespace(env=env, own_cost=2_345_678, faults=0) for env in envs]
    found = routing_metrics(bench.cache, THRESHOLDS, rollouts)
    return found | {"reward/first": 0.1234, "reward/last": 0.2345}


def rendered(metrics) -> str:
    console = Console(width=170, file=io.StringIO())
    console.print(router_table(metrics))
    return console.file.getvalue()


def numbers_of(metrics, router) -> list[str]:
    """What a row must show, written another way than the table writes it."""

    def get(name):
        return metrics[f"{router}/{name}"]

    spans = [span(metrics, f"{router}/{name}") for name in ("ndcg@10", "recall@10")]
    shares = [f"{round(100 * get(f'share_{tool}'))}%" for tool in TOOLS]
    agree = [f"{100 * get(name):.1f}%" for name in ("oracle_agreement", "decisive_agreement")]
    return [*spans, f"{get('cost') / 1e6:.1f}", *shares, *agree]


def span(metrics, name) -> str:
    low, high = metrics[f"{name}_lo"], metrics[f"{name}_hi"]
    return f"{metrics[name]:.4f} [{low:.4f}, {high:.4f}]"


def test_the_table_shows_every_router_with_its_numbers(metrics):
    text = rendered(metrics)
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 5}
    assert set(ROUTERS) <= set(lines)
    for router in ROUTERS:
        cells = [cell.strip() for cell in lines[router].split("│")[2:-1]]
        assert cells == numbers_of(metrics, router)  # whole cells: nothing is cut or wrapped
    assert "n = 120" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 170


def test_a_run_without_a_planner_shows_the_others(metrics):
    text = rendered({key: value for key, value in metrics.items() if not key.startswith(("planner", "random_mix"))})
    assert "planner" not in text and "random_mix" not in text and "always_reason" in text


def test_what_is_printed_holds_table_headroom_costs_and_reward(metrics, capsys):
    print_routers(metrics)
    out = capsys.readouterr().out
    for router in ROUTERS:
        assert all(number in out for number in numbers_of(metrics, router))
    flat = " ".join(out.split())
    for name in ("headroom", "planner/over_random_mix"):
        assert span(metrics, name) in flat
    best = max((name for name in ROUTERS if name.startswith("always_")), key=lambda name: metrics[f"{name}/ndcg@10"])
    assert "own cost 2.3 MFLOPs" in flat and f"with tools {metrics['planner/total_cost'] / 1e6:.1f}" in flat
    assert f"retrieve - {best} by {metrics['planner/above_line']:+.4f}" in flat
    assert "reward 0.1234 -> 0.2345" in flat


def test_numbers_in_brackets_are_not_markup(metrics, capsys):
    print_routers(metrics | {"headroom": -0.5, "headroom_lo": -1.0, "headroom_hi": -0.25})
    assert "-0.5000 [-1.0000, -0.2500]" in capsys.readouterr().out


def test_a_run_without_decisive_users_is_printed(metrics):
    none = {key: None if key.endswith("decisive_agreement") else value for key, value in metrics.items()}
    assert "always_rank" in rendered(none)


def picture(path):
    image = matplotlib_image.imread(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return (image[..., :3] * 255).astype(int)


def colours(path) -> int:
    """Pixels that are neither grey nor white: what was drawn beside axes and text."""
    return int((np.ptp(picture(path), axis=-1) > 40).sum())


def test_the_frontier_is_drawn(metrics, tmp_path):
    plot_frontier(metrics, tmp_path / "all.png")
    few = {key: value for key, value in metrics.items() if not re.match("planner|oracle|margin|random", key)}
    plot_frontier(few, tmp_path / "few.png")
    assert picture(tmp_path / "all.png").shape[0] > 300
    assert colours(tmp_path / "all.png") > colours(tmp_path / "few.png") > 100


def test_equal_values_are_drawn_too(worlds, tmp_path):
    for examples in range(9, 15):  # every user's target stands at the same place
        cache = worlds.planted(np.full((3, examples), 2 + examples % 7))
        plot_frontier(routing_metrics(cache, THRESHOLDS), tmp_path / "equal.png")
