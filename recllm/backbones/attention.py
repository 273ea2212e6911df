"""Parts that SASRec and HSTU share: how attention learns of places and times, and how states become a user vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

POSITIONS = ("learned", "relative_bias", "rope")
POOLINGS = ("last", "mean", "last_k_mean")
# Width of a time bucket in natural logarithms and their number, as published with HSTU; 69 of them reach 30 years.
TIME_BUCKET_WIDTH, NUM_TIME_BUCKETS = 0.301, 128


def parse_position(position: str) -> frozenset[str]:
    """The parts of a position option: `learned`, `relative_bias`, `rope`, several joined by +, or `none`.

    Raises:
        ValueError: an unknown part.
    """
    parts = frozenset() if position == "none" else frozenset(position.split("+"))
    if unknown := sorted(parts - set(POSITIONS)):
        raise ValueError(
            f"position {position!r}: {unknown[0]!r} is unknown; join {', '.join(POSITIONS)} with +, or none"
        )
    return parts


def causal_mask(length: int, device: torch.device) -> torch.Tensor:
    """True where place i may look at place j (j <= i), `TT`."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def output_vectors(model: nn.Module, items: torch.Tensor | None) -> torch.Tensor:
    """Output vectors of those items, or of all (`vectors_ND`, without the padding row), of length 1 under `l2_norm`."""
    table = model.output_embedding or model.item_embedding
    vectors = table.weight[1:] if items is None else table(items + 1)
    if model.fusion is not None and model.output_embedding is None:
        vectors = model.fusion(vectors, slice(1, None) if items is None else items + 1)
    return F.normalize(vectors, dim=-1) if model.l2_norm else vectors


def with_positions(model: nn.Module, x_BTD: torch.Tensor) -> torch.Tensor:
    """Item states with the model's learned positions, where it has some, added and dropout on them."""
    if model.position_embedding is not None:
        x_BTD = x_BTD + model.position_embedding(torch.arange(x_BTD.shape[1], device=x_BTD.device))
    return model.drop(x_BTD)


class RelativePositionBias(nn.Module):
    """A learned number for each head and each distance 0..max_len-1 back in the history."""

    def __init__(self, num_heads: int, max_len: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, max_len))

    def forward(self, length: int) -> torch.Tensor:
        """Bias `HTT` of place i looking at place j; what lies above the diagonal has no meaning."""
        place_T = torch.arange(length, device=self.weight.device)
        return self.weight[:, (place_T[:, None] - place_T[None, :]).clamp(min=0)]


class RelativeTimeBias(nn.Module):
    """A learned number for each bucket of the time between two events; buckets grow as the logarithm.

    The bucket of d seconds is floor(ln(max(d, 1)) / 0.301), at most 127. Source: HSTU, arXiv 2402.17152, section 3.3
    and its published code. There the query's time is that of the event to be predicted, which nobody knows before it
    happens; here it is the time of the query's own event.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_TIME_BUCKETS))

    def forward(self, bucket_BTT: torch.Tensor) -> torch.Tensor:
        """Bias `BTT` of the buckets that `time_buckets` gives."""
        return self.weight[bucket_BTT]


def time_buckets(time_BT: torch.Tensor) -> torch.Tensor:
    """Bucket `BTT` of the seconds that lie between places i and j of int64 timestamps.

    The edges are whole seconds, so that no rounding of a logarithm decides.
    """
    # Bucket b begins at the first whole second at or above e^(0.301 b).
    edges = [math.ceil(math.exp(TIME_BUCKET_WIDTH * bucket)) for bucket in range(1, NUM_TIME_BUCKETS)]
    edge_K = torch.tensor(edges, device=time_BT.device)
    gap_BTT = (time_BT[:, :, None] - time_BT[:, None, :]).abs()
    return torch.bucketize(gap_BTT, edge_K, right=True)


def rotate(x_BHTD: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864): pairs (d, d + D/2) turned by place x 10000^(-2d/D)."""
    length, width = x_BHTD.shape[-2:]
    half = width // 2
    turn_d = 10000.0 ** (-torch.arange(half, device=x_BHTD.device, dtype=x_BHTD.dtype) / half)
    angle_Td = torch.arange(length, device=x_BHTD.device, dtype=x_BHTD.dtype)[:, None] * turn_d
    cos_Td, sin_Td = angle_Td.cos(), angle_Td.sin()
    first, second = x_BHTD[..., :half], x_BHTD[..., half:]
    return torch.cat([first * cos_Td - second * sin_Td, first * sin_Td + second * cos_Td], -1)


def check_rope(position: frozenset[str], width: int, name: str) -> None:
    """Raise `ValueError` where a head's width cannot be cut into pairs."""
    if "rope" in position and width % 2:
        raise ValueError(f"position rope turns pairs: {name} {width} must be even")


def check_pooling(pooling: str, pool_k: int) -> None:
    """Raise `ValueError` for an unknown pooling or a mean over fewer than one state."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
    if pool_k < 1:
        raise ValueError(f"pool_k must be at least 1, got {pool_k}")


def pool(state_BTD: torch.Tensor, pooling: str, pool_k: int) -> torch.Tensor:
    """User states `BTD` at every place from the states up to it: the last one, the mean, or the last k's mean.

    Each place pools what lies before it, so training on all places stays causal.
    """
    if pooling == "last":
        return state_BTD
    reach = state_BTD.shape[1] if pooling == "mean" else min(pool_k, state_BTD.shape[1])
    place_T = torch.arange(state_BTD.shape[1], device=state_BTD.device)
    back_TT = place_T[:, None] - place_T[None, :]
    share_TT = ((back_TT >= 0) & (back_TT < reach)).to(state_BTD.dtype)
    return (share_TT / share_TT.sum(1, keepdim=True)) @ state_BTD
