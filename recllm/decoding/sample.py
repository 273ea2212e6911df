"""Drawing items from a language model's distribution over the catalogue, all of them valid, in one pass a prompt.

Without replacement: stochastic beam search (Kool, van Hoof and Welling 2019, arXiv 1903.06059). Every item's
log-probability gets Gumbel noise, the items with the largest sums are drawn, and the sums are built top-down: those of
a node's children are drawn so that their maximum is the node's own. The draw of G items costs no more than a beam of
G + 1, and no item comes twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from recllm.decoding.shared import Grown, Head, SharedPrompt, best_of_rows, grow, segment_logsumexp
from recllm.decoding.trie import ROOT, SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Samples(NamedTuple):
    """Items drawn after each of B prompts, K of them, in the order of the draw (the largest perturbed sum first).

    items_BK: item ids, int64. tokens_BKL: the tokens of their sids. logp_BKL: log-probability of each token among
    those that the trie allows there, at temperature 1. allowed_BKL: log of the whole vocabulary's probability that
    lies on the allowed tokens. inclusion_BK: the probability that an item is in the draw at all, given the threshold
    kappa that it had to pass, 1 - exp(-exp(log p - kappa)); ones where items are drawn independently.
    """

    items_BK: torch.Tensor
    tokens_BKL: torch.Tensor
    logp_BKL: torch.Tensor
    allowed_BKL: torch.Tensor
    inclusion_BK: torch.Tensor


@torch.no_grad()
def sample_items(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    count: int,
    *,
    temperature: float = 1.0,
    replacement: bool = False,
    generator: torch.Generator | None = None,
    with_mass: bool = True,
) -> Samples:
    """Draw `count` items after each prompt from the model's distribution over the trie at `temperature`.

    A draw is of sids; of several items behind one the first stands for it. `generator` lives on the CPU, so that a
    seed means the same on every device; without one torch's global one is used. Without `with_mass` the head is
    evaluated for the sids' tokens only, and `allowed_BKL` is NaN: with a large vocabulary most of a draw's time goes
    into that record.

    Raises:
        ValueError: fewer sids than `count` (without replacement), count or temperature not positive, sids of
            different lengths, or a model that cannot be used this way.
    """
    _check(trie, count, temperature, replacement)
    trie, head, batch = trie.to(model.device), Head(model), len(prompts)
    # One more than asked for: the first that is left out tells the threshold.
    width = count if replacement else count + 1
    shared = SharedPrompt(model, prompts, room=width * trie.depth)
    live = _Live.start(batch, model.device, _gumbel((batch, 1), model.device, generator))
    hidden_BKD, options = shared.hidden_B1D, {"temperature": temperature, "with_mass": with_mass}
    for level in range(trie.depth):
        rows = live.node_BK.shape[1]
        grown = grow(trie, level, hidden_BKD.flatten(0, 1), live.node_BK.flatten(), head, **options)
        if replacement:
            index_BK = _one_each(grown, batch, rows, width, generator)
            sum_BK = torch.zeros(index_BK.shape, device=model.device)
        else:
            noise_F = _gumbel(grown.logp_F.shape, model.device, generator)
            sum_BK, index_BK = best_of_rows(_perturbed(grown, noise_F, live), grown.row_F // rows, batch, width)
        live = live.grown(grown, index_BK, sum_BK, temperature)
        if level + 1 < trie.depth:
            hidden_BKD = shared.extend(grown.token_F[index_BK], live.parent_BK)
    return live.samples(trie, count, replacement)


def _check(trie: SidTrie, count: int, temperature: float, replacement: bool) -> None:
    leaves = int((trie.items_V >= 0).sum())
    if count < 1 or temperature <= 0:
        raise ValueError(f"count and temperature must be positive, got {count} and {temperature}")
    if not replacement and leaves < count:
        raise ValueError(f"{count} different items are asked for, and the catalogue has {leaves} sids")
    if not trie.is_even:
        raise ValueError("the trie holds sids of different lengths; a draw level by level needs equal ones")


class _Live(NamedTuple):
    """Partial sids: node, log-probability at the draw's temperature, perturbed sum, and what was recorded so far."""

    node_BK: torch.Tensor
    phi_BK: torch.Tensor
    sum_BK: torch.Tensor
    parent_BK: torch.Tensor
    tokens_BKL: torch.Tensor
    logp_BKL: torch.Tensor
    allowed_BKL: torch.Tensor

    @classmethod
    def start(cls, batch: int, device: torch.device, noise_B1: torch.Tensor) -> _Live:
        root_B1 = torch.full((batch, 1), ROOT, device=device)
        none_B10 = torch.zeros(batch, 1, 0, device=device)
        return cls(root_B1, torch.zeros_like(noise_B1), noise_B1, root_B1, none_B10.long(), none_B10, none_B10)

    def grown(self, grown: Grown, index_BK: torch.Tensor, sum_BK: torch.Tensor, temperature: float) -> _Live:
        rows = self.node_BK.shape[1]
        row_BK = grown.row_F[index_BK]
        parent_BK = row_BK % rows
        phi_BK = self.phi_BK.flatten()[row_BK] + grown.logp_F[index_BK]
        mass_R = grown.log_allowed_R
        logp_F = grown.logp_F
        if temperature != 1:  # back to the log-probabilities at temperature 1
            logit_F = grown.logp_F * temperature
            logp_F = logit_F - segment_logsumexp(logit_F, grown.row_F, self.node_BK.numel())[grown.row_F]

        def longer(record_BKL: torch.Tensor, new_BK: torch.Tensor) -> torch.Tensor:
            kept_BKL = record_BKL.gather(1, parent_BK[:, :, None].expand(-1, -1, record_BKL.shape[2]))
            return torch.cat([kept_BKL, new_BK[:, :, None]], 2)

        return _Live(
            grown.node_F[index_BK],
            phi_BK,
            sum_BK,
            parent_BK,
            longer(self.tokens_BKL, grown.token_F[index_BK]),
            longer(self.logp_BKL, logp_F[index_BK]),
            longer(self.allowed_BKL, phi_BK.new_full(phi_BK.shape, torch.nan) if mass_R is None else mass_R[row_BK]),
        )

    def samples(self, trie: SidTrie, count: int, replacement: bool) -> Samples:
        items_BK = trie.items_V[self.node_BK]
        inclusion_BK = torch.ones_like(self.phi_BK)
        if not replacement and self.sum_BK.shape[1] > count:
            # 1 - exp(-exp(x)), exact for small and large x alike; a threshold of -inf lets everything in.
            inclusion_BK = -torch.expm1(-(self.phi_BK - self.sum_BK[:, count:]).exp())
        parts = (items_BK, self.tokens_BKL, self.logp_BKL, self.allowed_BKL, inclusion_BK)
        return Samples(*(part[:, :count] for part in parts))


