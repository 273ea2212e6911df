"""The arithmetic of the frequent methods, a piece of a tensor at a time, with the roundings of mergekit's.

mergekit computes whole tensors, with a temporary for every operation; here a piece stays in the processor's cache for
all of them. The operations, their order and the dtypes they round to are the same, so the results are.
Every kernel takes flat views of equal length and yields (slice, piece of the result in the compute dtype). The views
may be read-only pages, and a conversion to the dtype that they have is no copy: the first operation is never in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from recllm.merging.selection import Selection

PIECE = 1 << 17  # elements: three float32 temporaries of it stay in a level-two cache
_SUMMED = 1 << 20  # elements of a partial sum in SLERP, as in mergekit 0.1.5

Pieces = Iterator[tuple[slice, torch.Tensor]]


def pieces(count: int, size: int = PIECE) -> Iterator[slice]:
    """Slices that cover `count` elements."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def linear(parents: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool, dtype: torch.dtype) -> Pieces:
    """sum(weight x parent), over the weights' sum with `normalize`; accumulated in float32 at least."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    factors = torch.tensor(weights, dtype=work)
    total = factors.sum()
    for part in pieces(parents[0].numel()):
        result = parents[0][part].to(dtype).to(work) * factors[0]
        for parent, factor in zip(parents[1:], factors[1:], strict=True):
            result.addcmul_(parent[part].to(dtype).to(work), factor)
        if normalize and total != 1:
            result.div_(total)
        yield part, result.to(dtype)


def combine(
    first: torch.Tensor, second: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> Pieces:
    """factor x first + factor x second, in the factors' dtype: SLERP once its angle is known."""
    work = factors[0].dtype
    for part in pieces(first.numel()):
        result = first[part].to(dtype).to(work) * factors[0]
        yield part, result.add_(second[part].to(dtype).to(work) * factors[1]).to(dtype)


def slerp_cosine(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cosine between two tensors, each normalised first (or left alone where it is zero).

    Summed as mergekit sums: entries near zero cancel, and show the last bit of the factors that follow from this.
    """
    work = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = first.to(dtype).reshape(1, -1), second.to(dtype).reshape(1, -1)
    parts = list(pieces(a.shape[1], _SUMMED))

    def norm(x: torch.Tensor) -> torch.Tensor:
        whole = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(x[:, part].to(work), dim=1, keepdim=True) for part in parts]), dim=0
        )
        return torch.where(whole > 1e-8, whole, 1)

    norms = norm(a), norm(b)
    products = [(a[:, p].to(work) / norms[0]).mul_(b[:, p].to(work) / norms[1]).sum(dim=1, keepdim=True) for p in parts]
    return torch.stack(products).sum(dim=0).clamp(-1, 1).reshape(())


def slerp_factors(cosine: torch.Tensor, t: float, threshold: float = 0.9995) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of SLERP; linear interpolation where the tensors are nearly parallel or opposite."""
    share = torch.tensor(t, dtype=cosine.dtype)
    if cosine.abs() > threshold:
        return 1 - share, share
    angle = torch.acos(cosine)
    return torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)


@dataclass(frozen=True)
class TaskVector:
    """One parent of a task vector merge, flat.

    parent: its tensor, from which the base is taken; or `sparse`: its task vector with everything dropped already.
    selection: which entries of parent - base stay, or None for all.
    """

    parent: torch.Tensor | None
    weight: float
    selection: Selection | None = None
    sparse: torch.Tensor | None = None

    def piece(self, base: torch.Tensor, part: slice) -> torch.Tensor:
        """The piece of the sparsified task vector, a new tensor."""
        if self.sparse is not None:
            return self.sparse[part].clone()
        delta = self.parent[part].to(base.dtype) - base
        return delta if self.selection is None else self.selection.apply(delta, part)


def task_vectors(
    base: torch.Tensor, vectors: Sequence[TaskVector], elect: bool, normalize: bool, scale: float, dtype: torch.dtype
) -> Pieces:
    """base + scale x (sum of weighted task vectors), each entry over the weights that count with `normalize`.

    With `elect` (TIES) an entry counts where its sign is that of the weighted sum.
    """
    weights = torch.tensor([vector.weight for vector in vectors], dtype=dtype)
    divisor = weights.sum(dim=0)
    if divisor.abs() < 1e-8:
        divisor = torch.ones_like(divisor)
    for part in pieces(base.numel()):
        origin = base[part].to(dtype)
        deltas = [vector.piece(origin, part).mul_(weight) for vector, weight in zip(vectors, weights, strict=True)]
        if elect:
            mixed = _elect(deltas, weights, normalize)
        else:
            mixed = _total(deltas)
            if normalize:
                mixed /= divisor
        if scale != 1:
            mixed *= scale
        yield part, mixed.add_(origin)


def _total(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum, rounded once as a reduction is."""
    if len(deltas) == 1:
        return deltas[0].clone()
    return deltas[0] + deltas[1] if len(deltas) == 2 else torch.stack(list(deltas)).sum(dim=0)


def _elect(deltas: Sequence[torch.Tensor], weights: torch.Tensor, normalize: bool) -> torch.Tensor:
    """The sum of those entries that have the sign of the whole sum (plus where it is zero).

    Written in multiplications and clamps, which torch does 5 to 20 times faster than masks; every value is rounded as
    under masks, for a factor of one or minus one rounds nothing.
    """
    total = _total(deltas)
    sign = torch.copysign(torch.ones((), dtype=total.dtype), total)
    agreeing = [delta.mul_(sign).clamp_(min=0) for delta in deltas]
    mixed = _total(agreeing).mul_(sign)
    if normalize:
        divisor = _total([part.sign_().mul_(weight) for part, weight in zip(agreeing, weights, strict=True)])
        if (weights < 0).any():
            divisor.masked_fill_(divisor == 0, 1)
        elif weights.any():
            divisor.clamp_(min=float(weights[weights > 0].min()))  # nothing agrees: 0 over anything
        else:
            divisor.fill_(1)
        mixed.div_(divisor)
    return mixed


def low_rank_mix(
    direct: torch.Tensor, thinking: torch.Tensor, delta: torch.Tensor, t: float, dtype: torch.dtype
) -> Pieces:
    """LoRE: the parents' mean plus (2t - 1) times the low-rank half difference."""
    for part in pieces(direct.numel()):
        mean = (direct[part].to(dtype).to(delta.dtype) + thinking[part].to(dtype)).div_(2)
        yield part, mean.add_(delta[part] * (2 * t - 1)).to(dtype)


def selective(
    direct: torch.Tensor,
    thinking: torch.Tensor,
    chosen: Selection,
    t: float | None,
    outside: float,
    dtype: torch.dtype,
) -> Pieces:
    """Two mixes, one for the chosen entries and one for the others.

    Args:
        t: the strength among the chosen ones, None for the thinking parent itself.
        outside: the strength elsewhere; 0 is the direct parent itself.
    """
    work = torch.promote_types(dtype, torch.float32)
    for part in pieces(direct.numel()):
        a, b = direct[part].to(dtype), thinking[part].to(dtype)
        inside = b if t is None else (a.to(work) * (1 - t) + b.to(work) * t).to(dtype)
        other = a if outside == 0 else (a.to(work) * (1 - outside) + b.to(work) * outside).to(dtype)
        yield part, torch.where(chosen.mask(b - a, part), inside, other)
