"""GRPO on replies that a function judges: prompts of a chat data set, plain completions, on TRL's trainer as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recllm.metrics.bootstrap import flat_gain
from recllm.provenance import RunRecord
from recllm.training.callbacks import CLIPPED, ZERO_VARIANCE, Alarm
from recllm.training.greedy import greedy_replies
from recllm.training.recommender import in_schedule, make_ready, train_and_grade, without_attention_dropout

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, ModelConfig


class ReplyReward(Protocol):
    """A reward function of TRL's: the columns of the rows come by name."""

    __name__: str

    def __call__(self, *, completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]: ...


def reply_rows(rows: Dataset, graded: int, seed: int) -> tuple[Dataset, Dataset]:
    """(rows to train on, `graded` rows to grade on) of a chat data set; `messages` without the reply become `prompt`.

    Raises:
        ValueError: there are not more rows than are to be graded.
    """
    if len(rows) <= graded:
        raise ValueError(f"{len(rows)} rows leave none to train on when {graded} are graded; make more, or grade fewer")
    asked = rows.map(lambda row: {"prompt": row["messages"][:-1]}, remove_columns="messages")
    order = np.random.default_rng(seed).permutation(len(asked))
    return asked.select(np.sort(order[graded:])), asked.select(np.sort(order[:graded]))


def build_reply_trainer(
    rows: Dataset, reward: ReplyReward, training_args: GRPOConfig, model_args: ModelConfig
) -> GRPOTrainer:
    """A GRPOTrainer over `rows`, which have `prompt` and what `reward` reads."""
    from trl import GRPOTrainer, get_peft_config

    from recllm.training.sft import load_model

    tokenizer, model = load_model(model_args)
    if training_args.disable_dropout:
        without_attention_dropout(model)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[reward],
        args=training_args,
        train_dataset=in_schedule(rows, training_args),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[Alarm(ZERO_VARIANCE, CLIPPED)],
    )
    make_ready(trainer)
    return trainer


def greedy_rewards(model: Any, tokenizer: Any, rows: Dataset, reward: ReplyReward, most_tokens: int) -> np.ndarray:
    """The reward of the greedy reply to each row's prompt, float64 of shape (E,)."""
    tokens = greedy_replies(model, tokenizer, list(rows["prompt"]), lambda _: {"max_new_tokens": most_tokens})
    replies = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    columns = {name: list(rows[name]) for name in rows.column_names if name != "prompt"}
    return np.array(reward(completions=replies, **columns))


def reply_gain(before_E: np.ndarray, after_E: np.ndarray) -> dict[str, float]:
    """Flat means of the greedy replies' reward before and after with intervals, and the paired gain."""
    return flat_gain("graded", "reward", before_E, after_E) | {"graded/prompts": len(after_E)}


def train_replies(
    trainer: GRPOTrainer, record: RunRecord, source: str, graded: Dataset, reward: ReplyReward
) -> dict[str, Any]:
    """Train and deliver merged weights; returns the metrics, on the main process only."""
    most = trainer.args.max_completion_length

    def grade(model: Any) -> np.ndarray:
        return greedy_rewards(model, trainer.processing_class, graded, reward, most)

    return train_and_grade(trainer, record, source, grade, ("reward",), gain=reply_gain)
