"""How GLASS (arXiv 2602.05663) mixes what was retrieved into a decoder layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from recllm.backbones.t5 import Attention, KeysValues

Gate = Literal["code", "paper", "half"]
GATES = ("code", "paper", "half")


class Fusion(nn.Module):
    """One decoder layer's attention to what was retrieved, and the gate that mixes it in.

    `gate` is what the gate sees besides Z_r: the normed state (`code`), Z_s (`paper`), or nothing, g = 1/2 (`half`).
    """

    def __init__(self, width: int, heads: int, head_width: int, gate: Gate):
        super().__init__()
        self.kind, self.attention = gate, Attention(width, heads, head_width)
        self.gate = None if gate == "half" else nn.Linear(2 * width, width)

    def forward(
        self,
        normed_BGSD: torch.Tensor,
        read_BGSD: torch.Tensor,
        memory: KeysValues,
        bias_BGV: torch.Tensor,
        some_BG: torch.Tensor,
    ) -> torch.Tensor:
        """Z of the groups; `bias_BGV` weighs the vocabulary, `some_BG` tells groups that retrieved anything."""
        steps = normed_BGSD.shape[2]
        # One memory for all: rows, groups and steps are queries side by side.
        bias_MV = bias_BGV[:, :, None].expand(-1, -1, steps, -1).flatten(0, 2)
        found_BGSD = self.attention(normed_BGSD.flatten(0, 2)[None], memory, bias_MV[None, None]).view_as(normed_BGSD)
        if self.gate is None:
            gate_BGSD = torch.full_like(found_BGSD, 0.5)
        else:
            beside_BGSD = normed_BGSD if self.kind == "code" else read_BGSD
            gate_BGSD = torch.sigmoid(self.gate(torch.cat([beside_BGSD, found_BGSD], -1)))
        gate_BGSD = gate_BGSD * some_BG[:, :, None, None]
        return (1 - gate_BGSD) * read_BGSD + gate_BGSD * found_BGSD
