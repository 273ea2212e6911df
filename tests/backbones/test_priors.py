import math
import re
from collections import defaultdict

import numpy as np
import pytest
import torch

from recllm.backbones.fit import full_ranks
from recllm.backbones.priors import PriorOptions, Priors, WithPriors
from recllm.backbones.sasrec import SASRec
from recllm.data.interactions import Sequences
from recllm.data.splits import make_split

ITEMS = 14


def world(seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    return Sequences.from_lists([rng.integers(ITEMS, size=n).tolist() for n in rng.integers(0, 12, size=15)])


def brute_tables(fold: Sequences, options: PriorOptions) -> tuple[dict, dict, list[int]]:
    """(directed, together) as {item: {other: weight}} and the events of each item, pair by pair."""
    directed, together = (defaultdict(lambda: defaultdict(float)) for _ in range(2))
    events = [0] * ITEMS
    for u in range(len(fold)):
        items = fold.items(u).tolist()
        for i, first in enumerate(items):
            events[first] += 1
            for j in range(i + 1, min(i + options.window, len(items) - 1) + 1):
                if items[j] != first:
                    directed[first][items[j]] += 1 / (j - i)
                    together[first][items[j]] += 1
                    together[items[j]][first] += 1
    for table in (directed, together):
        for first, row in table.items():
            for other in row:
                row[other] /= {"none": 1, "count": events[first], "sqrt": math.sqrt(events[first] * events[other])}[
                    options.norm
                ]
            if options.topk:
                kept = sorted(row, key=lambda other: (-np.float32(row[other]), other))[: options.topk]
                table[first] = {other: row[other] for other in kept}
    return directed, together, events


@pytest.mark.parametrize("norm", ["sqrt", "count", "none"])
@pytest.mark.parametrize(("topk", "window", "recent_k"), [(0, 1, 1), (3, 4, 2), (2, 99, 50)])
def test_priors_are_the_brute_force_sums(norm, topk, window, recent_k):
    options = PriorOptions(0.7, 1.3, 0.2, norm, recent_k, topk, window)
    fold = world(1)
    priors = Priors.from_fitting_fold(fold, ITEMS, options)
    directed, together, events = brute_tables(fold, options)
    history_BT = np.array([[3, 9, 1, 3, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2, 14, 7, 8, 1]])
    added_BN = priors.of(history_BT)
    assert added_BN.shape == (4, ITEMS) and added_BN.dtype == np.float32
    for row, items in enumerate(history_BT.tolist()):
        recent = [item - 1 for item in items if item][-recent_k:]
        for item in range(ITEMS):
            transition = sum(directed[first].get(item, 0.0) for first in recent) / max(len(recent), 1)
            item_cf = sum(together[first].get(item, 0.0) for first in recent) / max(len(recent), 1)
            expected = 0.7 * transition + 1.3 * item_cf + 0.2 * math.log(1 + events[item])
            assert added_BN[row, item] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["leave_one_out", "roles"])
