"""Losses over a catalogue: full softmax that never holds all logits, sampled softmax with logQ, and SASRec's own BCE.

The loss moves SASRec's Recall@10 by half again (Turning Dross Into Gold, RecSys 2023), so it is told apart from the
network here: a model gives user vectors at every place and item vectors for any items, an `Objective` does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

LOSSES = ("softmax", "bce")
PROPOSALS = ("uniform", "popularity")
# Logits held at once by the full softmax: 16 MiB of float32, about what a core's caches reach.
_CHUNK_LOGITS = 1 << 22


class Scorer(Protocol):
    """What an objective needs of a model."""

    num_items: int

    def __call__(self, history_BT: torch.Tensor, time_BT: torch.Tensor | None = None) -> torch.Tensor:
        """User vectors `BTD` at every place of left-aligned histories."""
        ...

    def item_vectors(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Output vectors of those items, or of all."""
        ...


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies, its gradients worked out chunk by chunk on the way forward.

    A plain softmax keeps M x N logits from forward to backward. Here a chunk's logits become its probabilities, these
    its share of both gradients, and are gone: three matrix products as before, none of them twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: torch.Tensor, vectors_ND: torch.Tensor, target_M: torch.Tensor, rows: int
    ) -> torch.Tensor:
        need_hidden, need_vectors = ctx.needs_input_grad[:2]
        hidden_grad_MD = torch.zeros_like(hidden_MD) if need_hidden else None
        vectors_grad_ND = torch.zeros_like(vectors_ND) if need_vectors else None
        total = hidden_MD.new_zeros(())
        for begin in range(0, len(hidden_MD), rows):
            part = slice(begin, begin + rows)
            hidden_mD, target_m1 = hidden_MD[part], target_M[part, None]
            logit_mN = hidden_mD @ vectors_ND.T
            log_sum_m1 = logit_mN.logsumexp(1, keepdim=True)
            total += (log_sum_m1 - logit_mN.gather(1, target_m1)).sum()
            if not (need_hidden or need_vectors):
                continue
            slope_mN = logit_mN.sub_(log_sum_m1).exp_()
            slope_mN.scatter_add_(1, target_m1, slope_mN.new_full(target_m1.shape, -1.0))
            if need_hidden:
                hidden_grad_MD[part] = slope_mN @ vectors_ND
            if need_vectors:
                vectors_grad_ND.addmm_(slope_mN.T, hidden_mD)
        ctx.save_for_backward(*(grad for grad in (hidden_grad_MD, vectors_grad_ND) if grad is not None))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        return *(saved.pop(0) * slope if need else None for need in ctx.needs_input_grad[:2]), None, None


