"""GRPO for the recommender, from prompts to delivered folder: groups drawn over the trie, on TRL's trainer as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recllm.data.splits import Examples, load_split, sampled
from recllm.decoding.trie import SidTrie
from recllm.evaluation.recommender import TOP, Recommender, by_beam
from recllm.metrics.bootstrap import flat_gain
from recllm.metrics.ranking import ndcg_at_k
from recllm.provenance import RunRecord
from recllm.recommender.rewards import MONITORS, TERMS, Reward
from recllm.sid.table import SidTable
from recllm.training.callbacks import OUTSIDE, ZERO_VARIANCE, Alarm
from recllm.training.grpo import curve_ends, prompts_per_step, schedule
from recllm.training.models import sliced
from recllm.training.recommender_rollout import GroupRollout, answer_end
from recllm.training.save import deliver, newest_checkpoint, remove_checkpoints, whole
from recllm.training.validation import ValidationNDCG, evaluating

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, GRPOTrainer, ModelConfig

BEAMS = 20
GROUP_METRICS = ("allowed_mass", "group_hit_rate", "groups_without_hit", "group_duplicates")

# The draw knows a temperature and nothing else that shapes a distribution. Name -> TRL's value for "off".
_IGNORED = {"top_p": (1.0, None), "top_k": (0, None), "min_p": (None,), "repetition_penalty": (1.0, None)}
_IGNORED |= {"generation_kwargs": (None, {}), "use_vllm": (False,), "off_policy_mask_threshold": (None,)}
_IGNORED |= {"use_transformers_continuous_batching": (False, None)}


@dataclass(frozen=True)
class Groups:
    """How a group is drawn: see `GroupRollout` for `draw` and `inclusion.py` for `inclusion_weights`."""

    draw: str = "without_replacement"
    inclusion_weights: bool = False


def build_recommender_trainer(
    rows: Dataset,
    table: SidTable,
    training_args: GRPOConfig,
    model_args: ModelConfig,
    weights: Mapping[str, float],
    groups: Groups = Groups(),
    watches: Sequence[ValidationNDCG] = (),
) -> GRPOTrainer:
    """A GRPOTrainer whose groups are drawn over the table's trie, on rows of `recommender/prompts.py`.

    `weights` names a term of `TERMS` each; terms of weight 0 are left out.

    Raises:
        ValueError: no term has a weight, a weight is negative, or a setting that the draw cannot honour.
    """
    used = {name: weight for name, weight in weights.items() if weight}
    if not used or min(used.values()) < 0:
        raise ValueError(f"rewards need weights of at least 0, one of them positive; got {dict(weights)}")
    check_settings(training_args, groups, len(np.unique(table.codes_NL, axis=0)))
    start = start_from(model_args, training_args, table)
    training_args.reward_weights = [*used.values(), *(0.0 for _ in MONITORS)]
    training_args.max_completion_length = table.levels + len(start.end)  # a divisor of the dr_grpo loss
    trainer = trainer_class(groups)(
        model=start.model,
        reward_funcs=[Reward(name, term, table) for name, term in {**{n: TERMS[n] for n in used}, **MONITORS}.items()],
        args=training_args,
        train_dataset=in_schedule(rows, training_args),
        processing_class=start.tokenizer,
        rollout_func=GroupRollout(start.trie, start.end, groups.draw, training_args.seed),
        peft_config=start.peft,
        callbacks=[*watches, Alarm(ZERO_VARIANCE, OUTSIDE)],
    )
    make_ready(trainer)
    return trainer


class Start(NamedTuple):
    """What a trainer that draws sids begins with: `end` are the token ids that follow an answer."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    peft: Any
    end: Sequence[int]
    trie: SidTrie


def start_from(model_args: ModelConfig, training_args: GRPOConfig, table: SidTable) -> Start:
    """Load the model that is to be trained on draws over the table's trie.

    Raises:
        ValueError: completions would have no end where truncated ones are masked.
    """
    from recllm.training.sft import load_model, peft_config, sid_row_ids

    tokenizer, model = load_model(model_args)
    if training_args.disable_dropout:
        without_attention_dropout(model)
    end = answer_end(tokenizer, table.text(0))
    check_end(training_args, end)
    peft = peft_config(model, sid_row_ids(tokenizer, model_args.model_name_or_path), model_args)
    return Start(tokenizer, model, peft, end, SidTrie.from_table(table, tokenizer))


def in_schedule(rows: Dataset, training_args: GRPOConfig) -> Dataset:
    """The rows in the order in which a trainer that does not shuffle takes them."""
    training_args.shuffle_dataset = False
    return schedule(rows, training_args.max_steps, prompts_per_step(training_args), training_args.seed)


def make_ready(trainer: GRPOTrainer, thinking: bool = False) -> None:
    """What has to hold of the trainer's model before the first draw; `thinking` is whether it writes a thought first.

    Raises:
        ValueError: its weights are sliced over processes.
    """
    from recllm.training.sft import name_bias

    if sliced():
        raise ValueError("the draw needs whole weights, which FSDP and ZeRO-3 slice: train with DDP or ZeRO-2")
    # SFT under Qwen3's template teaches to answer after an empty thought, and evaluation asks in the same way. A model
    # that thinks opens its thought itself.
    asked = {} if thinking else {"enable_thinking": False}
    trainer.chat_template_kwargs = asked | (trainer.chat_template_kwargs or {})
    name_bias(trainer.model)


