"""Prompts of the recommender's GRPO: histories with their targets as a column, out of the data set's own split.

No validation or test target is ever among them, nor, under `roles`, a routing target of half B.

leave_one_out: targets are fitting events, which the recommender's fine-tuning has seen, too (as in MiniOneRec): there
is nothing else that may be learned from.

roles: `last` takes the routing targets of half A, the first events that fine-tuning on the fitting fold has not seen;
`all` adds every fitting event. They belong to half A because half B labels and rewards the planner. A ranker is fitted
on half A as well: lists of a recommender that was trained on these prompts are too good there, so a ranker over them
needs other users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from recllm.data.prompts import recommend_prompt
from recllm.data.splits import Examples, Split
from recllm.sid.table import SidTable

if TYPE_CHECKING:
    from datasets import Dataset

PromptsFrom = Literal["last", "all"]


def prompt_examples(split: Split, prompts_from: PromptsFrom = "last") -> Examples:
    """The examples that GRPO may learn from; see the module. Every history has at least one item.

    Raises:
        ValueError: `prompts_from` is neither `last` nor `all`, or the split has no such example.
    """
    if prompts_from not in ("last", "all"):
        raise ValueError(f"prompts_from must be last or all, got {prompts_from!r}")
    lengths_U = split.fit_length_U
    if prompts_from == "all":
        user_E = np.repeat(np.arange(len(lengths_U)), np.maximum(lengths_U - 1, 0))
        starts_U = np.concatenate([[0], np.maximum(lengths_U - 1, 0).cumsum()])[:-1]
        examples = Examples(user_E, np.arange(len(user_E)) - starts_U[user_E] + 1, split.sequences)
    else:
        user_E = np.flatnonzero(lengths_U >= 2)
        examples = Examples(user_E, lengths_U[user_E] - 1, split.sequences)
    if split.kind == "roles":
        routing = split.routing("A")
        parts = [routing] if prompts_from == "last" else [examples, routing]
        fields = ([part.user_E for part in parts], [part.position_E for part in parts])
        examples = Examples(*(np.concatenate(field) for field in fields), split.sequences)
    if not len(examples):
        raise ValueError(f"the split ({split.kind}) has no user with a target for prompts_from: {prompts_from}")
    return examples


def prompt_rows(
    examples: Examples,
    table: SidTable,
    limit: int | None = None,
    seed: int = 0,
    prompt: Callable[[Sequence[str]], list[dict[str, str]]] = recommend_prompt,
) -> Dataset:
    """`prompt` (a chat), `target` (item) and `user` (row of the sequences), in the order of the examples.

    `limit` keeps so many, chosen at random by `seed`; `prompt` writes the chat from the sid texts of a history.

    Raises:
        ValueError: the table lacks an item of the data set, or `limit` is below 1.
    """
    from datasets import Dataset

    if limit is not None and limit < 1:
        raise ValueError(f"the limit of prompts must be at least 1, got {limit}")
    if len(examples.sequences.items_M) and int(examples.sequences.items_M.max()) >= len(table):
        raise ValueError(
            f"the data set has items up to {int(examples.sequences.items_M.max())}, the SID table only {len(table)}: "
            "they do not belong together"
        )
    if limit is not None and limit < len(examples):
        chosen = np.random.default_rng(seed).choice(len(examples), size=limit, replace=False)
        examples = examples.subset(np.sort(chosen))
    texts = [table.text(item) for item in range(len(table))]
    prompts = [prompt([texts[item] for item in examples.history(e)]) for e in range(len(examples))]
    return Dataset.from_dict(
        {"prompt": prompts, "target": examples.targets_E.tolist(), "user": examples.user_E.tolist()}
    )
