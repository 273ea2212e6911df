"""Greedy replies of a model in training, which grade it before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from recllm.training.validation import evaluating

# Chats that are answered at once.
_BATCH = 64


@torch.no_grad()
def greedy_replies(
    model: Any, tokenizer: Any, chats: Sequence[list[dict[str, str]]], options: Callable[[int], Mapping[str, Any]]
) -> list[list[int]]:
    """Token ids of the greedy reply to each chat, padded at the end as `generate` leaves them.

    options: `generate`'s further arguments for a batch of so many chats.
    """
    replies: list[list[int]] = []
    with evaluating(model):
        for at in range(0, len(chats), _BATCH):
            inputs = tokenizer.apply_chat_template(
                chats[at : at + _BATCH],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
                enable_thinking=False,
            ).to(model.device)
            count, length = inputs["input_ids"].shape
            grown_RT = model.generate(**inputs, do_sample=False, **options(count))
            replies += grown_RT[:, length:].tolist()
    return replies
