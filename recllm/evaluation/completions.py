"""Completions of a language model, sampled so that they can be compared: between models, and whatever runs beside.

Every completion has a random stream of its own, made of the seed, the prompt and the sample's number. It draws one
number a token, and the number picks from the cumulative distribution. So a completion depends neither on the batch nor
on the other questions, a shorter limit gives its beginning, more samples leave the first ones alone, and two
neighbouring merges are asked with the same luck, which is what a paired comparison wants. The arithmetic of a batch
rounds differently for other neighbours: where two tokens lie closer than that, a completion may still differ.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

# Draws that are taken from each stream at a time.
_DRAWS = 64
# Rows that ended are dropped from a batch when they are so large a share of it: each time copies the cache.
_ENDED_SHARE = 1 / 8


class _Sampling(NamedTuple):
    temperature: float
    top_p: float
    seed: int
    limit: int
    ends: torch.Tensor


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[list[list[int]]]:
    """New tokens of each sample of each prompt, in the order of the prompts, with the token that ends a completion.

    Args:
        prompts: token ids, rendered and open for the answer; lengths may differ. Equal prompts get equal completions.
        samples: completions a prompt. At temperature 0 they are equal, and one is computed.
        max_new_tokens: a completion that has not ended after so many tokens is cut off, without an end token.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together reach this probability are drawn (nucleus sampling, Holtzman et
            al. 2020, arXiv 1904.09751).
        batch_size: completions that run side by side at most, at least those of one prompt. Changes speed and memory.

    Raises:
        ValueError: an empty prompt, or an argument out of range.

    Warns:
        where a model's logits are not finite, as those of a broken merge may be; such a logit counts as 0.
    """
    _check(prompts, samples, max_new_tokens, temperature, top_p, batch_size)
    drawn = samples if temperature > 0 else 1
    sampling = _Sampling(temperature, top_p, seed, max_new_tokens, _end_tokens(model, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else int(sampling.ends[0])
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    completions: list[list[list[int]]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    at_once = max(1, batch_size // drawn)
    for begin in range(0, len(order), at_once):
        places = order[begin : begin + at_once]
        rows = _complete_batch(model, [prompts[place] for place in places], drawn, sampling, pad)
        for i, place in enumerate(places):
            own = rows[i * drawn : (i + 1) * drawn]
            completions[place] = own if drawn == samples else [list(own[0]) for _ in range(samples)]
    model.train(was_training)
    return completions


def _check(
    prompts: Sequence[Sequence[int]], samples: int, limit: int, temperature: float, top_p: float, batch_size: int
) -> None:
    for name, value in (("samples", samples), ("max_new_tokens", limit), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be 0 (the likeliest token) or positive, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and be at most 1, got {top_p}")
    for place, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {place} is empty: a completion needs at least one token to follow")


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Tokens that end a completion: the tokenizer's, and what the model's generation config names."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    if not ends:
        raise ValueError("neither the tokenizer nor generation_config.json names a token that ends a completion")
    return torch.tensor(sorted(ends), device=model.device)


class _Streams:
    """One random stream a row: uniform numbers in [0, 1), the next of every live row at each call."""

    def __init__(self, prompts: Sequence[Sequence[int]], samples: int, seed: int):
        self.streams, self.used = [], _DRAWS
        for prompt in prompts:
            ids = np.asarray(prompt, dtype=np.int64).tobytes()
            for sample in range(samples):
                digest = hashlib.sha256(f"completion {seed} {sample} ".encode() + ids).digest()
                self.streams.append(np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))))

    def next(self, device: torch.device) -> torch.Tensor:
        """float32 `R`."""
        if self.used == _DRAWS:
            self.drawn_RX = np.stack([stream.random(_DRAWS, dtype=np.float32) for stream in self.streams])
            self.used = 0
        self.used += 1
        return torch.from_numpy(self.drawn_RX[:, self.used - 1].copy()).to(device)

    def keep(self, rows: Sequence[int]) -> None:
        self.streams = [self.streams[row] for row in rows]
        self.drawn_RX = self.drawn_RX[rows]


def _complete_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, sampling: _Sampling, pad: int
) -> list[list[int]]:
    """Completions of some prompts, a prompt's samples side by side; each prompt is read once."""
    cache_name, cache, logits_RV, mask_RT = _read(model, prompts, pad)
    cache.batch_repeat_interleave(samples)
    logits_RV, mask_RT = (part.repeat_interleave(samples, 0) for part in (logits_RV, mask_RT))
    position_R = mask_RT.sum(1)
    streams = _Streams(prompts, samples, sampling.seed) if sampling.temperature else None
    written: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    row_R = np.arange(len(written))  # which completion each row of the batch writes
    alive_R = torch.ones(len(written), dtype=torch.bool)
    for step in range(sampling.limit):
        token_R = choose(logits_RV, sampling.temperature, sampling.top_p, streams and streams.next(model.device))
        listed = token_R.tolist()
        for place in alive_R.nonzero().flatten().tolist():
            written[row_R[place]].append(listed[place])
        alive_R &= ~torch.isin(token_R, sampling.ends).cpu()
        if not alive_R.any() or step + 1 == sampling.limit:
            break
        if (~alive_R).sum() >= _ENDED_SHARE * len(alive_R):
            kept_R = alive_R.nonzero().flatten()
            there_R = kept_R.to(model.device)
            cache.batch_select_indices(there_R)
            token_R, mask_RT, position_R = token_R[there_R], mask_RT[there_R], position_R[there_R]
            row_R, alive_R = row_R[kept_R.numpy()], alive_R[kept_R]
            if streams:
                streams.keep(kept_R.tolist())
        mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(mask_RT), 1)], 1)
        inputs = {"input_ids": token_R[:, None], "attention_mask": mask_RT, "position_ids": position_R[:, None]}
        logits_RV = model(**inputs, **{cache_name: cache}, use_cache=True).logits[:, -1]
        position_R = position_R + 1
    return written


