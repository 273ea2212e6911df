"""Oracle plans and warm-up traces against a second, slow reading of methods 2.4."""

import math

import numpy as np
import pytest

from recllm.planner.dataset import label_metrics, label_rows, prompt_rows, trace_rows
from recllm.planner.env import PlannerEnv, answer_ndcg, tools_cost
from recllm.planner.labels import choose_rows, decisive, dense_value, oracle_tools, published_tools, trace, up_routed
from recllm.planner.parser import parse_turn
from recllm.planner.texts import DONE, TOOLS

SEEDS = range(8)


def place(cache, p, e):
    """1-based rank of the target in a list, None where it is absent."""
    found = cache.items_PEK[p, e].tolist()
    return found.index(cache.targets_E[e]) + 1 if cache.targets_E[e] in found else None


def ndcg(rank):
    return 1 / math.log2(rank + 1) if rank is not None and rank <= 10 else 0.0


def twin(cache, e):
    """The cheapest plan that reaches the best NDCG@10; ties by log-rank, then cost; all miss -> retrieve."""
    ranks = [place(cache, p, e) for p in range(3)]
    if all(rank is None for rank in ranks):
        return 0
    best = max(ndcg(rank) for rank in ranks)
    left = [p for p in range(3) if ndcg(ranks[p]) == best]
    log_rank = {p: math.log(ranks[p]) if ranks[p] else math.inf for p in left}
    left = [p for p in left if log_rank[p] == min(log_rank.values())]
    return min(left, key=lambda p: cache.cost_PE[p, e])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_oracle_matches_its_twin(worlds, seed):
    cache = worlds.random_cache(seed, examples=200)
    found = oracle_tools(cache)
    assert found.tolist() == [twin(cache, e) for e in range(len(cache))]
    assert len(set(found.tolist())) == 3  # the worlds exercise every answer


def test_the_oracle_by_hand(worlds):
    #         retrieve rank reason
    table = [
        ((0, 0, 0), 0),  # equal: the cheapest
        ((1, 0, 0), 1),  # the cheaper of two best
        ((1, 0, 5), 1),
        ((9, 8, 7), 2),
        ((9, 10, 11), 0),  # only one inside ten
        ((10, 11, 12), 0),  # all outside ten: log-rank decides
        ((30, 20, 40), 1),
        ((30, 20, 10), 2),
        ((20, 20, 30), 0),
        ((50, 50, 49), 2),
        ((50, 49, 49), 1),
        ((50, 50, 50), 0),
    ]
    cache = worlds.planted(np.array([ranks for ranks, _ in table]).T)
    assert oracle_tools(cache).tolist() == [tool for _, tool in table]
    reversed_costs = np.array(worlds.COSTS)[::-1, None] + np.zeros(len(table), dtype=int)
    dear = worlds.planted(np.array([ranks for ranks, _ in table]).T, cost_PE=reversed_costs)
    found = oracle_tools(dear)
    assert found[0] == 2 and found[1] == 2 and found[8] == 1  # equal ranks: the cheapest by its cost, not by its name
    assert found[11] == 0  # a miss everywhere is retrieve whatever it costs


def test_the_published_rule_by_hand(worlds):
    ranks = [0, 9, 10, 49, 50]
    cache = worlds.planted([ranks, [50] * 5, [0] * 5])
    assert published_tools(cache).tolist() == [0, 0, 1, 1, 2]
    assert published_tools(cache, first=1).tolist() == [0, 1, 1, 1, 2]


def test_up_routing_moves_a_share_of_the_easy_ones_and_nothing_else():
    labels = np.array([0, 1, 2, 0] * 5000)
    assert (up_routed(labels, 0.0, np.random.default_rng(0)) == labels).all()
    moved = up_routed(labels, 0.2, np.random.default_rng(0))
    assert (moved[labels > 0] == labels[labels > 0]).all()
    shares = np.bincount(moved[labels == 0], minlength=3) / 10_000
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    assert (up_routed(labels, 1.0, np.random.default_rng(0)) > 0).all()
    with pytest.raises(ValueError, match="up_routing"):
        up_routed(labels, 1.2, np.random.default_rng(0))


@pytest.mark.parametrize("seed", SEEDS)
def test_decisive_is_a_difference_in_ndcg(worlds, seed):
    cache = worlds.random_cache(seed)
    expected = [len({ndcg(place(cache, p, e)) for p in range(3)}) > 1 for e in range(len(cache))]
    assert decisive(cache).tolist() == expected
    assert any(expected) and not all(expected)


