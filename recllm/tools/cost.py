"""Deterministic cost of a call in floating point operations: 2 x parameters x tokens, plus attention.

A reward that contains a cost must be reproducible, so it never contains a wall time. Wall latency is measured besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LMCost:
    """FLOPs of a decoder-only language model.

    `matmul_parameters` counts the weights that every token is multiplied with, the head included once (it is
    evaluated for one position of a prompt, for each token of a completion) under `head_parameters`.
    """

    matmul_parameters: int
    head_parameters: int
    layers: int
    width: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> LMCost:
        config: PretrainedConfig = model.config
        head = model.get_output_embeddings().weight.numel()
        embedding = model.get_input_embeddings().weight.numel()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        body = sum(p.numel() for p in model.parameters()) - embedding - (0 if tied else head)
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(body, head, config.num_hidden_layers, heads * head_dim)

    def prefill(self, tokens: int) -> int:
        """A prompt of `tokens`, its head evaluated once."""
        return 2 * self.matmul_parameters * tokens + 2 * self.head_parameters + self._attention(tokens, tokens)

    def read(self, tokens: int, context: int) -> int:
        """`tokens` more tokens of input after a context of `context`, the head evaluated once at their end."""
        return self.decode(tokens, context) - 2 * self.head_parameters * max(0, tokens - 1)

    def decode(self, tokens: int, context: int) -> int:
        """`tokens` more tokens after a context of `context`, one by one with a cache, the head each time."""
        attended = tokens * context + tokens * (tokens + 1) // 2
        return 2 * (self.matmul_parameters + self.head_parameters) * tokens + 4 * self.layers * self.width * attended

    def beam(self, beams: int, levels: int, context: int) -> int:
        """A beam of `beams` over `levels` codes after the prompt: the first code is read off the prompt itself."""
        return beams * self.decode(levels - 1, context)

    def _attention(self, queries: int, keys: int) -> int:
        return 4 * self.layers * self.width * queries * (keys + 1) // 2
