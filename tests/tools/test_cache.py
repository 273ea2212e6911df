import numpy as np
import polars as pl
import pytest

from recllm.data.interactions import Sequences
from recllm.data.splits import make_split
from recllm.metrics.ranking import ndcg_at_k
from recllm.tools.answer import ToolAnswer
from recllm.tools.cache import (
    DEPTH,
    FILE,
    ROLES,
    TOOL_NAMES,
    ToolCache,
    cache_frame,
    examples_of,
    list_entropy,
    without_tool,
)

ITEMS = 90


def world(seed: int = 0, routing_items: int = 2, users: int = 60):
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(ITEMS)[: rng.integers(3, 15)].tolist() for _ in range(users)]
    return make_split(Sequences.from_lists(histories), "roles", routing_items)


def random_answer(examples, seed: int, short: float = 0.2) -> ToolAnswer:
    """Lists of `DEPTH` items, a share of them cut after 7."""
    rng = np.random.default_rng(seed)
    count = len(examples)
    items_EK = np.stack([rng.permutation(ITEMS)[:DEPTH] for _ in range(count)]).astype(np.int32)
    scores_EK = -np.sort(-rng.normal(size=(count, DEPTH)), axis=1).astype(np.float32)
    short_E = rng.random(count) < short
    items_EK[short_E, 7:], scores_EK[short_E, 7:] = -1, -np.inf
    return ToolAnswer(items_EK, scores_EK, rng.integers(1, 2**40, size=count))


def make_cache(folder, split, short: float = 0.2) -> dict[tuple[str, str], ToolAnswer]:
    answers = {}
    for role in ROLES:
        for tool in TOOL_NAMES:
            answers[role, tool] = random_answer(examples_of(split, role), len(answers), short)
    frames = [cache_frame(role, tool, examples_of(split, role), answer) for (role, tool), answer in answers.items()]
    # The order of rows in the file is not part of the contract.
    pl.concat(frames).sample(fraction=1.0, shuffle=True, seed=0).write_parquet(folder / FILE)
    return answers


def test_what_is_written_is_read(tmp_path):
    split = world()
    answers = make_cache(tmp_path, split)
    for role in ROLES:
        cache, examples = ToolCache.load(tmp_path, role, split), examples_of(split, role)
        assert len(cache) == len(examples) > 5
        np.testing.assert_array_equal(cache.targets_E, examples.targets_E)
        for place, tool in enumerate(TOOL_NAMES):
            answer = answers[role, tool]
            np.testing.assert_array_equal(cache.items_PEK[place], answer.items_EK)
            np.testing.assert_array_equal(cache.margin_PE[place], answer.margin_E)
            np.testing.assert_array_equal(cache.cost_PE[place], answer.cost_E)
            np.testing.assert_array_equal(cache.entropy_PE[place], list_entropy(answer.scores_EK))
    assert cache.items_PEK.dtype == np.int32 and cache.cost_PE.dtype == np.int64


