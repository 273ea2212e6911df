"""The chat data set of the needs model's warm-up: visits that patterns explain, asked about stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from recllm.needs.asking import Asking, Others
from recllm.needs.schema import STAGES, gold_answer, render, stage_keys

if TYPE_CHECKING:
    from datasets import Dataset


def check_stages(stages: Sequence[str]) -> tuple[str, ...]:
    """The stages in the curriculum's order; ValueError for none or an unknown one."""
    for stage in stages:
        stage_keys(stage)
    if not stages:
        raise ValueError(f"no stage is asked for; the stages are {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in stages)


def needs_given(stages: Sequence[str]) -> bool:
    """Whether a model of these stages is told the need by another one, which holds where it never learns to say it."""
    return "need" not in stages


def chat_rows(
    references: pl.DataFrame,
    asking: Asking,
    others: Others,
    stages: Sequence[str],
    early_share: float,
    max_events: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Chats about the events of `references` (see `asking.references`), shuffled.

    Every event is asked about in the last of `stages`, and a share of them, `early_share`, in each stage before: the
    answer of a later stage begins with those of the earlier ones, so these need fewer rows. Without the stage `need`
    the prompts tell the need. Columns `messages`, `stage`, `row`, `need`, `target`.

    max_events: keep so many events, chosen by the seed.

    Raises:
        ValueError: no event, no stage, an unknown one, or a share outside 0 to 1.
    """
    from datasets import Dataset

    stages = check_stages(stages)
    if not references.height or not 0 <= early_share <= 1:
        raise ValueError(f"{references.height} events and early_share={early_share} (0 to 1) make no chats")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(references.height)[:max_events]
    picks = [(stage, rng.permutation(chosen)[: round(early_share * len(chosen))]) for stage in stages[:-1]]
    events, told = references.to_dicts(), needs_given(stages)
    columns: dict[str, list] = {name: [] for name in ("messages", "stage", "row", "need", "target")}
    for stage, places in [*picks, (stages[-1], chosen)]:
        for event in (events[place] for place in places.tolist()):
            row, need, kind, target = (event[name] for name in ("row", "need", "need_type", "target"))
            answer = gold_answer(need, kind, event["category"], target, others(row, target))
            prompt = asking.chat(row, stage, (need, kind) if told else None)
            said = {"role": "assistant", "content": render(answer, stage, asking.names)}
            for name, value in zip(columns, ([*prompt, said], stage, row, need, target), strict=True):
                columns[name].append(value)
    return Dataset.from_dict(columns).shuffle(seed=seed)
