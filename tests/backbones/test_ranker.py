import numpy as np
import polars as pl
import pytest
import torch

from recllm.backbones.din import DIN
from recllm.backbones.ranker import NUM_FEATURES, CandidateFeatures, CandidateSet, candidate_set, rerank
from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import make_split

ITEMS, USERS = 30, 24
NAMES = ["Drama", "Comedy", "War", "Noir", "Animation"]


def catalogue(seed: int) -> Catalog:
    """Items with 0 to 3 categories."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(NAMES)[: rng.integers(4)].tolist() for _ in range(ITEMS)]
    frame = {"item_id": np.arange(ITEMS, dtype=np.int32), "title": [f"t{i}" for i in range(ITEMS)], "categories": rows}
    return Catalog(pl.DataFrame(frame, schema_overrides={"categories": pl.List(pl.String)}))


def world(seed: int):
    rng = np.random.default_rng(seed)
    sequences = Sequences.from_lists([rng.integers(ITEMS, size=n).tolist() for n in rng.integers(2, 20, size=USERS)])
    return make_split(sequences, "roles"), catalogue(seed)


def lists(split, seed: int, candidates: int = 6):
    rng = np.random.default_rng(seed)
    examples = split.validation
    items_EM = np.stack([rng.permutation(ITEMS)[:candidates] for _ in range(len(examples))]).astype(np.int32)
    return examples, items_EM, -np.sort(-rng.normal(size=items_EM.shape)).astype(np.float32)


def transition(folds: list[list[int]], first: int, second: int) -> float:
    """How often `second` follows `first` within five events, near ones counting more, as a shrunk share."""
    weight = total = 0.0
    for fold in folds:
        for place, item in enumerate(fold):
            for distance, later in enumerate(fold[place + 1 : place + 6], start=1):
                if item == first:
                    total += 1 / distance
                    weight += (later == second) / distance
    return weight / (total + 20)


@pytest.mark.parametrize("seed", range(3))
def test_each_feature_is_its_brute_force_twin(seed):
    split, catalog = world(seed)
    examples, items_EM, scores_EM = lists(split, seed)
    feature_EMF = CandidateFeatures.from_fitting_fold(split, catalog).of(examples, items_EM, scores_EM)
    assert feature_EMF.shape == (*items_EM.shape, NUM_FEATURES) and feature_EMF.dtype == np.float32
    folds = [split.fitting.items(user).tolist() for user in range(USERS)]
    users_of = [{user for user, fold in enumerate(folds) if item in fold} for item in range(ITEMS)]
    categories = [set(row) for row in catalog.categories]
    popularity = [np.log(1 + sum(fold.count(item) for fold in folds)) for item in range(ITEMS)]

    def cosine(one: set, other: set) -> float:
        return len(one & other) / np.sqrt(len(one) * len(other)) if one and other else 0.0

    for row in range(0, len(examples), 2):
        history = examples.history(row).tolist()
        for place, item in enumerate(items_EM[row].tolist()):
            expected = [
                (scores_EM[row, place] - scores_EM[row].mean()) / scores_EM[row].std(),
                np.log(place + 1),
                popularity[item],
                popularity[item] - np.mean([popularity[past] for past in history[-10:]]),
                np.mean([cosine(categories[item], categories[past]) for past in history[-10:]]),
            ]
            for window in (1, 3, 10, 50):
                expected.append(np.mean([cosine(users_of[item], users_of[past]) for past in history[-window:]]))
                expected.append(np.mean([transition(folds, past, item) for past in history[-window:]]))
            np.testing.assert_allclose(feature_EMF[row, place], expected, rtol=1e-3, atol=1e-4)


def features_of(split, catalog) -> list[np.ndarray]:
    found = CandidateFeatures.from_fitting_fold(split, catalog)
    pairs = (found.category_NC, found.cooccurrence_NN, found.transition_NN)
    return [found.log_popularity_N, *(part.toarray() for part in pairs)]


def test_events_outside_the_fitting_fold_change_nothing():
    split, catalog = world(0)
    before = features_of(split, catalog)
    sequences, rng = split.sequences, np.random.default_rng(9)
    outside_M = np.ones(len(sequences.items_M), dtype=bool)
    for start, fold in zip(sequences.offsets_U1[:-1], split.fit_length_U, strict=True):
        outside_M[start : start + fold] = False
    assert outside_M.any()

    def replaced(mask_M):
        items_M = sequences.items_M.copy()
        items_M[mask_M] = (items_M[mask_M] + rng.integers(1, ITEMS, size=mask_M.sum())) % ITEMS
        changed = Sequences(sequences.user_ids_U, items_M, sequences.timestamps_M, sequences.offsets_U1)
        return features_of(make_split(changed, "roles"), catalog)

    for old, new in zip(before, replaced(outside_M), strict=True):
        np.testing.assert_array_equal(old, new)
    inside = replaced(~outside_M)
    assert [np.array_equal(old, new) for old, new in zip(before, inside, strict=True)] == [False, True, False, False]


def test_an_empty_history_and_an_item_without_category_are_zeros():
    split, catalog = world(1)
    examples = split.validation
    examples = type(examples)(examples.user_E[:1], np.array([0]), examples.sequences)
    features = CandidateFeatures.from_fitting_fold(split, catalog)
    feature_EMF = features.of(examples, np.arange(4, dtype=np.int32)[None], np.array([[4.0, 3.0, 2.0, 1.0]]))
    assert (feature_EMF[0, :, 4:] == 0).all() and np.isfinite(feature_EMF).all()
    np.testing.assert_array_equal(
        feature_EMF[..., 3], feature_EMF[..., 2], err_msg="nothing to compare popularity with"
    )
    level = features.of(examples, np.arange(4, dtype=np.int32)[None], np.full((1, 4), 7.0))
    assert (level[..., 0] == 0).all(), "equal scores do not divide by zero"


@pytest.mark.parametrize("inject_target", [False, True])
def test_candidates_labels_and_injection(inject_target):
    split, catalog = world(2)
    examples, items_EM, scores_EM = lists(split, 2)
    target_E = examples.targets_E
    items_EM[:3] = [[item for item in range(ITEMS) if item != target][:6] for target in target_E[:3]]
    items_EM[3, 2] = target_E[3]
    items_EM[3, [0, 1, 3, 4, 5]] = [item for item in range(ITEMS) if item != target_E[3]][:5]
    given_EM = items_EM.copy()
    features = CandidateFeatures.from_fitting_fold(split, catalog)
    found = candidate_set(examples, items_EM, scores_EM, features, 8, inject_target)
    np.testing.assert_array_equal(items_EM, given_EM, err_msg="the caller's list is left alone")
    expected_EM = given_EM.copy()
    absent_E = ~(given_EM == target_E[:, None]).any(1)
    assert absent_E[:3].all() and not absent_E[3]
    if inject_target:
        expected_EM[absent_E, -1] = target_E[absent_E]
    np.testing.assert_array_equal(found.items_EM.numpy(), expected_EM)
    np.testing.assert_array_equal(found.label_EM.numpy(), expected_EM == target_E[:, None])
    assert found.label_EM.sum(1).tolist() == [1 if inject_target or not absent else 0 for absent in absent_E]
    np.testing.assert_array_equal(found.feature_EMF.numpy(), features.of(examples, expected_EM, scores_EM))
    np.testing.assert_array_equal(found.history_ET.numpy(), examples.padded_histories(8))


def test_batches_hold_every_list_once_and_rows_stay_together():
    count = 11
    rows_E = torch.arange(count)
    whole = CandidateSet(
        rows_E[:, None] + 100, rows_E[:, None].expand(-1, 3), rows_E[:, None, None].float(), rows_E[:, None] % 2 == 0
    )
    orders = []
    for epoch in range(2):
        seen = []
        for history_BT, candidate_BM, feature_BMF, label_BM in whole.batches(4, np.random.default_rng(epoch)):
            row_B = history_BT[:, 0] - 100
            assert torch.equal(candidate_BM, row_B[:, None].expand(-1, 3) + 1), "ids are item id + 1"
            assert torch.equal(feature_BMF[:, 0, 0], row_B.float()) and torch.equal(label_BM[:, 0], row_B % 2 == 0)
            seen += row_B.tolist()
        assert sorted(seen) == list(range(count))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_rerank_sorts_by_logit_and_keeps_list_order_in_ties():
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logit_N = torch.nn.Parameter(torch.tensor([0.0, 1.0, 5.0, 5.0, -2.0, 5.0, 3.0]))

        def forward(self, history_BT, candidate_BM, feature_BMF):
            return self.logit_N[candidate_BM - 1] + feature_BMF[..., 0]

    items_EM = torch.tensor([[4, 5, 0, 2, 3, 1], [6, 1, 2, 0, 4, 3]])
    feature_EMF = torch.zeros(2, 6, 1)
    feature_EMF[1, 3] = 10.0
    whole = CandidateSet(torch.ones(2, 1, dtype=torch.long), items_EM, feature_EMF, items_EM == 2)
    for batch_size in (1, 256):
        items, scores = rerank(Table(), whole, batch_size)
        assert items.tolist() == [[5, 2, 3, 1, 0, 4], [0, 2, 3, 6, 1, 4]] and items.dtype == np.int32
        assert scores.tolist() == [[5, 5, 5, 1, 0, -2], [10, 5, 5, 3, 1, -2]]


def test_rerank_is_a_permutation_by_the_models_own_logits():
    split, catalog = world(3)
    examples, items_EM, scores_EM = lists(split, 3)
    features = CandidateFeatures.from_fitting_fold(split, catalog)
    whole = candidate_set(examples, items_EM, scores_EM, features, 8, inject_target=False)
    torch.manual_seed(0)
    model = DIN(ITEMS, NUM_FEATURES, embedding_dim=4, attention_hidden=3, max_len=8).eval()
    items, scores = rerank(model, whole, batch_size=5)
    logit_EM = model(whole.history_ET, whole.items_EM + 1, whole.feature_EMF).detach().numpy()
    for row in range(len(examples)):
        logits = dict(zip(items_EM[row].tolist(), logit_EM[row].tolist(), strict=True))
        assert items[row].tolist() == sorted(logits, key=logits.get, reverse=True)
        np.testing.assert_allclose(scores[row], sorted(logits.values(), reverse=True), rtol=1e-5)
