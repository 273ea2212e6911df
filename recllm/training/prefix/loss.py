"""Log-probabilities of GRPO's completions with every prompt read once: TRL's method on packed sequences.

The fused head is TRL's own, so temperature, soft caps and memory are as there, but it scores the completions alone: the
head is the dearest matrix of a small model, and a prompt needs none of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel

from recllm.decoding.shared import limited_attention
from recllm.training.models import base_of
from recllm.training.prefix.packing import Packed, assign, chunks, group_rows, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import GRPOTrainer

_ATTENTION = ("sdpa", "eager", "flex_attention")
# A pair of places costs attention 4 x width FLOPs a layer, a token twice the layer's weights, about 12 x width squared
# (methods of counting: arXiv 2001.08361, 2.1), so dense attention over T places costs T / (6 x width) of the rest.
_DENSE = 6


@dataclass(frozen=True)
class Batch:
    """The arguments of TRL's method, cut into prompts and completions."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion: int

    @property
    def prompt_RP(self) -> torch.Tensor:
        return self.input_ids[:, : -self.completion]

    @property
    def prompt_mask_RP(self) -> torch.Tensor:
        return self.attention_mask[:, : -self.completion]

    @property
    def completion_RC(self) -> torch.Tensor:
        return self.input_ids[:, -self.completion :]

    @property
    def completion_mask_RC(self) -> torch.Tensor:
        return self.attention_mask[:, -self.completion :]

    def unsupported(self) -> str | None:
        """Why the rows cannot be packed to any gain, or None."""
        if (self.completion_mask_RC.diff(dim=1) > 0).any() or not self.prompt_mask_RP[:, -1:].all():
            return "a prompt is empty, or a completion has masked tokens before its end"
        return None


def unsupported(model: torch.nn.Module, options: dict[str, Any], length: int) -> str | None:
    """Why the model, rows of `length` tokens or TRL's options need TRL's own forward, or None."""
    config = extract_model_from_parallel(model).config.get_text_config()
    if config._attn_implementation not in _ATTENTION:
        return f"attention {config._attn_implementation!r} takes no block mask (sdpa, eager and flex_attention do)"
    if limit := limited_attention(config, length):
        return limit
    if options.get("compute_aux_loss") or getattr(config, "output_router_logits", False):
        return "the balance loss of experts counts tokens a row"
    if any(value is not None for name, value in options.items() if not name.startswith("compute_")):
        return "the batch holds more than tokens, such as images"
    return None


def packed_logps(
    trainer: GRPOTrainer, model: torch.nn.Module, batch: Batch, batch_size: int | None, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None, None]:
    """What TRL's `_get_per_token_logps_and_entropies` returns: log-probabilities and entropies `RC`, and no third.

    At most `batch_size` completions go through the model at a time, whole packed sequences of them.
    """
    rows = len(batch.input_ids)
    group_R = group_rows(batch.prompt_RP, batch.prompt_mask_RP)
    width = extract_model_from_parallel(model).config.get_text_config().hidden_size
    prompt, completion = (int(mask.sum()) / rows for mask in (batch.prompt_mask_RP, batch.completion_mask_RC))
    sequence_R = assign(group_R, per_sequence(prompt, completion, int(torch.bincount(group_R).max()), width))
    logps_RC = batch.completion_RC.new_zeros(batch.completion_RC.shape, dtype=torch.float32)
    entropy_RC = torch.zeros_like(logps_RC) if entropy else None
    for chosen_R in chunks(sequence_R, batch_size or rows):
        packed = pack(
            batch.prompt_RP[chosen_R],
            batch.prompt_mask_RP[chosen_R],
            batch.completion_RC[chosen_R],
            batch.completion_mask_RC[chosen_R],
            torch.unique(sequence_R[chosen_R], return_inverse=True)[1],
        )
        with trainer.accelerator.autocast():
            logps, entropies = _forward(model, packed, entropy)
        logps_RC = logps_RC.index_copy(0, chosen_R, logps)
        if entropy:
            entropy_RC = entropy_RC.index_copy(0, chosen_R, entropies)
    return logps_RC, entropy_RC, None


def per_sequence(prompt: float, completion: float, group: int, width: int) -> int:
    """How many of a group's completions are to share a packed sequence: the number with the fewest FLOPs.

    `prompt` and `completion` are mean lengths in tokens, `width` is the model's. Attention under a dense mask pays for
    every pair of places, so long completions part into several sequences.
    """

    def cost(count: int) -> float:
        places = prompt + count * completion
        return math.ceil(group / count) * places * (1 + places / (_DENSE * width))

    return min(range(1, group + 1), key=cost)


def _forward(model: torch.nn.Module, packed: Packed, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities and entropies `RC` of one chunk, by TRL's fused head on the scored places alone."""
    inner = base_of(extract_model_from_parallel(model))
    inputs = {"input_ids": packed.ids_ST, "position_ids": packed.position_ST, "attention_mask": _mask(inner, packed)}
    scored_ST = packed.label_ST >= 0
    with _taking(inner.base_model, scored_ST):
        out = model(**inputs, shift_labels=packed.label_ST[scored_ST][None], fused_lm_head=True)

    def unpack(value_1N: torch.Tensor) -> torch.Tensor:
        flat = value_1N.new_zeros(scored_ST.shape).masked_scatter(scored_ST, value_1N[0])
        return packed.unpack(flat)

    return unpack(out.log_probs), unpack(out.entropy) if entropy else None


@contextmanager
def _taking(backbone: torch.nn.Module, scored_ST: torch.Tensor) -> Iterator[None]:
    """Inside, the backbone's last hidden states are those of the scored places alone, in one row.

    The head is the dearest matrix of a small model, and a prompt needs none of it.
    """

    def take(module, args, output):
        output.last_hidden_state = output.last_hidden_state[scored_ST][None]
        return output

    handle = backbone.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()


def _mask(model: PreTrainedModel, packed: Packed) -> Any:
    """The block mask in the form that the model's attention takes."""
    kind = model.config.get_text_config()._attn_implementation
    if kind == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        segment_ST = packed.segment_ST

        def seen(s, h, query, key):
            own = segment_ST[s, query]
            return (query == key) | ((key < query) & ((segment_ST[s, key] == 0) | (segment_ST[s, key] == own)))

        sequences, places = segment_ST.shape
        return create_block_mask(seen, sequences, None, places, places, device=segment_ST.device)
    mask_S1TT = packed.mask_S1TT()
    if kind == "eager":
        dtype = model.dtype
        return torch.zeros_like(mask_S1TT, dtype=dtype).masked_fill_(~mask_S1TT, torch.finfo(dtype).min)
    return mask_S1TT
