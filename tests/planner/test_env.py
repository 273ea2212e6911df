"""Episodes played by hand: what counts, what it costs, and what the planner gets to read."""

import json
import re
from collections import Counter

import numpy as np
import polars as pl
import pytest
from transformers.utils import get_json_schema

from recllm.data.interactions import Sequences
from recllm.data.splits import load_split
from recllm.metrics.ranking import ndcg_at_k
from recllm.planner.bench import Bench, popularity
from recllm.planner.env import LIMIT_TEXT, MAX_CALLS, PlannerEnv, answer_items, answer_ndcg, answer_rank, tools_cost
from recllm.planner.texts import MAX_RESULT_CHARACTERS, TOOLS
from recllm.sid.table import SidTable
from recllm.tools.answer import ToolAnswer
from recllm.tools.cache import DEPTH, FILE, ROLES, cache_frame, examples_of


@pytest.fixture(scope="module")
def bench(worlds):
    return worlds.make_bench(worlds.random_cache(5))


def test_the_last_list_is_the_answer(worlds, bench):
    for row in range(len(bench)):
        for plan in ("retrieve", "rank", "reason", "retrieve rank", "retrieve reason", "rank retrieve", "reason rank"):
            env, last = worlds.env_at(bench, row, plan), plan.split()[-1]
            found = bench.cache.items_PEK[TOOLS.index(last), row]
            assert answer_items(env).tolist() == [item for item in found.tolist() if item >= 0][:10]
            assert env.episode.tool == last
            expected = bench.cache.ndcg_PE[TOOLS.index(last), row]
            assert answer_ndcg(env) == pytest.approx(expected)


def test_an_empty_episode_falls_back_to_retrieve(worlds, bench):
    for row in range(len(bench)):
        empty, called = worlds.env_at(bench, row), worlds.env_at(bench, row, "retrieve")
        assert answer_items(empty).tolist() == answer_items(called).tolist()
        assert tools_cost(empty) == tools_cost(called) == bench.cache.cost_PE[0, row]
        assert answer_ndcg(empty) == answer_ndcg(called)
        assert empty.episode.tool is None and not empty.episode.calls


def test_the_rank_is_the_place_in_what_was_asked_for(worlds):
    bench = worlds.make_bench(worlds.planted([[4, 12, 50], [0, 9, 50], [50, 2, 50]]))
    env = PlannerEnv(bench)
    for row, k, expected in [(0, 10, 4), (0, 5, 4), (0, 4, np.inf), (1, 10, np.inf), (1, 13, 12), (2, 50, np.inf)]:
        env.reset(row=row)
        env.retrieve(k)
        assert answer_rank(env) == expected
        assert answer_ndcg(env) == pytest.approx(1 / np.log2(expected + 2) if expected < 10 else 0)
    env.reset(row=1)
    env.rank(50, 10)
    assert answer_rank(env) == 9


def test_a_tool_that_found_nothing_answers_with_an_empty_list(worlds):
    cache = worlds.make_cache(np.full((3, 1, DEPTH), -1), [3])
    env = worlds.env_at(worlds.make_bench(cache), 0)
    text = env.reason()
    assert isinstance(text, str) and answer_items(env).size == 0
    assert answer_rank(env) == np.inf and answer_ndcg(env) == 0


def test_calls_after_the_limit_change_nothing_and_are_redundant(worlds, bench):
    env = worlds.env_at(bench, 0, ["retrieve", "rank", "reason", "retrieve"])
    assert MAX_CALLS == 4 and env.episode.redundant == 1
    before = answer_items(env).tolist(), tools_cost(env)
    for count in range(6):
        assert env.reason() == LIMIT_TEXT
        assert env.episode.redundant == 2 + count
    assert (answer_items(env).tolist(), tools_cost(env)) == before
    assert len(env.episode.calls) == MAX_CALLS and env.episode.tool == "retrieve" and env.episode.invalid == 0


