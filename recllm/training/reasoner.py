"""GRPO for the reasoner, from hard samples to delivered folder: thoughts and answers, on TRL's trainer as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.prompts import reasoner_prompt
from recllm.data.splits import Examples, load_split
from recllm.data.text import neutralise
from recllm.metrics.ranking import ndcg_at_k, rank_in_list
from recllm.provenance import RunRecord
from recllm.recommender.hard import hard_examples
from recllm.recommender.prompts import prompt_rows
from recllm.recommender.rollout_beam import RolloutBeam
from recllm.recommender.thought_rewards import CategoryNames, ThoughtReward, check_weights
from recllm.sid.table import SidTable
from recllm.tools.reason import Reason
from recllm.tools.retrieve import Retrieve
from recllm.training.callbacks import ZERO_VARIANCE, Alarm
from recllm.training.reasoner_rollout import ThoughtRollout
from recllm.training.recommender import (
    TOP,
    Groups,
    check_settings,
    in_schedule,
    make_ready,
    start_from,
    train_and_grade,
)
from recllm.training.validation import evaluating

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, ModelConfig

BEAMS = 10


def hard_rows(
    dataset: str | Path, retriever: str | Path, table: SidTable, limit: int | None = None, seed: int = 0
) -> Dataset:
    """Prompts whose target the retriever misses in its first 50; columns as `prompt_rows`."""
    examples = hard_examples(load_split(dataset), Retrieve.load(retriever))
    return prompt_rows(examples, table, limit, seed, prompt=reasoner_prompt)


def build_reasoner_trainer(
    rows: Dataset,
    catalog: Catalog,
    table: SidTable,
    training_args: GRPOConfig,
    model_args: ModelConfig,
    weights: Mapping[str, float],
    think_tokens: int,
) -> GRPOTrainer:
    """A GRPOTrainer whose completions are a thought of at most `think_tokens` tokens and a sid of the catalogue.

    `weights` names a term of `thought_rewards.TERMS` each; terms of weight 0 are left out.

    Raises:
        ValueError: weights by which a miss could outscore a hit, or a setting that the draw cannot honour.
    """
    from trl import GRPOTrainer

    check_weights(weights, table.levels)
    check_settings(training_args, Groups("independent"), len(np.unique(table.codes_NL, axis=0)), drawn=("top_p",))
    used = {name: weight for name, weight in weights.items() if weight}
    start = start_from(model_args, training_args, table)
    training_args.reward_weights = list(used.values())
    # A divisor of the dr_grpo loss.
    training_args.max_completion_length = think_tokens + 1 + table.levels + len(start.end)
    names = CategoryNames([[neutralise(name) for name in row] for row in catalog.categories])
    beam = RolloutBeam.over(start.model, start.tokenizer, table, BEAMS)
    trainer = GRPOTrainer(
        model=start.model,
        reward_funcs=[ThoughtReward(name, start.tokenizer, table, names, beam) for name in used],
        args=training_args,
        train_dataset=in_schedule(rows, training_args),
        processing_class=start.tokenizer,
        rollout_func=ThoughtRollout(start.trie, start.end, think_tokens),
        peft_config=start.peft,
        callbacks=[Alarm(ZERO_VARIANCE)],
    )
    make_ready(trainer, thinking=True)
    return trainer


def thinking_values(model: Any, tokenizer: Any, table: SidTable, examples: Examples, think_tokens: int) -> np.ndarray:
    """NDCG@10 of each example by the slow tool, seen items not competing, float64 of shape (E,)."""
    with evaluating(model):
        answer = Reason(model, tokenizer, table, think_tokens).answer(examples, TOP, label="reason: validation")
    return ndcg_at_k(rank_in_list(answer.items_EK, examples.targets_E), TOP)


def train_reasoner(
    trainer: GRPOTrainer, record: RunRecord, source: str, table: SidTable, graded: Examples, think_tokens: int
) -> dict[str, Any]:
    """Train and deliver merged weights; the metrics are those of `train_and_grade`, each term's curve included."""
    tokenizer = trainer.processing_class
    curves = ("reward", *(f"rewards/{function.__name__}/mean" for function in trainer.reward_funcs))

    def grade(model: Any) -> np.ndarray:
        return thinking_values(model, tokenizer, table, graded, think_tokens)

    return train_and_grade(trainer, record, source, grade, curves)
