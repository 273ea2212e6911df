"""The encoder and decoder of T5 (Raffel et al., JMLR 2020, arXiv 1910.10683), with the decoder in groups.

Pre-norm blocks with RMSNorm, no biases, ReLU, relative position buckets shared by all layers of a stack, and
attention that is not scaled: the initialisation takes that in. Differs from T5: dropout falls on what a sublayer adds,
on the hidden layer of its feed-forward part and on the embeddings, not on attention weights, so that attention stays
one fused call.

The decoder answers many questions about one history: x_BGSD holds G groups of S steps a row (beams, or the targets of
a training row). Steps see the earlier steps of their own group; all groups of a row read the same keys and values of
the encoder, which are worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

KeysValues = tuple[torch.Tensor, torch.Tensor]
# (normed state, what the history said), both BGSD -> what goes on: GLASS's fusion stands here.
Fuse = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def position_buckets(distance: torch.Tensor, both_ways: bool, buckets: int = 32, far: int = 128) -> torch.Tensor:
    """Bucket of each key position minus query position: single ones nearby, logarithmic ones up to `far`.

    `both_ways` gives keys after the query buckets of their own; otherwise they share bucket 0 (and are masked).
    """
    if both_ways:
        buckets //= 2
        side = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        side = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    scale = (buckets - exact) / math.log(far / exact)
    coarse = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
    return side + torch.where(distance < exact, distance, coarse.clamp(max=buckets - 1))


class PositionBias(nn.Module):
    """A learned number a head for each bucket of distance."""

    def __init__(self, heads: int, both_ways: bool, buckets: int = 32):
        super().__init__()
        self.both_ways, self.buckets = both_ways, buckets
        self.table = nn.Embedding(buckets, heads)

    def forward(self, query_S: torch.Tensor, key_T: torch.Tensor) -> torch.Tensor:
        """Biases `HST` for query and key positions."""
        bucket_ST = position_buckets(key_T[None] - query_S[:, None], self.both_ways, self.buckets)
        return self.table(bucket_ST).permute(2, 0, 1)


class Attention(nn.Module):
    """Attention in two halves, so that keys and values can be worked out once and read many times."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        nn.init.normal_(self.query.weight, std=(width * head_width) ** -0.5)
        nn.init.normal_(self.key.weight, std=width**-0.5)
        nn.init.normal_(self.value.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=(heads * head_width) ** -0.5)

    def _heads(self, x_BTF: torch.Tensor) -> torch.Tensor:
        return x_BTF.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, memory_BTD: torch.Tensor) -> KeysValues:
        """Keys and values `BHTd` of what will be read."""
        return self._heads(self.key(memory_BTD)), self._heads(self.value(memory_BTD))

    def forward(self, x_BSD: torch.Tensor, memory: KeysValues, bias: torch.Tensor | None) -> torch.Tensor:
        """What `x_BSD` reads from the memory; `bias` is added to the scores and broadcasts to `BHST`."""
        read_BHSd = F.scaled_dot_product_attention(self._heads(self.query(x_BSD)), *memory, attn_mask=bias, scale=1.0)
        return self.out(read_BHSd.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two products with a ReLU between them."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.up.weight, std=width**-0.5)
        nn.init.normal_(self.down.weight, std=hidden**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.drop(F.relu(self.up(x))))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm, self.attention = nn.RMSNorm(width, eps=1e-6), Attention(width, heads, head_width)
        self.last_norm, self.feed_forward = nn.RMSNorm(width, eps=1e-6), FeedForward(width, hidden, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor, bias_BHTT: torch.Tensor) -> torch.Tensor:
        normed_BTD = self.norm(x_BTD)
        x_BTD = x_BTD + self.drop(self.attention(normed_BTD, self.attention.keys_values(normed_BTD), bias_BHTT))
        return x_BTD + self.drop(self.feed_forward(self.last_norm(x_BTD)))


class DecoderLayer(nn.Module):
    """Self-attention within a group, attention to the row's history, feed-forward."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm, self.attention = nn.RMSNorm(width, eps=1e-6), Attention(width, heads, head_width)
        self.cross_norm, self.cross = nn.RMSNorm(width, eps=1e-6), Attention(width, heads, head_width)
        self.last_norm, self.feed_forward = nn.RMSNorm(width, eps=1e-6), FeedForward(width, hidden, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x_BGSD: torch.Tensor,
        bias_HSP: torch.Tensor,
        past: KeysValues | None,
        memory: KeysValues,
        memory_bias: torch.Tensor,
        fuse: Fuse | None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """The states after this layer, and the groups' keys and values so far (`(B G) H P d`)."""
        batch, groups, steps, _ = x_BGSD.shape
        normed_MSD = self.norm(x_BGSD).flatten(0, 1)
        now = self.attention.keys_values(normed_MSD)
        if past is not None:
            now = torch.cat([past[0], now[0]], 2), torch.cat([past[1], now[1]], 2)
        added_MSD = self.attention(normed_MSD, now, bias_HSP[None])
        x_BGSD = x_BGSD + self.drop(added_MSD.view_as(x_BGSD))
        normed_BGSD = self.cross_norm(x_BGSD)
        read_BQD = self.cross(normed_BGSD.reshape(batch, groups * steps, -1), memory, memory_bias)
        read_BGSD = read_BQD.view_as(x_BGSD)
        x_BGSD = x_BGSD + self.drop(read_BGSD if fuse is None else fuse(normed_BGSD, read_BGSD))
        return x_BGSD + self.drop(self.feed_forward(self.last_norm(x_BGSD))), now


class Encoder(nn.Module):
    """A stack of layers that look both ways."""

    def __init__(self, layers: int, width: int, heads: int, head_width: int, hidden: int, dropout: float):
        super().__init__()
        self.position = PositionBias(heads, both_ways=True)
        nn.init.normal_(self.position.table.weight, std=width**-0.5)
        shape = (width, heads, head_width, hidden, dropout)
        self.layers = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        self.norm, self.drop = nn.RMSNorm(width, eps=1e-6), nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
        """States `BTD`; `real_BT` tells the tokens from the padding."""
        place_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        bias_BHTT = self.position(place_T, place_T)[None] + padding_bias(real_BT)
        x_BTD = self.drop(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias_BHTT)
        return self.drop(self.norm(x_BTD))


class Decoder(nn.Module):
    """A stack of layers that look back, and read the history."""

    def __init__(self, layers: int, width: int, heads: int, head_width: int, hidden: int, dropout: float):
        super().__init__()
        self.position = PositionBias(heads, both_ways=False)
        nn.init.normal_(self.position.table.weight, std=width**-0.5)
        shape = (width, heads, head_width, hidden, dropout)
        self.layers = nn.ModuleList(DecoderLayer(*shape) for _ in range(layers))
        self.norm, self.drop = nn.RMSNorm(width, eps=1e-6), nn.Dropout(dropout)

    def memory(self, history_BTD: torch.Tensor) -> list[KeysValues]:
        """Keys and values of the encoder's states, for each layer."""
        return [layer.cross.keys_values(history_BTD) for layer in self.layers]

    def forward(
        self,
        x_BGSD: torch.Tensor,
        memory: Sequence[KeysValues],
        memory_bias: torch.Tensor,
        past: Sequence[KeysValues] | None = None,
        fuses: Sequence[Fuse] | None = None,
    ) -> tuple[torch.Tensor, list[KeysValues]]:
        """States `BGSD` of S steps that follow those in `past`, and the past of the steps after them."""
        steps, before = x_BGSD.shape[2], 0 if past is None else past[0][0].shape[2]
        place_P = torch.arange(before + steps, device=x_BGSD.device)
        bias_HSP = self.position(place_P[before:], place_P)
        bias_HSP = bias_HSP.masked_fill(place_P[None] > place_P[before:, None], float("-inf"))
        x_BGSD, known = self.drop(x_BGSD), []
        for depth, layer in enumerate(self.layers):
            before_layer = None if past is None else past[depth]
            fuse = None if fuses is None else fuses[depth]
            x_BGSD, now = layer(x_BGSD, bias_HSP, before_layer, memory[depth], memory_bias, fuse)
            known.append(now)
        return self.drop(self.norm(x_BGSD)), known


def padding_bias(real_BT: torch.Tensor) -> torch.Tensor:
    """0 at what is there and -inf at padding, `B11T`, float32."""
    bias_BT = torch.zeros(real_BT.shape, device=real_BT.device).masked_fill(~real_BT, float("-inf"))
    return bias_BT[:, None, None]