def test_ranks_and_ndcg_by_brute_force(tmp_path):
    split = world()
    make_cache(tmp_path, split)
    cache = ToolCache.load(tmp_path, "routing", split)
    for place in range(len(TOOL_NAMES)):
        for row, target in enumerate(cache.targets_E.tolist()):
            found = cache.items_PEK[place, row].tolist()
            rank = found.index(target) if target in found else DEPTH
            assert cache.rank_PE[place, row] == rank
            assert cache.ndcg_PE[place, row] == pytest.approx(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    assert (cache.rank_PE == DEPTH).any() and (cache.rank_PE < DEPTH).any()
    np.testing.assert_allclose(cache.ndcg_PE, np.stack([ndcg_at_k(rank_E, 10) for rank_E in cache.rank_PE]))


def test_roles_are_disjoint_and_calibration_is_one_a_user_of_half_a():
    split = world(routing_items=3)
    cells = {}
    for role in ROLES:
        examples = examples_of(split, role)
        cells[role] = set(zip(examples.user_E.tolist(), examples.position_E.tolist(), strict=True))
        assert len(cells[role]) == len(examples)
    assert sum(map(len, cells.values())) == len(set().union(*cells.values()))
    calibration = examples_of(split, "calibration")
    assert len(set(calibration.user_E.tolist())) == len(calibration)
    assert (split.half_U[calibration.user_E] == 0).all()
    assert set(calibration.user_E.tolist()) == set(split.routing("A").user_E.tolist())
    assert (split.half_U[examples_of(split, "routing").user_E] == 1).all()


def test_missing_rows_are_named(tmp_path):
    split = world()
    make_cache(tmp_path, split)
    whole = pl.read_parquet(tmp_path / FILE)
    lost = (pl.col("role") == "validation") & (pl.col("tool") == "rank") & (pl.col("row") == 3)
    whole.filter(~lost).write_parquet(tmp_path / FILE)
    count = len(split.validation)
    with pytest.raises(ValueError, match=rf"{FILE}: {count - 1} rows for rank on validation, the split has {count}"):
        ToolCache.load(tmp_path, "validation", split)
    assert len(ToolCache.load(tmp_path, "test", split)) == len(split.test)
    with pytest.raises(ValueError, match="rows for retrieve on routing"):
        ToolCache.load(tmp_path, "routing", world(routing_items=1))
    pl.concat([whole, whole.filter(lost)]).write_parquet(tmp_path / FILE)
    with pytest.raises(ValueError, match="rows for rank on validation"):
        ToolCache.load(tmp_path, "validation", split)


def test_a_cache_of_other_examples_is_refused(tmp_path):
    """As many rows, but of other users' events: a cache that was made from another split."""
    split = world()
    make_cache(tmp_path, split)
    sequences, examples = split.sequences, split.validation
    # The users that are split get one event more, so that every target moves by one place.
    later = np.isin(np.arange(len(sequences)), examples.user_E)
    histories = [sequences.items(user).tolist() + [0] * int(later[user]) for user in range(len(sequences))]
    other = make_split(Sequences.from_lists(histories), "roles", 2)
    np.testing.assert_array_equal(other.validation.user_E, examples.user_E)
    assert (other.validation.position_E == examples.position_E + 1).all()
    with pytest.raises(ValueError, match="split"):
        ToolCache.load(tmp_path, "validation", other)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        ToolCache.load(tmp_path, "test", world())


def test_margin_digits_are_the_deciles_of_half_a(tmp_path):
    split = world(users=300)
    answers = make_cache(tmp_path, split, short=0.0)
    cache, calibration = ToolCache.load(tmp_path, "test", split), ToolCache.load(tmp_path, "calibration", split)
    for tool, name in enumerate(TOOL_NAMES):
        digits = [cache.margin_digit(tool, row) for row in range(len(cache))]
        order = np.argsort(cache.margin_PE[tool], kind="stable")
        assert (np.diff(np.array(digits)[order]) >= 0).all(), "a wider margin never has a lower digit"
        assert set(digits) == set(range(10))
        counts = np.bincount([calibration.margin_digit(tool, row) for row in range(len(calibration))], minlength=10)
        assert counts.max() - counts.min() <= 2, "tenths of half A"
        margin_E = answers["calibration", name].margin_E
        for row in range(0, len(cache), 7):
            below = np.mean(margin_E < cache.margin_PE[tool, row])
            assert abs(below * 10 - (digits[row] + 0.5)) <= 0.5 + 10 / len(margin_E)


def test_entropy_is_that_of_the_softmax_of_what_was_found():
    rng = np.random.default_rng(0)
    scores_EK = rng.normal(scale=4, size=(200, DEPTH)).astype(np.float32) + 1000
    scores_EK[::3, 7:] = -np.inf
    for scores_K, entropy in zip(scores_EK, list_entropy(scores_EK), strict=True):
        finite = scores_K[np.isfinite(scores_K)].astype(np.float64)
        weight = np.exp(finite - finite.max())
        weight /= weight.sum()
        assert entropy == pytest.approx(-(weight * np.log(weight)).sum(), abs=1e-5)
    equal, sure, one, none = np.zeros(5), np.array([0, *[-1e9] * 4]), np.array([3, *[-np.inf] * 4]), np.full(5, -np.inf)
    found = list_entropy(np.stack([equal, sure, one, none]).astype(np.float32))
    assert found.tolist() == [pytest.approx(np.log(5)), 0, 0, 0]


@pytest.mark.parametrize("tool", ["rank", "reason"])
def test_a_tool_that_is_taken_out_answers_what_retrieve_answers_at_its_own_cost(tmp_path, tool):
    from recllm.planner.labels import oracle_tools

    split = world()
    make_cache(tmp_path, split)
    (tmp_path / "less").mkdir()
    assert without_tool(tmp_path, tool, tmp_path / "less") == sum(len(examples_of(split, role)) for role in ROLES)
    place = TOOL_NAMES.index(tool)
    others = [p for p in range(3) if p != place]
    for role in ROLES:
        whole, less = ToolCache.load(tmp_path, role, split), ToolCache.load(tmp_path / "less", role, split)
        for name in ("items_PEK", "margin_PE", "entropy_PE", "cost_PE", "edges_P9"):
            np.testing.assert_array_equal(getattr(less, name)[others], getattr(whole, name)[others])
            source = place if name == "cost_PE" else 0
            np.testing.assert_array_equal(getattr(less, name)[place], getattr(whole, name)[source])
        cheap = less.cost_PE[0] < less.cost_PE[place]
        assert not (oracle_tools(less)[cheap] == place).any() and cheap.any()


def test_margins_by_hand():
    scores_EK = np.full((3, 12), -np.inf, dtype=np.float32)
    scores_EK[0] = np.arange(12, 0, -1)
    scores_EK[1, :3] = [5.0, 4.0, 1.0]
    scores_EK[2, :10] = 2.0
    answer = ToolAnswer(np.zeros((3, 12), dtype=np.int32), scores_EK, np.zeros(3, dtype=np.int64))
    assert answer.margin_E.dtype == np.float32
    # First minus tenth; a list of three stands out by 20; a level list not at all.
    assert answer.margin_E.tolist() == [9.0, 20.0, 0.0]
    short = ToolAnswer(
        np.zeros((1, 4), dtype=np.int32), np.array([[4.0, 3.0, 2.0, 0.5]], dtype=np.float32), np.zeros(1)
    )
    assert short.margin_E.tolist() == [3.5], "a list shorter than ten is measured to its end"


def test_an_empty_list_has_a_margin_too():
    scores_EK = np.full((1, 12), -np.inf, dtype=np.float32)
    answer = ToolAnswer(np.full((1, 12), -1, dtype=np.int32), scores_EK, np.zeros(1, dtype=np.int64))
    assert answer.margin_E.tolist() == [0.0], "not NaN, which would be digit 9 and spoil half A's deciles"
