"""Weights for the draw without replacement: by hand, and unbiased over many draws."""

import math

import numpy as np
import pytest
import torch

from recllm.recommender.inclusion import inclusion_weights, reweighted


def test_weights_by_hand():
    p, q = torch.tensor([[0.5, 0.2, 0.1]]), torch.tensor([[1.0, 0.5, 0.25]])
    # p / q = .5, .4, .4; over their sum 1.3, times 3.
    assert inclusion_weights(p.log(), q)[0].tolist() == pytest.approx([1.5 / 1.3, 1.2 / 1.3, 1.2 / 1.3])


def test_weights_have_mean_one_and_cannot_exceed_the_group():
    rng = np.random.default_rng(0)
    logp = torch.tensor(rng.normal(-20, 15, size=(50, 8))).float()
    logp[0] = torch.tensor([0.0] + [-300.0] * 7)
    weights = inclusion_weights(logp, torch.tensor(rng.uniform(1e-30, 1, size=(50, 8))).float())
    assert torch.isfinite(weights).all() and (weights >= 0).all() and (weights <= 8 + 1e-4).all()
    assert weights.mean(1).numpy() == pytest.approx(np.ones(50), abs=1e-5)


def test_a_draw_of_everything_weighs_by_the_model():
    p = torch.tensor([[0.7, 0.2, 0.1]])
    assert inclusion_weights(p.log(), torch.ones(1, 3))[0].tolist() == pytest.approx([2.1, 0.6, 0.3])


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1])
def test_no_probability_is_refused(q):
    with pytest.raises(ValueError, match="inclusion probabilities"):
        inclusion_weights(torch.zeros(1, 2), torch.tensor([[0.5, q]]))
    with pytest.raises(ValueError, match="log-probabilities"):
        inclusion_weights(torch.zeros(1, 2), torch.ones(2, 1))


def test_reweighted_by_hand():
    advantages, weights = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.5, 0.5]])
    # The weighted mean is (1.5 - .5) / 2 = .5.
    assert reweighted(advantages, weights)[0].tolist() == pytest.approx([0.75, -0.75])
    assert reweighted(advantages, torch.ones(1, 2))[0].tolist() == [1, -1]


def test_reweighting_replaces_the_draws_mean_by_the_weighted_one():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(6, 5, generator=generator)
    weights = torch.rand(6, 5, generator=generator)
    weights = weights / weights.mean(1, keepdim=True)
    std = rewards.std(1, keepdim=True)
    found = reweighted((rewards - rewards.mean(1, keepdim=True)) / std, weights)
    expected = weights * (rewards - (weights * rewards).mean(1, keepdim=True)) / std
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.sum(1).numpy() == pytest.approx(np.zeros(6), abs=1e-5)


def gumbel_top_k(p_N: np.ndarray, k: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn items `DK` and their inclusion probabilities given the threshold, straight from the definition."""
    noise_DN = -np.log(-np.log(np.random.default_rng(seed).random((draws, len(p_N))))) + np.log(p_N)
    order_DN = np.argsort(-noise_DN, axis=1)
    kappa_D1 = np.take_along_axis(noise_DN, order_DN[:, k : k + 1], axis=1)
    items_DK = order_DN[:, :k]
    return items_DK, 1 - np.exp(-np.exp(np.log(p_N)[items_DK] - kappa_D1))


def test_the_weighted_sum_is_unbiased_and_the_plain_mean_is_not():
    p = np.array([0.55, 0.2, 0.12, 0.08, 0.04, 0.01])
    f = np.array([0.0, 0.0, 1.0, 0.0, 3.0, -2.0])
    items, q = gumbel_top_k(p, 3, 200_000, seed=0)
    truth = float(p @ f)
    sums = (p[items] / q * f[items]).sum(1)
    error = sums.std() / math.sqrt(len(sums))
    assert abs(sums.mean() - truth) < 4 * error < 0.02
    assert abs(f[items].mean() - truth) > 0.1
    # Normalised, as the trainer uses them: little bias is left.
    weights = inclusion_weights(torch.tensor(np.log(p)[items]), torch.tensor(q)).numpy()
    assert abs((weights * f[items]).mean() - truth) < 0.06


def test_the_weighted_policy_gradient_points_where_the_true_one_does():
    """Over a softmax policy: the mean weighted gradient against the exact one, and the unweighted one far off."""
    p = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    f = np.array([0.2, 0.0, 1.0, 0.0, 0.5])
    items, q = gumbel_top_k(p, 4, 100_000, seed=1)
    exact = p * (f - p @ f)  # d E[f] / d logits
    score = np.eye(5)[items] - p  # d log p_i / d logits, (draws, 4, 5)
    centred = f[items] - f[items].mean(1, keepdims=True)
    weights = inclusion_weights(torch.tensor(np.log(p)[items]), torch.tensor(q))
    ours = reweighted(torch.tensor(centred), weights.double()).numpy()

    def cosine(advantages):
        mean = (advantages[:, :, None] * score).mean((0, 1))
        return float(mean @ exact / np.linalg.norm(mean) / np.linalg.norm(exact)), mean

    near, mean = cosine(ours)
    assert near > 0.99
    assert np.abs(mean - exact).max() < 0.03
    assert cosine(centred)[0] < near