def test_dense_value_table():
    table = {1: 1.0, 2: 1 - math.log(2) / math.log(51), 10: 1 - math.log(10) / math.log(51)}
    table[50] = 1 - math.log(50) / math.log(51)
    for rank, value in table.items():
        assert dense_value(rank - 1) == pytest.approx(value, abs=1e-12)
    assert 0 < table[50] < 0.006
    assert dense_value(50) == dense_value(51) == dense_value(np.inf) == 0
    values = dense_value(np.arange(50))
    assert (np.diff(values) < 0).all() and values.min() > 0 and values.max() == 1


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77, 0.9, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_chosen_rows_are_decisive_enough_and_different(worlds, share, seed):
    cache = worlds.random_cache(seed, examples=90)
    decisive_E = decisive(cache)
    rows = choose_rows(cache, np.random.default_rng(seed), share)
    assert len(set(rows.tolist())) == len(rows)
    assert set(np.flatnonzero(decisive_E)) <= set(rows.tolist())
    assert decisive_E[rows].mean() >= share - 1e-12
    if len(rows) < len(cache):  # one row more would break the share
        assert decisive_E.sum() / (len(rows) + 1) < share + 1e-12
    assert rows.tolist() == choose_rows(cache, np.random.default_rng(seed), share).tolist()
    assert rows.tolist() != sorted(rows.tolist())


def test_a_small_share_takes_every_row(worlds):
    cache = worlds.random_cache(0)
    assert sorted(choose_rows(cache, np.random.default_rng(0), 1e-6).tolist()) == list(range(len(cache)))


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(worlds, share):
    with pytest.raises(ValueError):
        choose_rows(worlds.random_cache(0), np.random.default_rng(0), share)


def test_labels_follow_their_rule_and_refuse_what_cannot_be_planned(worlds):
    bench = worlds.make_bench(worlds.random_cache(3))
    for rule, expected in (("oracle", oracle_tools), ("published", published_tools)):
        labels = label_rows(bench, rule, 0.5, seed=1)
        assert labels.tool_E.tolist() == expected(bench.cache)[labels.row_E].tolist()
        metrics = label_metrics(bench, labels)
        assert metrics["rows"] == len(labels.row_E) and metrics["decisive"] >= 0.5
        shares = [metrics[f"share_{tool}"] for tool in TOOLS]
        assert shares == pytest.approx([(labels.tool_E == p).mean() for p in range(3)])
    with pytest.raises(ValueError, match="'slow' is unknown; choose one of oracle, published"):
        label_rows(bench, "slow", 0.5, seed=1)
    with pytest.raises(ValueError, match="no example is decisive"):
        label_rows(worlds.make_bench(worlds.planted([[3, 20], [3, 30], [3, 50]])), "oracle", 0.5, seed=1)


def replay(bench, row, messages, tokenizer):
    """Render a trace, cut it into turns as text, parse and play them; each answer must be the one in the trace."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    turns = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
    answers = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>tool\n")[1:]]
    env, given = PlannerEnv(bench), []
    env.reset(row=row)
    for turn in turns:
        parsed = parse_turn(turn)
        assert parsed.malformed == 0
        given += [getattr(env, tool)(**arguments) for tool, arguments in parsed.calls]
    assert given == answers and turns[-1] == DONE
    return env


def test_a_trace_renders_and_parses_back(worlds, tokenizer):
    bench = worlds.make_bench(worlds.random_cache(4))
    for row in range(20):
        for p, tool in enumerate(TOOLS):
            env = replay(bench, row, trace(bench, row, tool), tokenizer)
            assert [name for name, *_ in env.episode.calls] == [tool]
            assert env.episode.redundant == env.episode.invalid == 0
            assert answer_ndcg(env) == pytest.approx(bench.cache.ndcg_PE[p, row])
            seen = bench.cache.cost_PE[0, row] if p == 2 else 0
            assert tools_cost(env) == bench.cache.cost_PE[p, row] + seen


def test_traces_survive_a_data_set_on_disk(worlds, tokenizer, tmp_path):
    from datasets import Dataset

    bench = worlds.make_bench(worlds.random_cache(4))
    labels = label_rows(bench, "oracle", 0.5, seed=0)
    assert set(labels.tool_E.tolist()) == {0, 1, 2}
    trace_rows(bench, labels).save_to_disk(tmp_path / "traces")
    loaded = Dataset.load_from_disk(str(tmp_path / "traces"))
    assert loaded["row"] == labels.row_E.tolist()
    for example, row, tool in zip(loaded, labels.row_E, labels.tool_E, strict=True):
        assert example["tool"] == TOOLS[tool]
        assert replay(bench, int(row), example["messages"], tokenizer).episode.tool == TOOLS[tool]
        plain = tokenizer.apply_chat_template(trace(bench, int(row), TOOLS[tool]), tokenize=False)
        assert tokenizer.apply_chat_template(example["messages"], tokenize=False) == plain


def test_prompts_are_the_openings_of_the_traces(worlds):
    bench = worlds.make_bench(worlds.random_cache(4))
    labels = label_rows(bench, "oracle", 0.5, seed=0)
    rows = prompt_rows(bench, labels)
    for example, row in zip(rows, labels.row_E, strict=True):
        assert example["prompt"] == bench.prompt(int(row)) and example["row"] == row
        assert trace(bench, int(row), "rank")[: len(example["prompt"])] == example["prompt"]