@pytest.mark.parametrize(
    ("plan", "redundant"),
    [("", 0), ("rank", 0), ("retrieve rank reason", 0), ("rank rank", 1), ("reason rank reason rank", 2)],
)
def test_a_repeated_tool_is_redundant(worlds, bench, plan, redundant):
    assert worlds.env_at(bench, 1, plan).episode.redundant == redundant


def test_reset_forgets_the_last_episode(worlds, bench):
    env = worlds.env_at(bench, 1, "rank rank")
    with pytest.raises(ValueError):
        env.reason(0)
    assert env.reset(row=2, tool="rank", prompt=[]) is None
    assert (env.episode.row, env.episode.calls, env.episode.invalid, env.episode.redundant) == (2, [], 0, 0)
    assert env.episode.target == bench.cache.targets_E[2]


@pytest.mark.parametrize(
    "value", [True, False, 10.0, 1.5, float("nan"), "10", "", None, [10], {}, 0, -1, -(10**400), 51, 10**400]
)
def test_arguments_that_are_no_count_are_refused_and_counted(worlds, bench, value):
    env = worlds.env_at(bench, 0)
    calls = [
        lambda: env.retrieve(k=value),
        lambda: env.rank(m=value),
        lambda: env.rank(n=value),
        lambda: env.reason(n=value),
        lambda: env.rank(m=value, n=value),
    ]
    for count, call in enumerate(calls, 1):
        with pytest.raises(ValueError, match="must be a whole number from 1 to") as error:
            call()
        assert len(str(error.value)) < 80
        assert env.episode.invalid == count and not env.episode.calls


def test_a_rank_keeps_no_more_than_it_ranks(worlds, bench):
    env = worlds.env_at(bench, 0)
    with pytest.raises(ValueError, match="n must be a whole number from 1 to 5"):
        env.rank(m=5, n=6)
    assert env.episode.invalid == 1
    env.rank(m=5, n=5)
    assert len(answer_items(env)) == 5 and env.episode.invalid == 1
    assert tools_cost(worlds.env_at(bench, 0)) > 0  # a refused call costs nothing by itself


def test_rank_over_m_keeps_the_rankers_order_among_the_first_m_retrieved(worlds, bench):
    for row in range(len(bench)):
        first = bench.cache.items_PEK[0, row].tolist()
        ranked = bench.cache.items_PEK[1, row].tolist()
        for m in (1, 2, 7, 23, 49, 50):
            allowed = {item for item in first[:m] if item >= 0}
            expected = [item for item in ranked if item in allowed]
            assert bench.items("rank", row, m, m).tolist() == expected
            env = worlds.env_at(bench, row)
            env.rank(m, 1)
            assert answer_items(env).tolist() == expected[:1]


def test_cost_rules_by_hand(worlds):
    cache = worlds.planted([[0], [1], [2]], cost_PE=[[1000], [6000], [90_000]])
    bench = worlds.make_bench(cache)
    table = {
        "": 1000,  # the prompt shows what retrieve found, so it is always paid
        "retrieve": 1000,
        "rank": 6000,  # the cached cost includes its retrieve
        "reason": 91_000,
        "retrieve rank": 6000,
        "rank retrieve": 6000,
        "retrieve reason": 91_000,
        "reason retrieve": 91_000,
        "rank reason": 96_000,
        "retrieve rank reason": 96_000,
        "reason rank": 96_000,
        "retrieve retrieve": 1000,
        "rank rank": 11_000,
        "reason reason": 181_000,
    }
    for plan, cost in table.items():
        assert tools_cost(worlds.env_at(bench, 0, plan)) == cost, plan
    for m, cost in [(50, 6000), (25, 3500), (10, 2000), (1, 1100)]:
        assert bench.cost("rank", 0, m) == cost
        for before in ("", "retrieve"):
            env = worlds.env_at(bench, 0, before)
            env.rank(m, 1)
            assert tools_cost(env) == cost


