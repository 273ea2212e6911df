"""One prompt, many continuations: what beam search, sampling and exact scoring over a trie have in common.

A prompt is read once. Its K continuations then go through the model side by side as one sequence: a 4-D mask lets each
see the prompt and its own codes, so the cache grows by K a level. Keys and values are written into room that was set
aside, so they are not repeated or reordered. The head is evaluated for a level's codes only,
unless the probability of all other tokens is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer

from recllm.decoding.trie import SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# trie: over the codes that may follow. level: over all codes of the level. full_vocab: over the whole vocabulary.
Normalisation = Literal["trie", "level", "full_vocab"]
NORMALISATIONS = ("trie", "level", "full_vocab")
# Rows of logits over a whole vocabulary held at once: 128 x 152k float32 are 78 MB.
_VOCABULARY_ROWS = 128
# Columns of a cache that are set aside at first; more room is made as it is needed.
_COLUMNS = 1024
# Attention that takes a mask of its own.
_ATTENTION = ("sdpa", "eager")


class _RoomyLayer(DynamicLayer):
    """A cache layer with room set aside: `update` writes in place and answers with a view.

    `room` is the most it will hold. What goes beyond `_COLUMNS` after the first write is set aside later, twice as much
    each time, so that long limits cost nothing where sequences end early.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.device = key_states.device
        columns = min(self.room, key_states.shape[2] + _COLUMNS)
        self._buffers = [
            states.new_empty(*states.shape[:2], columns, states.shape[3]) for states in (key_states, value_states)
        ]
        self.is_initialized = True

    def _make_room(self, columns: int) -> None:
        held = self._buffers[0].shape[2]
        if columns > held:
            self._copy(slice(None), min(self.room, max(columns, 2 * held)))

    def _copy(self, rows: torch.Tensor | slice, columns: int) -> None:
        """Go on with these rows, in buffers of so many columns."""
        for i, buffer in enumerate(self._buffers):
            read = buffer[rows, :, : self.length]
            self._buffers[i] = buffer.new_empty(len(read), buffer.shape[1], columns, buffer.shape[3])
            self._buffers[i][:, :, : self.length] = read

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._make_room(self.length + key_states.shape[2])
        begin, self.length = self.length, self.length + key_states.shape[2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin : self.length] = states
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)
        # What was just read is in one piece; the view is not, and attention is slower on it.
        return (key_states, value_states) if begin == 0 else (self.keys, self.values)

    def spread(self, row_S: torch.Tensor) -> None:
        """Copy what was read to other rows; the room grows with them."""
        self._copy(row_S, self._buffers[0].shape[2])

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0


