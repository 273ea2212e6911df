"""DIN: a candidate-aware ranker (Zhou et al., KDD 2018, arXiv 1706.06978), as TwiSTAR uses it over a retriever's list.

Each history item is weighted by a small network of [h, t, h - t, h * t] with the candidate t; the weighted history,
the candidate and dense features of the pair (retriever score, log rank, log popularity, category overlap) are scored
by an MLP. Like the paper the weights are not normalised to one: their sum says how strongly the history speaks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from recllm.backbones.base import matmul_parameters


class DIN(nn.Module, PyTorchModelHubMixin, library_name="recllm", tags=["ranking"]):
    """A ranker for `num_items` items and candidate lists of any length.

    Args:
        num_items: catalogue size N; item i has embedding row i + 1, row 0 is padding.
        num_features: dense features per candidate.
        embedding_dim, attention_hidden, max_len, dropout: the paper's widths (64, 36), history length and dropout.
    """

    def __init__(
        self,
        num_items: int,
        num_features: int,
        embedding_dim: int = 64,
        attention_hidden: int = 36,
        max_len: int = 20,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.num_items, self.num_features, self.max_len = num_items, num_features, max_len
        self.item_embedding = nn.Embedding(num_items + 1, embedding_dim, padding_idx=0)
        nn.init.normal_(self.item_embedding.weight, std=embedding_dim**-0.5)
        # The first layer on [h, t, h - t, h * t], taken apart: what depends on h or t alone is computed once for
        # each, not once for each pair, which leaves a quarter of the work and none of the concatenation.
        self.attend_history = nn.Linear(embedding_dim, attention_hidden)
        self.attend_target = nn.Linear(embedding_dim, attention_hidden, bias=False)
        self.attend_product = nn.Linear(embedding_dim, attention_hidden, bias=False)
        self.attend_out = nn.Sequential(nn.PReLU(), nn.Linear(attention_hidden, 1))
        self.feature_norm = nn.BatchNorm1d(num_features)
        self.mlp = nn.Sequential(
            nn.Linear(2 * embedding_dim + num_features, 64),
            nn.PReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, 16),
            nn.PReLU(),
            nn.Linear(16, 1),
        )

    def forward(self, history_BT: torch.Tensor, candidate_BM: torch.Tensor, feature_BMF: torch.Tensor) -> torch.Tensor:
        """Logits `BM` of candidates (item id + 1) given histories (item id + 1, 0 is padding, either alignment)."""
        history_BTD, target_BMD = self.item_embedding(history_BT), self.item_embedding(candidate_BM)
        hidden_BMTH = self.attend_history(history_BTD)[:, None] + self.attend_target(target_BMD)[:, :, None]
        scaled_BMHD = target_BMD[:, :, None] * self.attend_product.weight
        product_BMHT = torch.matmul(scaled_BMHD.flatten(1, 2), history_BTD.transpose(1, 2))
        product_BMHT = product_BMHT.view(*scaled_BMHD.shape[:3], -1)
        weight_BMT = self.attend_out(hidden_BMTH + product_BMHT.transpose(2, 3)).squeeze(-1)
        weight_BMT = weight_BMT.masked_fill((history_BT == 0)[:, None], 0.0)
        # Divided by a root of the length so that long histories do not saturate the MLP.
        length_B = (history_BT > 0).sum(1).clamp(min=1)
        user_BMD = torch.matmul(weight_BMT, history_BTD) / length_B.sqrt()[:, None, None]
        feature_BMF = self.feature_norm(feature_BMF.flatten(0, 1)).view_as(feature_BMF)
        return self.mlp(torch.cat([user_BMD, target_BMD, feature_BMF], -1)).squeeze(-1)

    def loss(
        self,
        history_BT: torch.Tensor,
        candidate_BM: torch.Tensor,
        feature_BMF: torch.Tensor,
        label_BM: torch.Tensor,
        listwise: bool = False,
    ) -> torch.Tensor:
        """Binary cross entropy over the candidates (the paper), or softmax cross entropy over each list."""
        logit_BM = self.forward(history_BT, candidate_BM, feature_BMF)
        if listwise:
            return F.cross_entropy(logit_BM, label_BM.long().argmax(1))
        return F.binary_cross_entropy_with_logits(logit_BM, label_BM.float())

    def flops(self, history_length: int, candidates: int) -> int:
        """Cost of one list: one product a (candidate, history item) pair, projections and MLP once each."""
        tokens = min(max(history_length, 1), self.max_len)
        width, hidden = self.attend_product.weight.shape[1], self.attend_product.weight.shape[0]
        projections = 2 * width * hidden * (tokens + 2 * candidates)
        pairs = candidates * tokens * (2 * width * hidden + 2 * hidden + 2 * width)
        return projections + pairs + 2 * matmul_parameters(self.mlp) * candidates