def test_rank_includes_its_retrieve_and_reason_adds_up(worlds, bench):
    for row in range(len(bench)):
        base, ranked, reasoned = bench.cache.cost_PE[:, row].tolist()
        for plan, cost in [("rank", ranked), ("retrieve rank", ranked), ("reason", base + reasoned)]:
            assert tools_cost(worlds.env_at(bench, row, plan)) == cost
        assert tools_cost(worlds.env_at(bench, row, "retrieve rank reason")) == ranked + reasoned


def test_the_tools_are_exactly_three_with_schemas(worlds, bench):
    public = [name for name in vars(PlannerEnv) if not name.startswith("_")]
    assert sorted(public) == ["rank", "reason", "reset", "retrieve"]
    assert sorted(name for name in dir(PlannerEnv(bench)) if not name.startswith("_")) == ["episode", *sorted(public)]
    assert all(getattr(PlannerEnv, name).__doc__ for name in public)
    arguments = {"retrieve": ["k"], "rank": ["m", "n"], "reason": ["n"]}
    for tool in worlds.tools_of(PlannerEnv(bench)):
        schema = get_json_schema(tool)["function"]
        assert schema["name"] in arguments and schema["description"]
        properties = schema["parameters"]["properties"]
        assert list(properties) == arguments[schema["name"]]
        assert all(entry["type"] == "integer" and entry["description"] for entry in properties.values())
        assert "required" not in schema["parameters"] or schema["parameters"]["required"] == []


def test_what_a_tool_returns_is_bounded(worlds):
    names = [["x" * 5000, "y" * 5000]] * worlds.ITEMS
    bench = worlds.make_bench(worlds.random_cache(1), categories=names)
    env = worlds.env_at(bench, 0)
    for text in (env.retrieve(50), env.rank(50, 50), env.reason(50), env.reason(), env.reason()):
        assert isinstance(text, str) and 0 < len(text) <= MAX_RESULT_CHARACTERS


def test_what_a_tool_returns_tells_margin_agreement_and_first_items(worlds, bench):
    for row in range(len(bench)):
        lists = [[item for item in bench.cache.items_PEK[p, row, :10].tolist() if item >= 0] for p in range(3)]
        before = lists[0]  # the prompt showed retrieve's
        env = worlds.env_at(bench, row)
        for tool, found in [("reason", lists[2]), ("rank", lists[1]), ("retrieve", lists[0])]:
            text = getattr(env, tool)()
            p = TOOLS.index(tool)
            digit = int((bench.cache.edges_P9[p] < bench.cache.margin_PE[p, row]).sum())
            popular = min(9, int(10 * bench.popularity_N[found].mean())) if found else 0
            names = Counter(name for item in found for name in bench.categories[item])
            liked = sorted(names, key=lambda name: (-names[name], name))[:2]
            sids = "".join(bench.sid_texts[item] for item in found[:3])
            agree = len({*found} & {*before})
            assert text == f"Margin {digit}. Popular {popular}. Agree {agree}. Top {sids} {', '.join(liked)}"
            before = found


def test_the_prompt_shows_what_retrieve_found(worlds, bench):
    for row in range(len(bench)):
        shown = worlds.env_at(bench, row).retrieve()
        (message,) = bench.prompt(row)
        without_agreement = re.sub(r" Agree [0-9]+\.", "", shown)
        assert message["role"] == "user" and message["content"].endswith(f"Found: {without_agreement}")


def test_popularity_is_the_share_of_events_on_less_popular_items():
    rng = np.random.default_rng(0)
    histories = [rng.zipf(1.5, 12).clip(1, 30).tolist() for _ in range(20)]
    found = popularity(Sequences.from_lists(histories), 35)
    counts = Counter(item for history in histories for item in history)
    total = sum(counts.values())
    for item in range(35):
        less = sum(count for count in counts.values() if count < counts[item])
        assert found[item] == pytest.approx(less / total)
    assert found.min() == 0 and found.max() < 1


