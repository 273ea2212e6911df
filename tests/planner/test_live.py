"""A live bench answers as a cached one does, and asks its tools no more often than it must."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.planner.bench import Bench
from recllm.planner.env import MAX_CALLS, PlannerEnv, answer_items, tools_cost
from recllm.planner.live import LiveBench
from recllm.planner.rollout import play, play_batch
from recllm.planner.texts import TOOLS

_FILE = Path(__file__).with_name("live_worlds.py")
live_worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="live_worlds"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The project's tools, and the bench of the test role from its cache."""
    made = live_worlds.write_project(tmp_path_factory.mktemp("live"))
    made.bench = Bench.load(made.base / "dataset", made.base / "sid_table", made.base / "tool_cache", "test")
    return made


@pytest.fixture
def watched(world, monkeypatch):
    """(live(), asked): makes live benches whose tools note (tool, number of requests) in `asked`."""
    asked = []
    for tool in TOOLS:
        kind = type(getattr(world.tools, tool))

        def answer(self, examples, *args, _was=kind.answer, _tool=tool, **options):
            asked.append((_tool, len(examples)))
            return _was(self, examples, *args, **options)

        monkeypatch.setattr(kind, "answer", answer)
    return lambda rows: LiveBench(world.tools, world.bench, world.bench.examples.subset(np.array(rows))), asked


def test_live_answers_are_the_cached_ones(world):
    rows = np.random.default_rng(3).permutation(len(world.bench))[:5]
    live, cached = LiveBench(world.tools, world.bench, world.bench.examples.subset(rows)), world.bench
    assert len(live) == 5
    for place, row in enumerate(rows.tolist()):
        assert live.prompt(place) == cached.prompt(row)
        before = cached.items("retrieve", row, 10)
        for tool in reversed(TOOLS):
            for count, m in ((10, 50), (50, 50), (4, 7)):
                found = live.items(tool, place, count, m)
                np.testing.assert_array_equal(found, cached.items(tool, row, count, m))
                assert live.cost(tool, place, m) == cached.cost(tool, row, m) > 0
                told = live.result(tool, place, found, before)
                assert told == cached.result(tool, row, cached.items(tool, row, count, m), before)


def test_answers_in_batches_are_those_of_single_requests(world):
    rows = np.arange(9)
    live, cached = LiveBench(world.tools, world.bench, world.bench.examples.subset(rows)), world.bench
    live.ask("rank", [4, 1, 8])
    live.ask("reason", rows)
    live.ask("rank", rows)
    for tool in TOOLS:
        for row in rows.tolist():
            np.testing.assert_array_equal(live.items(tool, row), cached.items(tool, row))
            assert live.cost(tool, row) == cached.cost(tool, row)


def test_a_tool_answers_once_and_only_when_asked(watched):
    make, asked = watched
    live = make([5, 2, 9])
    assert asked == [("retrieve", 3)] and live.seconds["retrieve"] > 0
    assert live.seconds["rank"] == live.seconds["reason"] == 0
    live.prompt(1)
    live.items("rank", 1)
    spent = dict(live.seconds)
    assert spent["rank"] > 0
    live.cost("rank", 1)
    live.ask("rank", [1])
    assert asked == [("retrieve", 3), ("rank", 1)] and live.seconds == spent
    live.ask("rank", [0, 1, 2, 2])
    live.ask("reason", [])
    assert asked[2:] == [("rank", 2)], "rank asks no retriever again"


def test_the_calls_of_a_turn_are_answered_in_one_batch(worlds, watched):
    make, asked = watched
    live = make(range(8))
    envs = [PlannerEnv(live) for _ in range(7)]
    for row, env in enumerate(envs):
        env.reset(row=row)
    call, end = worlds.call, worlds.END
    for _ in range(MAX_CALLS):
        envs[6].retrieve()
    texts = [
        *(call("rank") + end, call("reason") + end, call("rank") + call("reason") + end, "Done." + end),
        *("<think>" + call("reason") + "</think>" + end, call("shell", "{}") + end, call("rank") + end),
    ]
    live.listen(envs, texts, [], [])
    assert asked == [("retrieve", 8), ("rank", 2), ("reason", 2)], "no thought, no unknown tool, none beyond the limit"
    envs[0].rank()
    envs[1].reason()
    assert len(asked) == 3


def test_an_episode_ends_alike_on_both(world, worlds):
    live = LiveBench(world.tools, world.bench, world.bench.examples)
    for row, plan in enumerate(["", "retrieve", "rank", "reason", "rank reason", "retrieve rank reason rank"]):
        one, other = (worlds.env_at(bench, row, plan) for bench in (live, world.bench))
        assert answer_items(one).tolist() == answer_items(other).tolist()
        assert tools_cost(one) == tools_cost(other)
        assert one.episode.target == other.episode.target


def test_margins_are_placed_among_the_lent_deciles(world):
    edges_P9 = np.full((3, 9), 1e9)
    bench = replace(world.bench, cache=replace(world.bench.cache, edges_P9=edges_P9))
    live = LiveBench(world.tools, bench, world.bench.examples.subset(np.arange(3)))
    assert live.result("rank", 0, live.items("rank", 0), None).startswith("Margin 0.")
    edges_P9[:] = -1e9
    assert live.result("rank", 0, live.items("rank", 0), None).startswith("Margin 9.")


def test_a_batch_of_episodes_plays_as_on_the_cache_a_turn_a_call(world, worlds, watched, monkeypatch):
    make, asked = watched

    def say(prompt, turn):
        tool = "rank" if "Length 3" in prompt else "reason"
        return (worlds.call(tool) if turn == 0 else "Done.") + worlds.END

    monkeypatch.setattr(world.model, "generate", live_worlds.speak(world.tokenizer, say))
    rows = np.arange(8)
    live = make(rows)
    played = play_batch(world.model, world.tokenizer, live, rows, listen=live.listen)
    cached = play(world.model, world.tokenizer, world.bench, rows)
    tools = [rollout.env.episode.tool for rollout in played]
    assert set(tools) == {"rank", "reason"}
    assert asked == [("retrieve", 8), ("rank", tools.count("rank")), ("reason", tools.count("reason"))]
    for one, other in zip(played, cached, strict=True):
        assert (one.messages, one.own_cost, one.faults) == (other.messages, other.own_cost, other.faults)
        assert tools_cost(one.env) == tools_cost(other.env)
        assert answer_items(one.env).tolist() == answer_items(other.env).tolist()
