import math

import numpy as np
import pytest
import torch

from recllm.backbones.fit import fit, full_ranks, ranking_metrics, score_batches, top_lists
from recllm.data.interactions import Sequences
from recllm.data.splits import Examples, make_split
from recllm.metrics.ranking import ndcg_at_k


class Scripted(torch.nn.Module):
    """A backbone whose scores are a fixed function of the last item and the length of the history."""

    def __init__(self, items: int, max_len: int = 12, levels: int = 5):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        # Few distinct values, so that there are many ties.
        table_NN = torch.randint(levels, (items + 1, items), generator=generator).float()
        self.table_NN, self.max_len = torch.nn.Parameter(table_NN), max_len
        self.asked: list[torch.Tensor] = []

    def score(self, history_BT: torch.Tensor) -> torch.Tensor:
        self.asked.append(history_BT)
        length_B = (history_BT > 0).sum(1)
        last_B = history_BT.gather(1, (length_B - 1).clamp(min=0)[:, None])[:, 0]
        return self.table_NN[last_B].roll(1, 1) + (length_B % 3)[:, None]

    def of(self, history: np.ndarray) -> np.ndarray:
        """Scores of one history, the long way round."""
        last = int(history[-1]) + 1 if len(history) else 0
        return np.roll(self.table_NN[last].detach().numpy(), 1) + min(len(history), self.max_len) % 3