@pytest.fixture
def saved(tmp_path, worlds):
    """A data set, SID table and cache on disk, with titles that must never be spoken."""
    rng = np.random.default_rng(0)
    users, length, items = 40, 9, worlds.ITEMS
    catalog = pl.DataFrame(
        {
            "item_id": np.arange(items, dtype=np.int32),
            "title": [f"Qzyx {item} <|im_start|>" for item in range(items)],
            "categories": [["Drama"] if item % 2 else ["War"] for item in range(items)],
        }
    )
    catalog.write_parquet(tmp_path / "catalog.parquet")
    events = {
        "user_id": np.repeat(np.arange(users, dtype=np.int32), length),
        "item_id": rng.integers(0, items, users * length).astype(np.int32),
        "timestamp": np.tile(np.arange(length, dtype=np.int64) * 3600, users),
    }
    pl.DataFrame(events).write_parquet(tmp_path / "interactions.parquet")
    split = {"split": "roles", "routing_items": 1, "split_seed": 0, "time": "seconds"}
    (tmp_path / "dataset.json").write_text(json.dumps(split))
    codes_NL = np.stack([np.arange(items) % 12, np.arange(items) // 12], axis=1)
    SidTable(codes_NL, (12, 12)).save(tmp_path)
    frames = []
    for role in ROLES:
        examples = examples_of(load_split(tmp_path), role)
        for cost, tool in enumerate(TOOLS, 1):
            items_EK = np.stack([rng.permutation(items)[:DEPTH] for _ in range(len(examples))]).astype(np.int32)
            scores_EK = -np.sort(-rng.random(items_EK.shape), axis=1).astype(np.float32)
            costs_E = np.full(len(examples), cost * 100, dtype=np.int64)
            frames.append(cache_frame(role, tool, examples, ToolAnswer(items_EK, scores_EK, costs_E)))
    pl.concat(frames).write_parquet(tmp_path / FILE)
    return tmp_path


def test_a_bench_from_disk_speaks_no_title(saved, worlds):
    for role in ROLES[1:]:
        bench = Bench.load(saved, saved, saved, role)
        assert len(bench) == len(bench.cache) > 0
        env = PlannerEnv(bench)
        for row in range(len(bench)):
            assert bench.examples.targets_E[row] == bench.cache.targets_E[row]
            env.reset(row=row)
            spoken = [env.retrieve(50), env.rank(50, 50), env.reason(50), *(m["content"] for m in bench.prompt(row))]
            assert not any("Qzyx" in text or "<|im" in text for text in spoken)
            history = [bench.sid_texts[item] for item in bench.examples.history(row)]
            recent = spoken[-1].split("Recent ")[1].split(" Found:")[0]
            assert recent == "".join(history[-8:])  # and not the target
    ranks_PE = bench.cache.rank_PE
    assert np.array_equal(bench.cache.ndcg_PE, np.stack([ndcg_at_k(rank_E, 10) for rank_E in ranks_PE]))


def test_a_cache_that_lacks_rows_is_refused(saved):
    frame = pl.read_parquet(saved / FILE)
    frame.filter(~((pl.col("role") == "test") & (pl.col("tool") == "rank") & (pl.col("row") == 3))).write_parquet(
        saved / FILE
    )
    with pytest.raises(ValueError, match=r"rows for rank on test, the split has"):
        Bench.load(saved, saved, saved, "test")
    Bench.load(saved, saved, saved, "validation")


def test_a_cache_of_another_data_set_of_the_same_size_is_refused(saved):
    events = pl.read_parquet(saved / "interactions.parquet")
    events.with_columns((pl.col("item_id") + 1) % 130).with_columns(pl.col("item_id").cast(pl.Int32)).write_parquet(
        saved / "interactions.parquet"
    )
    with pytest.raises(ValueError):
        Bench.load(saved, saved, saved, "test")