def _gumbel(shape: torch.Size | tuple[int, ...], device: torch.device, generator: torch.Generator | None):
    # -log of an exponential variate; drawn on the CPU. An exponential of 0 would be noise without end.
    exponential = torch.empty(shape).exponential_(generator=generator).clamp_min(torch.finfo(torch.float32).tiny)
    return -exponential.log().to(device)


def _perturbed(grown: Grown, noise_F: torch.Tensor, live: _Live) -> torch.Tensor:
    """Gumbel sums of the children, conditioned on their maximum being the parent's sum (appendix B of the paper)."""
    parent_R = live.sum_BK.flatten()
    free_F = live.phi_BK.flatten()[grown.row_F] + grown.logp_F + noise_F
    top_R = torch.full_like(parent_R, float("-inf")).scatter_reduce(0, grown.row_F, free_F, "amax")
    # -log(exp(-parent) - exp(-top) + exp(-free)), in the form that neither overflows nor cancels.
    gap_F = (free_F - top_R[grown.row_F]).clamp_max(0)
    v_F = parent_R[grown.row_F] - free_F + torch.log(-torch.expm1(gap_F))
    sum_F = parent_R[grown.row_F] - v_F.clamp_min(0) - torch.log1p(torch.exp(-v_F.abs()))
    # The child with the maximum is the parent's sum itself (log of zero above), and a dead parent's children are dead.
    sum_F = torch.where(gap_F == 0, parent_R[grown.row_F], sum_F)
    return torch.where(parent_R[grown.row_F].isneginf(), parent_R[grown.row_F], sum_F)


def _one_each(grown: Grown, batch: int, rows: int, width: int, generator: torch.Generator | None) -> torch.Tensor:
    """The places `BK` of one child for each partial sid, of `width` children for the root: independent draws."""
    draws = width if rows == 1 else 1
    noise_SF = _gumbel((draws, len(grown.logp_F)), grown.logp_F.device, generator)
    return torch.cat(
        [
            best_of_rows(grown.logp_F + noise_F, grown.row_F, batch * rows, 1)[1].view(batch, rows)
            for noise_F in noise_SF
        ],
        1,
    )