class SharedPrompt:
    """Prompts that were read once, and the codes that grow from them.

    `hidden_B1D` is the last hidden state of each prompt. `extend` adds K codes to each prompt; `length` counts the
    columns added so far, and `rewind` takes the last ones back.

    Args:
        prompts: token ids, lengths may differ; none may be empty.
        room: how many columns `extend` will add at most.

    Raises:
        ValueError: an empty prompt, or a model whose attention or head cannot be used this way.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], room: int):
        lengths = [len(prompt) for prompt in prompts]
        if not lengths or min(lengths) == 0:
            raise ValueError("every prompt needs at least one token" if lengths else "there is no prompt")
        longest = max(lengths)
        check_model(model, longest + room)
        device = model.device
        ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        self.length_B = torch.tensor(lengths, device=device)
        self.mask_BT = torch.arange(longest, device=device)[None] >= longest - self.length_B[:, None]
        self.decoder = model.get_decoder()
        # transformers renamed the argument; the old name goes away in 5.40.
        renamed = "cache" in inspect.signature(type(self.decoder).forward).parameters
        self._cache_argument = "cache" if renamed else "past_key_values"
        layers = model.config.get_text_config().num_hidden_layers
        self.cache = Cache(layers=[_RoomyLayer(longest + room) for _ in range(layers)])
        # A batch without padding needs no mask, and attention without one is faster.
        padded = min(lengths) < longest
        inputs = {"attention_mask": self.mask_BT.long()} if padded else {}
        position_BT = (torch.arange(longest, device=device)[None] - (longest - self.length_B[:, None])).clamp_min(0)
        self.hidden_B1D = self.forward(input_ids=ids_BT, position_ids=position_BT, **inputs)[:, -1:]
        # Of the columns that `extend` added, those that each live continuation descends from.
        self.own_BKX = torch.zeros(len(lengths), 1, 0, dtype=torch.bool, device=device)
        self.depth = 0

    def extend(self, token_BK: torch.Tensor, parent_BK: torch.Tensor) -> torch.Tensor:
        """Hidden states `BKD` of one code more for K continuations.

        `parent_BK` tells which of the columns of the call before (0 at first: the prompt) each one continues.
        """
        batch, width = token_BK.shape
        own_BKX = self.own_BKX.gather(1, parent_BK[:, :, None].expand(-1, -1, self.own_BKX.shape[2]))
        itself_BKK = torch.eye(width, dtype=torch.bool, device=token_BK.device).expand(batch, -1, -1)
        self.own_BKX = torch.cat([own_BKX, itself_BKK], 2)
        seen_BKT = torch.cat([self.mask_BT[:, None].expand(-1, width, -1), self.own_BKX], 2)
        dtype = self.hidden_B1D.dtype
        bias_B1KT = torch.zeros_like(seen_BKT, dtype=dtype).masked_fill_(~seen_BKT, torch.finfo(dtype).min)[:, None]
        # Continuations may have read different numbers of codes, where some paused while others went on.
        position_BK = self.length_B[:, None] + self.own_BKX.sum(2) - 1
        self.depth += 1
        return self.forward(input_ids=token_BK, attention_mask=bias_B1KT, position_ids=position_BK)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Last hidden states of more tokens after what the cache holds; `inputs` as the decoder takes them."""
        return self.decoder(**inputs, **{self._cache_argument: self.cache}, use_cache=True).last_hidden_state

    def spread(self, prompt_S: torch.Tensor) -> None:
        """Go on with copies of the prompts, `prompt_S` naming each; before anything was added to them."""
        if self.depth:
            raise RuntimeError("a prompt can be copied before it was extended only")
        self.hidden_B1D, self.own_BKX = self.hidden_B1D[prompt_S], self.own_BKX[prompt_S]
        self.length_B, self.mask_BT = self.length_B[prompt_S], self.mask_BT[prompt_S]
        for layer in self.cache.layers:
            layer.spread(prompt_S)

    def mark(self) -> tuple[int, int, torch.Tensor]:
        """What `rewind` needs to come back to this point."""
        return self.cache.layers[0].length, self.depth, self.own_BKX

    def rewind(self, mark: tuple[int, int, torch.Tensor]) -> None:
        """Forget the columns that were added since the mark."""
        length, self.depth, self.own_BKX = mark
        for layer in self.cache.layers:
            layer.length = length


def limited_attention(config: Any, length: int) -> str | None:
    """Why some layers do not see all of a sequence of `length` tokens, in words, or None."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds and any(kind not in (None, "full_attention") for kind in kinds):
        return f"{config.model_type} has layers of limited attention"
    if not kinds and window and length > window:
        return f"{config.model_type} sees {window} tokens at a time, and sequences have up to {length}"
    return None


def check_model(model: PreTrainedModel, length: int = 0) -> None:
    """Raise ValueError where attention cannot take a mask of ours, or the head is more than one matrix product.

    `length` is the most tokens that a sequence will have, for models that look back only so far.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in _ATTENTION:
        raise ValueError(
            f"attention {config._attn_implementation!r} takes no 4-D mask: load the model with "
            f"attn_implementation='sdpa' (or 'eager')"
        )
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(model).__name__} changes its logits after the head ({name}): not supported here")
    if limit := limited_attention(config, length):
        raise ValueError(f"{limit}, which a shared prompt cannot serve")


