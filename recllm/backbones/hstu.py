"""HSTU: attention without softmax, gated point by point, that knows distances and times (arXiv 2402.17152).

    U, V, Q, K = SiLU(f1(Norm(X)))
    A = SiLU(Q K^T + rab) / N          causal; rab: learned biases of distance and of log time
    Y = X + f2(Norm(A V) * U)

As in the published code, X is normalised on entry, N is the longest history (a constant, so a batch's width changes
nothing), learned positions are added to the items besides, and user and item vectors have length 1 under a temperature.
Differences: a query knows the time of its own event, not of the one to be predicted, and no attention is dropped by
default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from recllm.backbones.attention import (
    RelativePositionBias,
    RelativeTimeBias,
    causal_mask,
    check_pooling,
    check_rope,
    output_vectors,
    parse_position,
    pool,
    rotate,
    time_buckets,
    with_positions,
)
from recllm.backbones.base import at_last_position, check_length, matmul_parameters
from recllm.backbones.content import ContentFusion, item_states
from recllm.backbones.losses import Objective

# As published; the items' sum with positions is scaled back up by the root of the width.
_EMBEDDING_STD = 0.02


class HSTUBlock(nn.Module):
    """One layer; see the module. Shapes stay `BTD`.

    Args:
        linear_dim, attention_dim: widths of U and V, and of Q and K, for each head.
        attn_dropout: dropped entries of A; `dropout`: of the gated sum before f2.
        max_len: N. position: parts of the position option. time_bias: whether buckets of time are given.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        linear_dim: int,
        attention_dim: int,
        dropout: float,
        attn_dropout: float,
        max_len: int,
        position: frozenset[str],
        time_bias: bool,
    ):
        super().__init__()
        self.num_heads, self.max_len, self.rope = num_heads, max_len, "rope" in position
        self.widths = [linear_dim, linear_dim, attention_dim, attention_dim]
        self.in_norm = nn.LayerNorm(hidden_dim)
        self.uvqk = nn.Linear(hidden_dim, num_heads * sum(self.widths))
        self.out_norm = nn.LayerNorm(num_heads * linear_dim)
        self.out = nn.Linear(num_heads * linear_dim, hidden_dim)
        self.drop, self.attn_drop = nn.Dropout(dropout), nn.Dropout(attn_dropout)
        self.position_bias = RelativePositionBias(1, max_len) if "relative_bias" in position else None
        self.time_bias = RelativeTimeBias() if time_bias else None
        nn.init.normal_(self.uvqk.weight, std=_EMBEDDING_STD)
        nn.init.zeros_(self.uvqk.bias)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, x_BTD: torch.Tensor, bucket_BTT: torch.Tensor | None) -> torch.Tensor:
        batch, length, _ = x_BTD.shape
        mixed = F.silu(self.uvqk(self.in_norm(x_BTD))).view(batch, length, self.num_heads, -1).transpose(1, 2)
        gate, value, query, key = mixed.split(self.widths, -1)
        if self.rope:
            query, key = rotate(query), rotate(key)
        logit_BHTT = query @ key.transpose(-1, -2)
        if self.position_bias is not None:
            logit_BHTT = logit_BHTT + self.position_bias(length)
        if self.time_bias is not None:
            logit_BHTT = logit_BHTT + self.time_bias(bucket_BTT)[:, None]
        weight_BHTT = F.silu(logit_BHTT) / self.max_len * causal_mask(length, x_BTD.device)
        summed_BTE = (self.attn_drop(weight_BHTT) @ value).transpose(1, 2).reshape(batch, length, -1)
        gate_BTE = gate.transpose(1, 2).reshape(batch, length, -1)
        return x_BTD + self.out(self.drop(self.out_norm(summed_BTE) * gate_BTE))


