"""Weights that make a draw without replacement speak for the model's own distribution.

A draw of K of N items without replacement (Gumbel top-k) holds likely items less often than their share of independent
draws, and unlikely ones more often. With kappa the (K+1)-th largest perturbed log-probability, item i is in the draw
with probability q_i = 1 - exp(-exp(log p_i - kappa)), and sum over the draw of (p_i / q_i) f(i) has the expectation
E_p[f] (Horvitz-Thompson; Kool et al. 2019, arXiv 1903.06059, section 4.2, and 2020, arXiv 2002.06043).
"""

from __future__ import annotations

import torch


def inclusion_weights(logp_GK: torch.Tensor, inclusion_GK: torch.Tensor) -> torch.Tensor:
    """w_i = K (p_i / q_i) / sum_j (p_j / q_j), float32 (groups, K): mean 1, within 0..K.

    `logp_GK` is log p of each drawn item, `inclusion_GK` its q in (0, 1]. Normalising trades the estimator's
    unbiasedness for a bound: one item can at most take the whole group's weight.

    Raises:
        ValueError: shapes that differ, or a q outside (0, 1].
    """
    if logp_GK.shape != inclusion_GK.shape:
        raise ValueError(f"log-probabilities {tuple(logp_GK.shape)}, inclusion {tuple(inclusion_GK.shape)}")
    if bool(((inclusion_GK <= 0) | (inclusion_GK > 1)).any()):
        raise ValueError(f"inclusion probabilities lie in (0, 1], found {float(inclusion_GK.min())} to "
                         f"{float(inclusion_GK.max())}")  # fmt: skip
    return (logp_GK.double() - inclusion_GK.double().log()).softmax(1).float() * logp_GK.shape[1]


def reweighted(advantages_GK: torch.Tensor, weights_GK: torch.Tensor) -> torch.Tensor:
    """w_i (A_i - mean_j w_j A_j): weighted advantages whose sum over each group is 0 again.

    GRPO's advantage is (r_i - mean r) / std r. Subtracting the weighted mean turns the plain mean of the rewards, which
    is that of the draw, into the weighted one, which estimates the model's own; the standard deviation only scales. The
    zero sum is what cancels, at the first token, the gradient of the probability mass outside the trie.
    """
    return weights_GK * (advantages_GK - (weights_GK * advantages_GK).mean(1, keepdim=True))