class Head:
    """The output layer, evaluated for some tokens only."""

    def __init__(self, model: PreTrainedModel):
        layer = model.get_output_embeddings()
        self.weight_VD, self.bias_V = layer.weight, getattr(layer, "bias", None)

    def logits(self, hidden_RD: torch.Tensor, tokens_A: torch.Tensor) -> torch.Tensor:
        """float32 logits `RA` of some tokens."""
        bias_A = None if self.bias_V is None else self.bias_V[tokens_A]
        return F.linear(hidden_RD, self.weight_VD[tokens_A], bias_A).float()

    def log_total(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """log of the summed exponentials of all logits, float32 `R`, a block of rows at a time."""
        blocks = hidden_RD.split(_VOCABULARY_ROWS)
        return torch.cat([F.linear(block, self.weight_VD, self.bias_V).float().logsumexp(-1) for block in blocks])


class Grown(NamedTuple):
    """Every child of R trie nodes, side by side: the row it comes from, its token and node, its log-probability.

    `log_allowed_R` is the log of the whole vocabulary's probability that lies on each node's children, or None.
    """

    row_F: torch.Tensor
    token_F: torch.Tensor
    node_F: torch.Tensor
    logp_F: torch.Tensor
    log_allowed_R: torch.Tensor | None = None


def grow(
    trie: SidTrie,
    level: int,
    hidden_RD: torch.Tensor,
    node_R: torch.Tensor,
    head: Head,
    normalisation: Normalisation = "trie",
    temperature: float = 1.0,
    with_mass: bool = False,
) -> Grown:
    """The children of nodes at `level` with their log-probabilities after each row's hidden state.

    `temperature` divides the logits and goes with normalisation `trie` only.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}; got {normalisation!r}")
    logit_RA = head.logits(hidden_RD, trie.level_tokens[level])
    children = trie.children_batched(node_R)
    row_F = torch.repeat_interleave(torch.arange(len(node_R), device=node_R.device), children.offsets_B1.diff())
    logit_F = logit_RA[row_F, trie.column_E[children.nodes_F - 1]]
    if normalisation == "trie":
        total_R = segment_logsumexp(logit_F / temperature, row_F, len(node_R))
    else:
        total_R = logit_RA.logsumexp(1) if normalisation == "level" else head.log_total(hidden_RD)
    mass_R = None
    if with_mass:
        mass_R = segment_logsumexp(logit_F, row_F, len(node_R)) - head.log_total(hidden_RD)
    return Grown(row_F, children.tokens_F, children.nodes_F, logit_F / temperature - total_R[row_F], mass_R)


def segment_logsumexp(value_F: torch.Tensor, row_F: torch.Tensor, rows: int) -> torch.Tensor:
    """log of the summed exponentials of each row's values, `R`; -inf for a row without any."""
    top_R = value_F.new_full((rows,), float("-inf")).scatter_reduce(0, row_F, value_F, "amax")
    safe_R = torch.where(top_R.isneginf(), 0, top_R)
    total_R = value_F.new_zeros(rows).index_add(0, row_F, (value_F - safe_R[row_F]).exp())
    return safe_R + total_R.log()


def places_in_rows(row_F: torch.Tensor, rows: int) -> torch.Tensor:
    """Place of each entry among those of its row, from 0; rows come in rising order."""
    count_R = torch.bincount(row_F, minlength=rows)
    return torch.arange(len(row_F), device=row_F.device) - (count_R.cumsum(0) - count_R)[row_F]


def best_of_rows(value_F: torch.Tensor, row_F: torch.Tensor, rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best values of each row, `RK` falling, and where they stand in `value_F`; rows come in rising order.

    K is smaller where no row has k values; a row that has fewer than K is filled with -inf (index 0).
    """
    place_F = places_in_rows(row_F, rows)
    room = int(place_F.max()) + 1
    value_RC = value_F.new_full((rows, room), float("-inf"))
    value_RC[row_F, place_F] = value_F
    index_RC = torch.zeros(rows, room, dtype=torch.long, device=row_F.device)
    index_RC[row_F, place_F] = torch.arange(len(row_F), device=row_F.device)
    value_RK, column_RK = value_RC.topk(min(k, room), dim=1)
    return value_RK, index_RC.gather(1, column_RK)