def test_targets_never_enter(kind):
    """Every event outside the fitting fold becomes another item: no table changes. Inside, some do."""
    sequences = world(2)
    split = make_split(sequences, kind)
    options = PriorOptions(1.0, 1.0, 1.0, topk=0, window=9)
    place_M = np.arange(len(sequences.items_M)) - np.repeat(sequences.offsets_U1[:-1], sequences.lengths_U)
    outside_M = place_M >= np.repeat(split.fit_length_U, sequences.lengths_U)
    assert 10 < outside_M.sum() < len(outside_M)

    def tables(changed_M: np.ndarray) -> list[np.ndarray]:
        items_M = np.where(changed_M, (sequences.items_M + 5) % ITEMS, sequences.items_M).astype(np.int32)
        other = Sequences(sequences.user_ids_U, items_M, sequences.timestamps_M, sequences.offsets_U1)
        priors = Priors.from_fitting_fold(make_split(other, kind).fitting, ITEMS, options)
        return [priors.transition_NN.toarray(), priors.item_cf_NN.toarray(), priors.log_popularity_N]

    for before, after in zip(tables(outside_M & False), tables(outside_M), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(tables(outside_M & False), tables(~outside_M), strict=True):
        assert not np.array_equal(before, after)


def model_and_priors(options: PriorOptions) -> tuple[SASRec, WithPriors]:
    torch.manual_seed(0)
    model = SASRec(ITEMS, 6, 8).eval()
    return model, WithPriors(model, Priors.from_fitting_fold(world(3), ITEMS, options))


def test_the_final_score_is_the_formula():
    model, joined = model_and_priors(PriorOptions(0.5, 0.0, 2.0))
    history_BT = torch.tensor([[1, 2, 3], [4, 0, 0]])
    scores_BN = model.score(history_BT)
    spread_B1 = ((scores_BN - scores_BN.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True).sqrt()
    expected_BN = (scores_BN - scores_BN.mean(1, keepdim=True)) / spread_B1
    expected_BN = expected_BN + torch.from_numpy(joined.priors.of(history_BT.numpy()))
    torch.testing.assert_close(joined.score(history_BT), expected_BN)
    torch.testing.assert_close(joined.score(torch.tensor([[4]]))[0], joined.score(history_BT)[1], msg="padding")


@pytest.mark.parametrize("weight", [3.0, -3.0])
def test_a_rerank_moves_the_models_best_items_among_themselves(weight):
    history_BT = torch.tensor([[1, 2, 3], [4, 0, 0]])
    model, whole = model_and_priors(PriorOptions(popularity=weight))
    reranked = model_and_priors(PriorOptions(popularity=weight, rerank=5))[1]
    before_BN, free_BN = model.score(history_BT).argsort(1, descending=True), whole.score(history_BT)
    after_BN = reranked.score(history_BT).argsort(1, descending=True)
    for before_N, free_N, after_N in zip(before_BN, free_BN, after_BN, strict=True):
        best_K = before_N[:5]
        assert after_N[:5].tolist() == best_K[free_N[best_K].argsort(descending=True)].tolist()
        assert after_N[5:].tolist() == before_N[5:].tolist(), "the others keep the model's order"
    assert not torch.equal(before_BN[:, :5], after_BN[:, :5])
    all_of_them = model_and_priors(PriorOptions(popularity=weight, rerank=ITEMS))[1]
    torch.testing.assert_close(all_of_them.score(history_BT), free_BN, rtol=0, atol=0)


def test_weights_of_zero_leave_the_ranking_and_a_huge_one_decides_it():
    split = make_split(world(3), "leave_one_out")
    model, joined = model_and_priors(PriorOptions())
    for exclude_seen in (False, True):
        plain_E = full_ranks(model, split.test, exclude_seen)
        np.testing.assert_array_equal(full_ranks(joined, split.test, exclude_seen), plain_E)
    _, popular = model_and_priors(PriorOptions(popularity=1e4))
    order_BN = popular.score(torch.tensor([[1]])).argsort(1, descending=True)
    popularity_N = popular.priors.log_popularity_N[order_BN[0].numpy()]
    assert (np.diff(popularity_N) <= 0).all()
    assert not PriorOptions().active and PriorOptions(item_cf=-1.0).active


def test_saved_priors_load_as_the_same(tmp_path):
    options = PriorOptions(0.5, 0.25, 0.1, "count", 3, 4, 2)
    _, joined = model_and_priors(options)
    joined.priors.save(tmp_path)
    again = Priors.load(tmp_path)
    assert again.options == options
    history_BT = np.array([[1, 2, 3, 0], [4, 0, 0, 0]])
    np.testing.assert_array_equal(again.of(history_BT), joined.priors.of(history_BT))
    with pytest.raises(FileNotFoundError, match=r"priors\.safetensors is missing"):
        Priors.load(tmp_path / "elsewhere")


def test_cost_counts_the_table_rows():
    options = PriorOptions(transition=1.0, item_cf=1.0, recent_k=3)
    model, joined = model_and_priors(options)
    neighbours = (joined.priors.transition_NN.nnz + joined.priors.item_cf_NN.nnz) // ITEMS
    for length in (2, 50):
        assert joined.flops(length) == model.flops(length) + 4 * ITEMS + 2 * min(length, 3) * neighbours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "prior norm 'l1' is unknown; choose one of sqrt, count, none"),
        ({"recent_k": 0}, "prior recent_k must be at least 1"),
        ({"window": 0}, "prior window must be at least 1"),
        ({"topk": -1}, "prior topk must be at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PriorOptions(**options)
