"""TIGER: generate the semantic id of the next item (Rajput et al., NeurIPS 2023, arXiv 2305.05065).

An encoder reads the codes of the history, a decoder writes the codes of the target, p(sid | history) = prod_l
p(c_l | c_<l, history). Each level has embeddings of its own, tied to the output; a softmax runs over the codes of its
level. Optional user tokens come by hashing the user's id. Differs from the paper: RMSNorm and attention of
`recllm.backbones.t5`, and a beam that cannot leave the catalogue (`recllm.backbones.generate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from recllm.backbones.base import check_length, matmul_parameters
from recllm.backbones.generate import Writing, score_items
from recllm.backbones.t5 import Decoder, Encoder, Fuse, KeysValues, padding_bias
from recllm.data.histories import Prefixes
from recllm.sid.table import SidTable

PAD, BOS, FIRST_CODE = 0, 1, 2
# Knuth's multiplier spreads neighbouring ids over the user tokens.
_HASH, _HASH_RANGE = 2_654_435_761, 1 << 32


class Read(NamedTuple):
    """Histories after the encoder: each decoder layer's keys and values of them, and the bias that hides padding."""

    memory: list[KeysValues]
    bias: torch.Tensor


class TIGER(nn.Module, PyTorchModelHubMixin, library_name="recllm", tags=["generative-recommendation"]):
    """A generator of semantic ids; make one with `TIGER.of_table(table, ...)`.

    Args:
        num_items, level_sizes: what the SID table holds.
        max_len: longest history read, in items; longer ones keep their last items.
        hidden_dim, num_blocks, num_heads, head_dim, ffn_dim, dropout: widths and layers of encoder and of decoder.
        user_tokens: number of tokens that users are hashed to; 0 leaves users out.
    """

    start_token = BOS

    def __init__(
        self,
        num_items: int,
        level_sizes: Sequence[int],
        max_len: int = 20,
        hidden_dim: int = 128,
        num_blocks: int = 4,
        num_heads: int = 6,
        head_dim: int = 64,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        user_tokens: int = 0,
    ):
        super().__init__()
        self.num_items, self.level_sizes, self.max_len = num_items, tuple(level_sizes), max_len
        self.user_tokens = user_tokens
        # Plain numbers, so that a model on the meta device can be made, too.
        self.starts = [FIRST_CODE + sum(self.level_sizes[:level]) for level in range(len(self.level_sizes))]
        self.first_user = FIRST_CODE + sum(self.level_sizes)
        self.embedding = nn.Embedding(self.first_user + user_tokens, hidden_dim)
        shape = (num_blocks, hidden_dim, num_heads, head_dim, ffn_dim, dropout)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        # Row i holds the tokens of item i - 1; row 0 is padding.
        self.register_buffer("token_NL", torch.zeros(num_items + 1, len(self.level_sizes), dtype=torch.long))

    @classmethod
    def of_table(cls, table: SidTable, **options) -> TIGER:
        """A model with fresh weights that speaks the sids of `table`; the table may have any level sizes."""
        model = cls(len(table), list(table.level_sizes), **options)
        model.learn_table(table)
        return model

    def learn_table(self, table: SidTable) -> None:
        """Take the sids of the items from a table of this model's shape."""
        codes_NL = torch.tensor(table.codes_NL.tolist())
        self.token_NL[1:] = codes_NL + torch.tensor(self.starts)

    def level_tokens(self, level: int) -> torch.Tensor:
        """Token ids of all codes of a level, rising."""
        return self.starts[level] + torch.arange(self.level_sizes[level])

    def user_token(self, user_B: torch.Tensor) -> torch.Tensor:
        """Token ids that user ids are hashed to."""
        return self.first_user + (user_B * _HASH % _HASH_RANGE) * self.user_tokens // _HASH_RANGE

    def read(self, history_BT: torch.Tensor, user_B: torch.Tensor, front_BPD: torch.Tensor | None = None) -> Read:
        """Encode left-aligned histories (item + 1, 0 is padding), user ids in front, `front_BPD` before all.

        Raises:
            ValueError: a history longer than `max_len`.
        """
        check_length(history_BT, self.max_len)
        token_BS = self.token_NL[history_BT].flatten(1)
        if self.user_tokens:
            token_BS = torch.cat([self.user_token(user_B)[:, None], token_BS], 1)
        real_BS = token_BS != PAD
        # An empty history is one token of padding: attention to nothing has no value.
        real_BS = torch.cat([real_BS[:, :1] | ~real_BS.any(1, keepdim=True), real_BS[:, 1:]], 1)
        x_BSD = self.embedding(token_BS)
        if front_BPD is not None:
            x_BSD = torch.cat([front_BPD, x_BSD], 1)
            real_BS = F.pad(real_BS, (front_BPD.shape[1], 0), value=True)
        return Read(self.decoder.memory(self.encoder(x_BSD, real_BS)), padding_bias(real_BS))

    def write(
        self,
        token_BGS: torch.Tensor,
        read: Read,
        past: list[KeysValues] | None = None,
        fuses: Sequence[Fuse] | None = None,
    ) -> tuple[torch.Tensor, list[KeysValues]]:
        """Hidden states `BGSD` behind the tokens of G groups a history, scaled for the head, and the new past."""
        x_BGSD, past = self.decoder(self.embedding(token_BGS), read.memory, read.bias, past, fuses)
        return x_BGSD * x_BGSD.shape[-1] ** -0.5, past

    def head(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Logits over the codes of a level."""
        start = self.starts[level]
        return F.linear(hidden, self.embedding.weight[start : start + self.level_sizes[level]])

    def target_logits(
        self, read: Read, target_BG: torch.Tensor, fuses: Sequence[Fuse] | None = None
    ) -> list[torch.Tensor]:
        """Teacher-forced logits (B, G, codes) of each level for G items a history (item ids)."""
        token_BGL = self.token_NL[target_BG + 1]
        before_BGL = torch.cat([torch.full_like(token_BGL[..., :1], BOS), token_BGL[..., :-1]], -1)
        hidden_BGLD, _ = self.write(before_BGL, read, fuses=fuses)
        return [self.head(hidden_BGLD[:, :, level], level) for level in range(len(self.level_sizes))]

    def code_loss(self, logits: list[torch.Tensor], target_BG: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over all codes of all targets."""
        token_BGL = self.token_NL[target_BG + 1]
        losses = [
            F.cross_entropy(logits_BGC.flatten(0, 1), token_BGL[..., level].flatten() - self.starts[level])
            for level, logits_BGC in enumerate(logits)
        ]
        return torch.stack(losses).mean()

    def logits(self, history_BT: torch.Tensor, user_B: torch.Tensor, target_B: torch.Tensor) -> list[torch.Tensor]:
        """Teacher-forced logits (B, 1, codes) of each level of the targets (item ids), see `collate`."""
        return self.target_logits(self.read(history_BT, user_B), target_B[:, None])

    def loss(self, history_BT: torch.Tensor, user_B: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Cross entropy of the targets' codes after left-aligned histories."""
        return self.code_loss(self.logits(history_BT, user_B, target_B), target_B[:, None])

    def collate(self, histories: Prefixes) -> tuple[torch.Tensor, ...]:
        """A batch, the arguments of `logits` and `loss`: histories with their targets behind them."""
        history_BT = torch.from_numpy(histories.last(self.max_len).padded())
        return history_BT, torch.from_numpy(histories.user_B), torch.from_numpy(histories.targets_B)

    @torch.no_grad()
    def writing(self, histories: Prefixes) -> Writing:
        """Histories read and ready to be answered."""
        device = self.token_NL.device
        history_BT = torch.from_numpy(histories.last(self.max_len).padded()).to(device)
        return Writing(self, self.read(history_BT, torch.from_numpy(histories.user_B).to(device)))

    @torch.no_grad()
    def score(self, history_BT: torch.Tensor) -> torch.Tensor:
        """Log-probability of every item, `scores_BN`, after left-aligned histories of unknown users."""
        user_B = torch.zeros(len(history_BT), dtype=torch.long, device=history_BT.device)
        return score_items(Writing(self, self.read(history_BT, user_B)))

    def flops(self, history_length: int, beams: int = 20) -> int:
        """Cost of one answer: 2 x parameters x tokens plus attention, encoder once and decoder for each beam."""
        levels, width = len(self.level_sizes), self.embedding.embedding_dim
        tokens = min(max(history_length, 1), self.max_len) * levels + (self.user_tokens > 0)
        inner = self.encoder.layers[0].attention.query.out_features
        depth = len(self.encoder.layers)
        cross = sum(
            part.weight.numel() for layer in self.decoder.layers for part in (layer.cross.key, layer.cross.value)
        )
        written = 1 + (levels - 1) * beams
        reading = 2 * (matmul_parameters(self.encoder) + cross) * tokens + 4 * depth * tokens * tokens * inner
        writing = 2 * (matmul_parameters(self.decoder) - cross) + 4 * depth * (tokens + levels) * inner
        heads = 2 * width * (self.level_sizes[0] + beams * sum(self.level_sizes[1:]))
        return reading + writing * written + heads