def _read(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int
) -> tuple[str, Cache, torch.Tensor, torch.Tensor]:
    """Name of the model's cache argument, the cache with the prompts in it, the next token's logits, and the mask."""
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    padded = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    length_R = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    column_T = torch.arange(longest, device=model.device)
    mask_RT = (column_T[None] >= longest - length_R[:, None]).long()
    inputs = {
        "input_ids": torch.tensor(padded, device=model.device),
        "attention_mask": mask_RT,
        "position_ids": (mask_RT.cumsum(1) - 1).clamp_min(0),
    }
    # transformers renamed the argument; the old name goes away in 5.40.
    known = inspect.signature(type(model).forward).parameters
    cache_name = "cache" if "cache" in known else "past_key_values"
    cache = DynamicCache(config=model.config)
    logits_RV = model(**inputs, **{cache_name: cache}, use_cache=True, logits_to_keep=1).logits[:, -1]
    return cache_name, cache, logits_RV, mask_RT


def choose(
    logits_RV: torch.Tensor, temperature: float, top_p: float, uniform_R: torch.Tensor | None = None
) -> torch.Tensor:
    """A token a row, int64 `R`: the likeliest at temperature 0, else the one on which `uniform_R` in [0, 1) falls."""
    logits_RV = logits_RV.float()
    if not torch.isfinite(logits_RV).all():
        warnings.warn("the model's logits are not finite: its completions say nothing")
        logits_RV = logits_RV.nan_to_num(0.0, 0.0, 0.0)
    if temperature == 0 or uniform_R is None:
        return logits_RV.argmax(1)
    share_RV = (logits_RV / temperature).softmax(1)
    if top_p == 1:
        cumulative_RV = share_RV.cumsum(1)
        aim_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
        place_R = torch.searchsorted(cumulative_RV, aim_R1, right=True)[:, 0]
        # A number that rounds up to the whole lies beyond the last token.
        return torch.where(place_R < share_RV.shape[1], place_R, share_RV.argmax(1))
    sorted_RV, token_RV = share_RV.sort(dim=1, descending=True, stable=True)
    cumulative_RV = sorted_RV.cumsum(1)
    kept_R1 = (cumulative_RV - sorted_RV < top_p).sum(1, keepdim=True)
    aim_R1 = uniform_R[:, None] * cumulative_RV.gather(1, kept_R1 - 1)
    place_R1 = torch.searchsorted(cumulative_RV, aim_R1, right=True).minimum(kept_R1 - 1)
    return token_RV.gather(1, place_R1)[:, 0]
