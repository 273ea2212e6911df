"""What is timed, how often and on whom; the costs beside it are those of the cached bench."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.evaluation.latency import PLANNER, _times, latency_table, measure_latency
from recllm.metrics.timing import Stopwatch
from recllm.planner.bench import Bench
from recllm.planner.env import tools_cost
from recllm.planner.rollout import play
from recllm.planner.texts import TOOLS
from recllm.tools.build import Tools

_FILE = Path(__file__).parents[1] / "planner" / "live_worlds.py"
live_worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="live_worlds"))
REQUESTS, BATCHES, SIZE, WARMUP = 5, 2, 4, 1


class Noted:
    """A tool that keeps which users it was asked about."""

    def __init__(self, tool):
        self.tool, self.asked = tool, []

    def __getattr__(self, name):
        return getattr(self.tool, name)

    def answer(self, examples, k, **options):
        self.asked.append(examples.user_E.tolist())
        return self.tool.answer(examples, k, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory, worlds):
    """The bench and a planner that calls rank for users with short histories and else ends at once."""
    made = live_worlds.write_project(tmp_path_factory.mktemp("latency"))
    made.bench = Bench.load(made.base / "dataset", made.base / "sid_table", made.base / "tool_cache", "test")

    def say(prompt, turn):
        return (worlds.call("rank") + worlds.END) if turn == 0 and "Length 3" in prompt else worlds.DONE

    made.model.generate = live_worlds.speak(made.tokenizer, say)
    return made


def measure(world, seed=0):
    tools = Tools(*(Noted(getattr(world.tools, name)) for name in TOOLS))
    found = measure_latency(
        tools, world.model, world.tokenizer, world.bench, REQUESTS, BATCHES, SIZE, warmup=WARMUP, seed=seed
    )
    return found, tools


@pytest.fixture(scope="module")
def measured(world):
    """Metrics of one measurement, and the tools that took part."""
    return measure(world)


def test_every_tool_and_the_planner_are_timed_at_both_sizes(measured):
    metrics, _ = measured
    for name in (*TOOLS, PLANNER):
        for span in ("ms@1", f"ms@{SIZE}", f"ms_per_user@{SIZE}"):
            assert 0 < metrics[f"{name}/p50_{span}"] <= metrics[f"{name}/p95_{span}"]
        assert metrics[f"{name}/p50_ms_per_user@{SIZE}"] == pytest.approx(
            metrics[f"{name}/p50_ms@{SIZE}"] / SIZE, abs=1e-3
        )
    assert (metrics["requests@1"], metrics[f"batches@{SIZE}"]) == (REQUESTS, BATCHES)
    assert metrics["reason/p50_ms@1"] > metrics["retrieve/p50_ms@1"]


def test_all_take_turns_on_the_same_sampled_users(measured, world):
    _, tools = measured
    sizes = [1] * (WARMUP + REQUESTS) + [SIZE] * (WARMUP + BATCHES)
    assert [len(users) for users in tools.reason.asked] == sizes, "the planner never calls reason here"
    # The planner's own retrieval comes after the tools' turns of the same round.
    assert tools.retrieve.asked[::2] == tools.retrieve.asked[1::2] == tools.reason.asked
    singles = [user for (user,) in tools.reason.asked[: WARMUP + REQUESTS]]
    assert len(set(singles)) == len(singles)
    again, other = measure(world)[1], measure(world, seed=1)[1]
    assert again.reason.asked == tools.reason.asked != other.reason.asked


def test_costs_are_those_of_the_cached_bench_without_the_warm_up(measured, world):
    metrics, tools = measured
    users = [user for (user,) in tools.reason.asked[WARMUP : WARMUP + REQUESTS]]
    rows = np.array([world.bench.examples.user_E.tolist().index(user) for user in users])
    for place, name in enumerate(TOOLS):
        assert metrics[f"{name}/cost"] == pytest.approx(world.bench.cache.cost_PE[place, rows].mean())
    rollouts = play(world.model, world.tokenizer, world.bench, rows)
    called = {rollout.env.episode.tool for rollout in rollouts}
    assert called == {None, "rank"}, "the sample holds users of both kinds"
    assert metrics["planner/cost"] == pytest.approx(np.mean([tools_cost(rollout.env) for rollout in rollouts]))
    assert metrics["planner/own_cost"] == pytest.approx(np.mean([rollout.own_cost for rollout in rollouts]))
    assert metrics["planner/total_cost"] == pytest.approx(metrics["planner/cost"] + metrics["planner/own_cost"])


def test_percentiles_by_hand():
    laps = [9.0, *(place / 1000 for place in range(1, 22))]  # one of warm-up, then 1 to 21 ms
    assert _times("x", Stopwatch(1, laps), 1) == {"x/p50_ms@1": 11.0, "x/p95_ms@1": 20.0}
    assert _times("x", Stopwatch(1, laps), 4) == {
        "x/p50_ms@4": 11.0,
        "x/p50_ms_per_user@4": 2.75,
        "x/p95_ms@4": 20.0,
        "x/p95_ms_per_user@4": 5.0,
    }


def test_the_table_shows_the_metrics(measured):
    metrics, _ = measured
    table = latency_table(metrics)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[0] for row in rows] == [*TOOLS, PLANNER] and str(REQUESTS) in table.title
    for row in rows:
        assert row[1] == f"{metrics[row[0] + '/p50_ms@1']:,.1f}"
        assert row[4] == f"{metrics[row[0] + f'/p95_ms@{SIZE}']:,.1f}"
        assert row[5] == f"{metrics[row[0] + f'/p50_ms_per_user@{SIZE}']:,.1f}"
    assert rows[0][7] == rows[0][8] and rows[3][8] == f"{metrics['planner/total_cost'] / 1e6:,.1f}"


def test_a_sample_longer_than_the_bench_lets_its_examples_return(world):
    found = measure_latency(
        Tools(world.tools.retrieve, world.tools.rank, world.tools.retrieve),
        world.model,
        world.tokenizer,
        world.bench.first(2),
        requests=3,
        batches=1,
        batch_size=5,
        warmup=0,
    )
    assert found["requests@1"] == 3 and found["planner/p50_ms@5"] > 0


@pytest.mark.parametrize("wrong", [{"batch_size": 1}, {"requests": 0}, {"batches": 0}, {"warmup": -1}])
def test_what_cannot_be_timed_is_refused(world, wrong):
    with pytest.raises(ValueError, match="batch_size must be 2 or more"):
        measure_latency(world.tools, world.model, world.tokenizer, world.bench, **wrong)