class HSTU(nn.Module, PyTorchModelHubMixin, library_name="recllm", tags=["sequential-recommendation"]):
    """HSTU over a catalogue of `num_items` items.

    Args:
        num_items: catalogue size N; item i has embedding row i + 1, row 0 is padding.
        max_len: longest history looked at; longer ones keep their last items.
        hidden_dim, num_blocks, num_heads: width, layers and heads.
        linear_dim, attention_dim: widths of a head's U and V, and of its Q and K.
        dropout, attn_dropout: on the embeddings and the gated sum; on the attention weights.
        temperature, l2_norm: user and item vectors of length 1 (or as they are), their product over the temperature.
        tie_embeddings, pooling, pool_k, share_blocks, embedding_fusion, content_dim: as for `SASRec`.
        init_std: deviation of the embeddings at the start; None is 0.02.
        position: as for `SASRec`; `relative_bias` is one number for each distance, shared by the heads.
        time_bias: add the bias of the time between events; the model then needs `time_BT` wherever it is called.
    """

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        hidden_dim: int = 128,
        num_blocks: int = 1,
        num_heads: int = 1,
        linear_dim: int = 16,
        attention_dim: int = 16,
        dropout: float = 0.5,
        attn_dropout: float = 0.0,
        temperature: float = 0.05,
        l2_norm: bool = True,
        tie_embeddings: bool = True,
        position: str = "learned+relative_bias",
        time_bias: bool = False,
        pooling: str = "last",
        pool_k: int = 5,
        share_blocks: bool = False,
        embedding_fusion: str = "none",
        content_dim: int = 0,
        init_std: float | None = None,
    ):
        super().__init__()
        parts = parse_position(position)
        check_rope(parts, attention_dim, "attention_dim")
        check_pooling(pooling, pool_k)
        self.num_items, self.max_len, self.num_blocks, self.num_heads = num_items, max_len, num_blocks, num_heads
        self.linear_dim, self.attention_dim = linear_dim, attention_dim
        self.pooling, self.pool_k, self.l2_norm, self.temperature = pooling, pool_k, l2_norm, temperature
        self.uses_time = time_bias
        self.item_embedding = nn.Embedding(num_items + 1, hidden_dim, padding_idx=0)
        self.position_embedding = nn.Embedding(max_len, hidden_dim) if "learned" in parts else None
        self.fusion = ContentFusion.of(embedding_fusion, num_items, content_dim, hidden_dim)
        self.output_embedding = None if tie_embeddings else nn.Embedding(num_items + 1, hidden_dim, padding_idx=0)
        widths = (hidden_dim, num_heads, linear_dim, attention_dim, dropout, attn_dropout, max_len)
        built = 1 if share_blocks else num_blocks
        self.blocks = nn.ModuleList(HSTUBlock(*widths, parts, time_bias) for _ in range(built))
        self.drop = nn.Dropout(dropout)
        for table in (self.item_embedding, self.position_embedding, self.output_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=init_std or _EMBEDDING_STD)

    def item_vectors(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Output vectors of those items, or of all (`vectors_ND`, without the padding row)."""
        return output_vectors(self, items)

    def forward(self, history_BT: torch.Tensor, time_BT: torch.Tensor | None = None) -> torch.Tensor:
        """User vectors `BTD` at every place of left-aligned histories (item id + 1, 0 is padding), T <= max_len.

        Their product with an item's vector is the item's score. `time_BT` holds the events' int64 seconds; a model
        without the time bias ignores it.

        Raises:
            ValueError: a history is too long, or the model has the time bias and no times are given.
        """
        check_length(history_BT, self.max_len)
        if self.uses_time and time_BT is None:
            raise ValueError("this HSTU was made with time_bias and needs time_BT, the seconds of the history's events")
        x_BTD = item_states(self, history_BT) * self.item_embedding.embedding_dim**0.5
        x_BTD = with_positions(self, x_BTD)
        bucket_BTT = time_buckets(time_BT) if self.uses_time else None
        for depth in range(self.num_blocks):
            x_BTD = self.blocks[depth % len(self.blocks)](x_BTD, bucket_BTT)
        user_BTD = pool(x_BTD, self.pooling, self.pool_k)
        return (F.normalize(user_BTD, dim=-1) if self.l2_norm else user_BTD) / self.temperature

    def loss(
        self,
        history_BT: torch.Tensor,
        target_BT: torch.Tensor,
        num_negatives: int = 0,
        time_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean cross entropy over the positions with a target, as `SASRec.loss`."""
        return Objective(num_negatives=num_negatives)(self, history_BT, target_BT, time_BT)

    @torch.no_grad()
    def score(self, history_BT: torch.Tensor, time_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of every item, `scores_BN`, from the last position of each left-aligned history."""
        return at_last_position(self(history_BT, time_BT), history_BT) @ self.item_vectors().T

    def flops(self, history_length: int) -> int:
        """Cost of one query: 2 x parameters x tokens + attention, and one product with the item table."""
        tokens = min(max(history_length, 1), self.max_len)
        attention = 2 * self.num_blocks * tokens * tokens * self.num_heads * (self.linear_dim + self.attention_dim)
        layers = 2 * matmul_parameters(self.blocks) * tokens * self.num_blocks // max(len(self.blocks), 1)
        return layers + attention + 2 * self.num_items * self.item_embedding.embedding_dim