def full_cross_entropy(
    hidden_MD: torch.Tensor, vectors_ND: torch.Tensor, target_M: torch.Tensor, chunk_rows: int | None = None
) -> torch.Tensor:
    """Mean cross entropy of M user vectors over all N items, with at most `chunk_rows` x N logits in memory at once.

    Value and gradients are those of `F.cross_entropy(hidden_MD @ vectors_ND.T, target_M)` up to rounding. NaN where M
    is 0, as there. `chunk_rows` is by default what fits in 16 MiB of float32.
    """
    rows = chunk_rows or max(_CHUNK_LOGITS // max(len(vectors_ND), 1), 1)
    return _ChunkedCrossEntropy.apply(hidden_MD, vectors_ND, target_M, rows) / len(target_M)


def sampled_cross_entropy(
    hidden_MD: torch.Tensor,
    target_M: torch.Tensor,
    target_MD: torch.Tensor,
    negative_S: torch.Tensor,
    negative_SD: torch.Tensor,
    log_expected_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy over the target and S negatives that the whole batch shares.

    Args:
        hidden_MD, target_M, target_MD: user vectors, target items and their vectors.
        negative_S, negative_SD: drawn items, with repeats, and their vectors. One that is a row's target is struck
            out of that row, or it would count twice.
        log_expected_S: log of how often each negative is expected among the S draws, log(S q). Subtracted from the
            negatives' logits, it makes the softmax's denominator unbiased: the drawn part then estimates the sum over
            all items but the target, which is there with certainty and so is not corrected (Bengio and Senecal 2008;
            arXiv 2507.09331 on the positive). Without it the loss is a softmax among the drawn items.
    """
    logit_MS = hidden_MD @ negative_SD.T
    if log_expected_S is not None:
        logit_MS = logit_MS - log_expected_S
    logit_MS = logit_MS.masked_fill(negative_S[None] == target_M[:, None], float("-inf"))
    positive_M = (hidden_MD * target_MD).sum(-1)
    return (torch.logsumexp(torch.cat([positive_M[:, None], logit_MS], 1), 1) - positive_M).mean()


def binary_cross_entropy(
    hidden_MD: torch.Tensor, target_MD: torch.Tensor, negative_MD: torch.Tensor, counts_M: torch.Tensor
) -> torch.Tensor:
    """SASRec's pairwise loss (arXiv 1808.09781, equation 6): mean of -log s(target) - log(1 - s(negative)).

    `counts_M` is false where the row's negative does not count because the user knows the item.
    """
    positive_M = F.softplus(-(hidden_MD * target_MD).sum(-1))
    negative_M = F.softplus((hidden_MD * negative_MD).sum(-1))
    return (positive_M + negative_M * counts_M).mean()


@dataclass
class Objective:
    """A training loss by name.

    Args:
        loss: `softmax`, over the whole catalogue or, with `num_negatives` > 0, over sampled items; or `bce` with one
            negative a place, drawn uniformly from the items that the window does not hold.
        num_negatives: negatives that a batch shares; 0 is the full softmax.
        proposal: draw negatives uniformly or by popularity (events of the fitting fold plus one).
        logq: correct for the proposal, see `sampled_cross_entropy`.
        events_N: events of each item in the fitting fold; needed for `popularity`.

    Raises:
        ValueError: an unknown name, a negative count, or options that do not go together.
    """

    loss: str = "softmax"
    num_negatives: int = 0
    proposal: str = "uniform"
    logq: bool = False
    events_N: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        if self.proposal not in PROPOSALS:
            raise ValueError(f"proposal {self.proposal!r} is unknown; choose one of {', '.join(PROPOSALS)}")
        if self.num_negatives < 0:
            raise ValueError(f"num_negatives must be at least 0, got {self.num_negatives}")
        if self.loss == "bce" and self.num_negatives > 1:
            raise ValueError(f"loss bce takes one negative, not num_negatives {self.num_negatives}")
        sampled = self.loss == "softmax" and self.num_negatives > 0
        if (self.logq or self.proposal != "uniform") and not sampled:
            raise ValueError("proposal and logq belong to the sampled softmax: set loss softmax and num_negatives")
        if self.proposal == "popularity" and self.events_N is None:
            raise ValueError("proposal popularity needs events_N, the events of each item in the fitting fold")

    def __call__(
        self,
        model: Scorer,
        history_BT: torch.Tensor,
        target_BT: torch.Tensor,
        time_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean loss over the places with a target (`target_BT` holds item id + 1, 0 is none)."""
        hidden_BTD = model(history_BT) if time_BT is None else model(history_BT, time_BT)
        hidden_MD, target_M = hidden_BTD[target_BT > 0], target_BT[target_BT > 0] - 1
        if self.loss == "bce":
            return self._bce(model, hidden_MD, target_M, history_BT, target_BT)
        if not self.num_negatives:
            return full_cross_entropy(hidden_MD, model.item_vectors(), target_M)
        negative_S, log_expected_S = self.draw(model.num_items, target_M.device)
        return sampled_cross_entropy(
            hidden_MD,
            target_M,
            model.item_vectors(target_M),
            negative_S,
            model.item_vectors(negative_S),
            log_expected_S if self.logq else None,
        )

    def draw(self, num_items: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`num_negatives` items drawn with repeats, `negative_S`, and the log of how often each was expected."""
        count = self.num_negatives
        if self.proposal == "uniform":
            negative_S = torch.randint(num_items, (count,), device=device)
            return negative_S, torch.log(torch.full((count,), count / num_items, device=device))
        weight_N = self.events_N.to(device).float() + 1.0
        negative_S = torch.multinomial(weight_N, count, replacement=True)
        return negative_S, torch.log(count * weight_N[negative_S] / weight_N.sum())

    def _bce(
        self,
        model: Scorer,
        hidden_MD: torch.Tensor,
        target_M: torch.Tensor,
        history_BT: torch.Tensor,
        target_BT: torch.Tensor,
    ) -> torch.Tensor:
        row_M = (target_BT > 0).nonzero()[:, 0]
        negative_M = torch.randint(model.num_items, target_M.shape, device=target_M.device)
        known_BT = torch.cat([history_BT, target_BT], 1)[row_M] - 1
        counts_M = (known_BT != negative_M[:, None]).all(1)
        return binary_cross_entropy(
            hidden_MD, model.item_vectors(target_M), model.item_vectors(negative_M), counts_M.to(hidden_MD.dtype)
        )