def without_attention_dropout(model: PreTrainedModel) -> None:
    """What TRL's `disable_dropout` leaves on: it finds dropout layers, while attention drops out by a number."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def trainer_class(groups: Groups) -> type:
    """TRL's GRPOTrainer, or the one with weighted advantages."""
    if not groups.inclusion_weights:
        from trl import GRPOTrainer

        return GRPOTrainer
    from recllm.training.recommender_trainer import InclusionWeightedTrainer, check_override

    check_override()
    return InclusionWeightedTrainer


def check_settings(args: GRPOConfig, groups: Groups, sids: int, drawn: Sequence[str] = ()) -> None:
    """Refuse what would train on something else than it says; `drawn` are settings of generation that it does honour.

    Raises:
        ValueError: a group that straddles processes or exceeds the catalogue, settings of generation that the draw does
            not know, weights where none are due, or weights sliced over processes.
    """
    batch, steps, size = args.per_device_train_batch_size, args.steps_per_generation, args.num_generations
    if batch * steps % size:
        raise ValueError(
            f"a process draws per_device_train_batch_size={batch} x steps_per_generation={steps} = {batch * steps} "
            f"completions at a time, which num_generations={size} does not divide: a group would straddle two "
            f"processes. Set per_device_train_batch_size to a multiple of {size}"
        )
    if groups.draw == "without_replacement" and size > sids:
        raise ValueError(f"num_generations={size} different answers are asked for, and the catalogue has {sids} sids")
    for name, off in _IGNORED.items():
        if name not in drawn and getattr(args, name, off[0]) not in off:
            raise ValueError(f"{name}: {getattr(args, name)} has no effect on a draw over the trie; leave it out")
    if groups.inclusion_weights and groups.draw != "without_replacement":
        raise ValueError("inclusion_weights belong to draw: without_replacement; independent answers weigh the same")
    if groups.inclusion_weights and args.temperature != 1:
        raise ValueError(
            f"inclusion_weights estimate means under the model at temperature 1; got temperature: {args.temperature}"
        )


def check_end(args: GRPOConfig, end: Sequence[int]) -> None:
    """Raise ValueError where completions without an end would all be thrown away."""
    if args.mask_truncated_completions and not end:
        raise ValueError(
            "mask_truncated_completions: true would mask every answer, since the model's chat template ends none"
        )


def graded_examples(dataset: str | Path, users: int | None, watches: Sequence[ValidationNDCG] = ()) -> Examples:
    """At most `users` validation examples for the comparison of before and after.

    Where there are enough, none is among those that a watch chooses the best weights by: these would flatter the after.
    """
    examples = load_split(dataset).validation
    if users is not None and watches:
        watched = np.concatenate([watch.examples.user_E for watch in watches])
        rest = examples.subset(~np.isin(examples.user_E, watched))
        examples = rest if len(rest) >= users else examples
    return sampled(examples, users, seed=1)


def validation_values(model: Any, tokenizer: Any, table: SidTable, examples: Examples) -> np.ndarray:
    """NDCG@10 of each example by beam, seen items not competing, float64 of shape (E,)."""
    with evaluating(model):
        answers = by_beam(Recommender(model, tokenizer, table), examples, exclude_seen=True, beams=BEAMS)
    return ndcg_at_k(answers.rank_E, TOP)


def train_recommender(
    trainer: GRPOTrainer,
    record: RunRecord,
    source: str,
    table: SidTable,
    graded: Examples,
    watches: Sequence[ValidationNDCG] = (),
) -> dict[str, Any]:
    """Train and deliver merged weights; see `train_and_grade`. Curves are the reward's and the groups' numbers."""

    def grade(model: Any) -> np.ndarray:
        return validation_values(model, trainer.processing_class, table, graded)

    return train_and_grade(trainer, record, source, grade, ("reward", *GROUP_METRICS), watches)


def train_and_grade(
    trainer: GRPOTrainer,
    record: RunRecord,
    source: str,
    grade: Callable[[Any], Any],
    curves: Sequence[str],
    watches: Sequence[ValidationNDCG] = (),
    gain: Callable[[Any, Any], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train and deliver merged weights; returns the metrics, on the main process only.

    `grade` gives a model's NDCG@10 on each graded user. `validation/before_`, `after_` and `gain_ndcg@10` are means
    over them with their intervals, the gain's being paired; `curves` are given for the first and the last tenth of
    the steps, which have the same prompts. With a `gain` of its own, a run grades by something else: it makes the
    numbers out of what `grade` gave before and after.
    """
    before = grade(trainer.accelerator.unwrap_model(trainer.model)) if trainer.is_world_process_zero() else None
    outcome = trainer.train(resume_from_checkpoint=newest_checkpoint(record.folder))
    model = whole(trainer)
    if model is None:
        return {}
    deliver(model, trainer.processing_class, record.folder, source)
    metrics = (gain or gain_metrics)(before, grade(model))
    for key in curves:
        metrics |= curve_ends(trainer.state.log_history, key)
    for watch in watches:
        metrics |= watch.metrics()
    remove_checkpoints(record.folder)
    return metrics | {"steps": trainer.state.global_step, "train_seconds": round(outcome.metrics["train_runtime"], 1)}


def gain_metrics(before_E: np.ndarray, after_E: np.ndarray) -> dict[str, float]:
    """Flat means of NDCG@10 before and after with intervals, the paired gain, and how many users they are over."""
    gain = flat_gain("validation", f"ndcg@{TOP}", before_E, after_E)
    return gain | {"validation/graded_users": len(after_E)}
