"""GLASS: TIGER that reaches into a long history by the first code it generates (arXiv 2602.05663).

The encoder reads the short part, the last events. What came before enters by parts, each a switch; with all of them
off nothing is left but the `TIGER` inside, bit for bit.

1. SID-Tier: cosines of the long part's items with the prototypes of the first-level codes, counted in tiers, normalised
   and put through an MLP, are one token in front of the encoder. It serves the first code.
2. Semantic hard search: after the first code c_0, H_ret = {codes(v): v in the long part, c_0(v) = c_0}, the latest
   `retrieved` of them. Teacher-forced in training; each beam reads that of its own code.
3. Their embeddings are the shared ones behind a stop-gradient and a projector; each decoder layer reads them by an
   attention of its own, Z_r, and mixes: Z = (1 - g) Z_s + g Z_r, g = sigmoid(W [Z_s; Z_r]) as in the paper or
   sigmoid(W [x_norm; Z_r]) as in its code, and 0 at the first code.
4. Semantic neighbours: where fewer than `threshold` items are found, those of the nearest first-level codes fill up.
5. Codebook resizing is a matter of the SID table: level sizes may be any, [64, 128, 128] beside [128, 128, 128].

Retrieved codes carry no position, so attention to them is attention to a bag: keys and values are worked out once for
each code of the vocabulary instead of each retrieved token, and the logarithm of how often a code occurs is added to
its score. That equals attention over the list of codes and does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from recllm.backbones.generate import Writing, score_items
from recllm.backbones.glass_fusion import GATES, Fusion, Gate
from recllm.backbones.glass_tier import centred, nearest_codes, prototypes, tiers_of
from recllm.backbones.t5 import Fuse, KeysValues
from recllm.backbones.tiger import FIRST_CODE, TIGER, Read
from recllm.data.histories import Prefixes
from recllm.data.long_history import HardSearch, LongHistory, Tiers
from recllm.sid.table import SidTable


class GLASS(nn.Module, PyTorchModelHubMixin, library_name="recllm", tags=["generative-recommendation"]):
    """A generator of semantic ids with a long memory; make one with `GLASS.of_table(table, vectors, ...)`.

    Args:
        num_items, level_sizes, hidden_dim, num_blocks, num_heads, head_dim, ffn_dim, dropout, user_tokens: TIGER's.
        short_len: events that the encoder reads.
        max_len: events that `score` takes; `writing` takes any number.
        tier, retrieval: parts 1, and 2 with 3.
        gate: `code`, `paper`, or `half` (not adaptive).
        retrieved: items that hard search returns at most.
        neighbours, threshold: k and tau of part 4; either 0 is off.

    Raises:
        ValueError: an unknown gate, or a threshold above `retrieved`.
    """

    def __init__(
        self,
        num_items: int,
        level_sizes: Sequence[int],
        short_len: int = 50,
        max_len: int = 1050,
        hidden_dim: int = 96,
        num_blocks: int = 4,
        num_heads: int = 6,
        head_dim: int = 32,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        user_tokens: int = 0,
        tier: bool = True,
        retrieval: bool = True,
        gate: Gate = "code",
        retrieved: int = 30,
        neighbours: int = 3,
        threshold: int = 5,
        tiers: int = 4,
    ):
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}; got {gate!r}")
        self.num_items, self.short_len, self.max_len = num_items, short_len, max_len
        self.retrieved, self.threshold, self.num_tiers = retrieved, threshold, tiers
        shape = (hidden_dim, num_blocks, num_heads, head_dim, ffn_dim, dropout)
        # TIGER comes first, so that equal seeds give equal weights with parts and without.
        self.tiger = TIGER(num_items, level_sizes, short_len, *shape, user_tokens)
        self.tier_mlp, self.fusions = None, None
        codes = self.tiger.level_sizes[0]
        neighbours = neighbours if retrieval and threshold else 0
        self.register_buffer("neighbour_KJ", torch.zeros(codes, neighbours, dtype=torch.long))
        if tier:
            self.register_buffer("tier_NK", torch.zeros(num_items, codes, dtype=torch.uint8))
            layers = (nn.Linear(codes * tiers, hidden_dim), nn.ReLU(), nn.Dropout(dropout))
            self.tier_mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, hidden_dim))
        if retrieval:
            self.projector = nn.Linear(hidden_dim, hidden_dim)
            self.fusions = nn.ModuleList(Fusion(hidden_dim, num_heads, head_dim, gate) for _ in range(num_blocks))
            HardSearch(np.zeros(0, dtype=np.int32), retrieved, np.zeros((codes, 0), dtype=np.int64), threshold)

    @classmethod
    def of_table(cls, table: SidTable, vectors_ND: np.ndarray | None = None, **options) -> GLASS:
        """A model with fresh weights that speaks the sids of `table`; tiers and neighbours come from item vectors.

        The vectors' mean is taken off first, which the paper does not do, see `centred`.

        Raises:
            ValueError: no vectors for a part that needs them, or more neighbours than other codes in use.
        """
        model = cls(len(table), list(table.level_sizes), **options)
        model.tiger.learn_table(table)
        neighbours = model.neighbour_KJ.shape[1]
        if model.tier_mlp is None and not neighbours:
            return model
        if vectors_ND is None:
            raise ValueError("SID-Tier and semantic neighbours need the item vectors that the SID table was made from")
        code_N = table.codes_NL[:, 0]
        vectors_ND = centred(vectors_ND)
        prototype_KD = prototypes(vectors_ND, code_N, table.level_sizes[0])
        if neighbours:
            model.neighbour_KJ.copy_(torch.from_numpy(nearest_codes(prototype_KD, code_N, neighbours)))
        if model.tier_mlp is not None:
            tiers = tiers_of(vectors_ND, prototype_KD)
            if tiers.count != model.num_tiers:
                raise ValueError(f"cosines fall into {tiers.count} tiers, the model has {model.num_tiers}")
            model.tier_NK.copy_(torch.from_numpy(tiers.tier_NK))
        return model

    @property
    def token_NL(self) -> torch.Tensor:
        """TIGER's tokens of every item."""
        return self.tiger.token_NL

    @property
    def starts(self) -> list[int]:
        """TIGER's first token of every level."""
        return self.tiger.starts

    @property
    def code_N(self) -> np.ndarray:
        """First code of every item."""
        return (self.token_NL[1:, 0] - FIRST_CODE).cpu().numpy()

    @property
    def tiers(self) -> Tiers | None:
        """What SID-Tier counts, where it is on."""
        return None if self.tier_mlp is None else Tiers(self.tier_NK.cpu().numpy(), self.num_tiers)

    @property
    def search(self) -> HardSearch:
        """Hard search with this model's neighbours."""
        return HardSearch(self.code_N, self.retrieved, self.neighbour_KJ.cpu().numpy(), self.threshold)

    def front(self, tier_BX: torch.Tensor) -> torch.Tensor | None:
        """SID-Tier's token `B1D` from normalised counts, or None where it is off."""
        return None if self.tier_mlp is None else self.tier_mlp(tier_BX)[:, None]

    def fuses(self, items_BGn: torch.Tensor, first_closed: bool) -> list[Fuse] | None:
        """Every decoder layer's fusion with the retrieved items (ids, -1 fills) of each group.

        `first_closed`: the states begin with the first code's step, which nothing retrieved may reach.
        """
        if self.fusions is None:
            return None
        token_BGM = self.token_NL[items_BGn + 1].flatten(2)
        vocabulary = self.tiger.first_user
        count_BGV = token_BGM.new_zeros(*token_BGM.shape[:2], vocabulary).scatter_add_(
            2, token_BGM, torch.ones_like(token_BGM)
        )[..., FIRST_CODE:]
        some_BG = (count_BGV.sum(-1) > 0).float()
        # A bag without anything in it is read as if all were there, and then closed out.
        bias_BGV = count_BGV.float().log().masked_fill(some_BG[..., None] == 0, 0.0)
        shared_VD = self.tiger.embedding.weight[FIRST_CODE:vocabulary].detach()
        memory_1VD = self.projector(shared_VD)[None]

        def fuse(fusion: Fusion, memory: KeysValues, normed_BGSD: torch.Tensor, read_BGSD: torch.Tensor):
            opened = slice(1 if first_closed else 0, None)
            later = fusion(normed_BGSD[:, :, opened], read_BGSD[:, :, opened], memory, bias_BGV, some_BG)
            return torch.cat([read_BGSD[:, :, :1], later], 2) if first_closed else later

        return [partial(fuse, part, part.attention.keys_values(memory_1VD)) for part in self.fusions]

    def logits(
        self,
        history_BT: torch.Tensor,
        user_B: torch.Tensor,
        target_B: torch.Tensor,
        tier_BX: torch.Tensor,
        items_Bn: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Teacher-forced logits of each level; `items_Bn` are what the target's own first code retrieves."""
        read = self.tiger.read(history_BT, user_B, self.front(tier_BX))
        return self.tiger.target_logits(read, target_B[:, None], self.fuses(items_Bn[:, None], True))

    def loss(self, history_BT: torch.Tensor, user_B: torch.Tensor, target_B: torch.Tensor, *parts: torch.Tensor):
        """Cross entropy of the targets' codes; the arguments are those of `logits`."""
        return self.tiger.code_loss(self.logits(history_BT, user_B, target_B, *parts), target_B[:, None])

    def collate(self, histories: Prefixes) -> tuple[torch.Tensor, ...]:
        """A batch, the arguments of `logits` and `loss`: histories with their targets behind them."""
        long, rows = histories.before_last(self.short_len), len(histories)
        tier_BX, items_Bn = np.zeros((rows, 0), dtype=np.float32), np.full((rows, 1), -1)
        if self.tier_mlp is not None:
            tier_BX = normalised(self.tiers.histograms(*long.flat(), rows), long.length_B)
        if self.fusions is not None:
            items_Bn = self.search.scan(long, self.code_N[histories.targets_B])
        short = self.tiger.collate(histories)
        return *short, torch.from_numpy(tier_BX), torch.from_numpy(items_Bn)

    @torch.no_grad()
    def writing(self, histories: Prefixes) -> Writing:
        """Histories read and ready to be answered, their long parts by an index of their own."""
        codes = self.tiger.level_sizes[0]
        index = LongHistory(histories, self.code_N, codes, self.short_len, self.tiers)
        return self.answer(index, np.arange(len(histories)), histories.user_B)

    @torch.no_grad()
    def answer(self, index: LongHistory, row_B: np.ndarray, user_B: np.ndarray) -> Writing:
        """Rows of a kept index ready to be answered: the cost does not depend on the length of their histories."""
        device, tier_BX = self.token_NL.device, np.zeros((len(row_B), 0), dtype=np.float32)
        if self.tier_mlp is not None:
            counts_BKT = index.counts_UKT[row_B]
            tier_BX = normalised(counts_BKT, counts_BKT[:, 0].sum(-1))
        short = Prefixes.of_lists([index.recent(row) for row in row_B.tolist()])
        history_BT = torch.from_numpy(short.padded()).to(device)
        front = self.front(torch.from_numpy(tier_BX).to(device))
        read: Read = self.tiger.read(history_BT, torch.from_numpy(user_B).to(device), front)
        return Writing(self.tiger, read, None if self.fusions is None else _PerBeam(self, index, row_B))

    @torch.no_grad()
    def score(self, history_BT: torch.Tensor) -> torch.Tensor:
        """Log-probability of every item, `scores_BN`, after left-aligned histories of unknown users."""
        rows = history_BT.cpu().numpy()
        histories = Prefixes.of_lists([row_T[row_T > 0] - 1 for row_T in rows])
        histories.user_B[:] = 0
        return score_items(self.writing(histories))

    def flops(self, history_length: int, beams: int = 20) -> int:
        """TIGER's cost on the short part, and that of the parts: it does not grow with the long part."""
        cost = self.tiger.flops(history_length, beams)
        if self.tier_mlp is not None:
            cost += 2 * sum(part.weight.numel() for part in self.tier_mlp if isinstance(part, nn.Linear))
        if self.fusions is not None:
            width, steps = self.projector.out_features, beams * (len(self.tiger.level_sizes) - 1)
            inner, codes = self.fusions[0].attention.query.out_features, self.tiger.first_user - FIRST_CODE
            gate = 0 if self.fusions[0].gate is None else 2 * width * width
            each = steps * (2 * inner * width + gate + 2 * codes * inner) + codes * 2 * width * inner
            cost += 2 * (len(self.fusions) * each + codes * width * width)
        return cost


class _PerBeam:
    """The fusions of each step of a beam search: looked up by each beam's own first code, then carried along."""

    def __init__(self, model: GLASS, index: LongHistory, row_B: np.ndarray):
        self.model, self.index, self.row_B, self.search, self.items_BKn = model, index, row_B, model.search, None

    def __call__(self, depth: int, token_BK: torch.Tensor, parent_BK: torch.Tensor) -> list[Fuse]:
        if depth == 1:
            code_BK = (token_BK - FIRST_CODE).cpu().numpy()
            row_M = np.repeat(self.row_B, code_BK.shape[1])
            items_Mn = torch.from_numpy(self.search.ask(self.index, row_M, code_BK.reshape(-1)))
            self.items_BKn = items_Mn.view(*code_BK.shape, -1).to(token_BK.device)
        else:
            place_BKn = parent_BK[:, :, None].expand(-1, -1, self.items_BKn.shape[2])
            self.items_BKn = self.items_BKn.gather(1, place_BKn)
        return self.model.fuses(self.items_BKn, first_closed=False)


def normalised(counts_BKT: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    """Counts over the length of the long part, flat, float32 (B, codes x tiers); zeros where it is empty."""
    return (counts_BKT / np.maximum(length_B, 1)[:, None, None]).reshape(len(counts_BKT), -1).astype(np.float32)