def run_fit(metrics, *, epochs=10, patience=2, loss=None, batches=None):
    """Fit one number that falls by 0.1 an epoch; returns the report, the model and the number at each validation."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 5.0)
    seen = []

    def validate():
        assert not model.training
        seen.append(model.weight.item())
        return metrics[len(seen) - 1]

    report = fit(
        model,
        batches or (lambda epoch: [(torch.ones(2, 1),)]),
        loss or (lambda part: model(part).sum()),
        validate,
        epochs=epochs,
        lr=0.1,
        weight_decay=0.0,
        patience=patience,
        label="test",
    )
    return report, model, seen


@pytest.mark.parametrize(
    ("metrics", "best_epoch", "epochs"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.9], 1, 4),  # stops before the better epoch: patience is 2
        ([0.1, 0.2, 0.2, 0.2], 1, 4),  # a tie is no improvement
        ([0.1, 0.3, 0.2, 0.4, 0.1, 0.1], 3, 6),
        ([0.0, 0.0, 0.0], 0, 3),
        ([-7.0, -5.0, -6.0, -8.0], 1, 4),  # a metric below zero, such as minus a loss
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 9, 10),
    ],
)
def test_the_best_epochs_weights_come_back(metrics, best_epoch, epochs):
    report, model, seen = run_fit(metrics)
    assert (report.best_epoch, report.epochs, report.best_metric) == (best_epoch, epochs, metrics[best_epoch])
    assert len(seen) == epochs and len(set(seen)) == epochs, "each epoch moved the weight"
    assert model.weight.item() == seen[best_epoch]
    assert report.seconds >= 0


def test_the_loss_falls_and_weights_move_with_its_gradient():
    _, _, seen = run_fit([0.1, 0.2, 0.3], epochs=3)
    assert seen == pytest.approx([4.9, 4.8, 4.7], abs=1e-4), "AdamW steps of lr against a constant gradient"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_step(bad):
    values = iter([1.0, 1.0, 1.0, 1.0, bad, 1.0])
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match=f"test: loss is {bad} at epoch 1, step 1"):
        run_fit(
            [0.1] * 5,
            batches=lambda epoch: (torch.tensor([[next(values)]]).split(1) for _ in range(3)),
            loss=lambda part: (part * weight).sum(),
        )


def test_batches_are_asked_for_once_an_epoch_and_train_in_train_mode():
    epochs = []

    def batches(epoch):
        epochs.append(epoch)
        return [(torch.ones(1, 1),)]

    run_fit([0.1, 0.2, 0.3], epochs=3, batches=batches)
    assert epochs == [0, 1, 2]


def world_examples(seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    sequences = Sequences.from_lists([rng.integers(40, size=n).tolist() for n in rng.integers(1, 25, size=30)])
    return Examples(np.arange(30), sequences.lengths_U - 1, sequences)


@pytest.mark.parametrize("seed", range(3))
def test_score_batches_hold_every_example_once(seed):
    examples, model = world_examples(seed), Scripted(40)
    rows_seen = []
    for rows, scores_BN in score_batches(model, examples, batch_size=7):
        rows_seen += rows.tolist()
        for row, scores_N in zip(rows, scores_BN, strict=True):
            np.testing.assert_array_equal(scores_N.numpy(), model.of(examples.history(row)))
        assert not scores_BN.requires_grad
    assert sorted(rows_seen) == list(range(30))
    for history_BT in model.asked:
        real_BT = history_BT > 0
        assert not (real_BT[:, 1:] & ~real_BT[:, :-1]).any(), "left-aligned"
        assert real_BT.any(0).all() or history_BT.shape[1] == 1, "trimmed to the longest"


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_full_ranks_are_the_brute_force_ones(seed, exclude_seen):
    examples, model = world_examples(seed), Scripted(40)
    rank_E = full_ranks(model, examples, exclude_seen, batch_size=7)
    for row, target in enumerate(examples.targets_E.tolist()):
        scores = model.of(examples.history(row))
        gone = examples.seen(row) - {target} if exclude_seen else set()
        rivals = [scores[item] for item in range(40) if item != target and item not in gone]
        expected = (
            sum(score > scores[target] for score in rivals) + sum(score == scores[target] for score in rivals) / 2
        )
        assert rank_E[row] == expected


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_top_lists_are_the_brute_force_sort(seed, exclude_seen):
    examples, model = world_examples(seed), Scripted(40)
    items_EK, scores_EK = top_lists(model, examples, 12, exclude_seen)
    assert items_EK.dtype == np.int32 and scores_EK.dtype == np.float32
    for row in range(len(examples)):
        scores = model.of(examples.history(row))
        left = [item for item in range(40) if not (exclude_seen and item in examples.seen(row))]
        expected = sorted(left, key=lambda item: (-scores[item], item))[:12]
        assert items_EK[row].tolist() == expected
        assert scores_EK[row].tolist() == scores[expected].tolist()


def test_ties_go_to_the_lower_id():
    examples, model = world_examples(0), Scripted(40, levels=1)
    items_EK, _ = top_lists(model, examples, 5, exclude_seen=False)
    assert (items_EK == np.arange(5)).all()


def test_a_list_longer_than_what_is_left_is_refused():
    sequences = Sequences.from_lists([[0, 1, 2, 3], [0, 0, 0, 0]])
    examples, model = Examples(np.arange(2), np.array([3, 3]), sequences), Scripted(5)
    assert top_lists(model, examples, 2, exclude_seen=True)[0].shape == (2, 2)
    with pytest.raises(ValueError, match="fewer than 3 unseen"):
        top_lists(model, examples, 3, exclude_seen=True)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"asked for {k} of 5"):
            top_lists(model, examples, k, exclude_seen=False)


def test_no_example_gives_an_empty_answer():
    split = make_split(Sequences.from_lists([[0, 1], [2, 3]]), "roles")
    model = Scripted(5)
    assert full_ranks(model, split.test, exclude_seen=True).shape == (0,)
    assert [part.shape for part in top_lists(model, split.test, 2, exclude_seen=True)] == [(0, 2), (0, 2)]


def test_metrics_are_means_inside_their_intervals():
    rank_E = np.random.default_rng(0).integers(0, 30, size=200).astype(float)
    metrics = ranking_metrics(rank_E, (5, 10))
    assert metrics["n"] == 200
    for k in (5, 10):
        assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg_at_k(rank_E, k).mean())
        assert metrics[f"recall@{k}"] == pytest.approx((rank_E < k).mean())
        for name in ("ndcg", "recall"):
            assert metrics[f"{name}@{k}_lo"] < metrics[f"{name}@{k}"] < metrics[f"{name}@{k}_hi"]
