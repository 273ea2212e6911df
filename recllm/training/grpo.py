"""GRPO on TRL's trainer as it is: what all runs share, and the planner's, with tools by `environment_factory`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.planner.bench import Bench
from recllm.planner.env import MAX_CALLS, PlannerEnv
from recllm.planner.rewards import MONITORS, REWARDS

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, ModelConfig


def schedule(rows: Dataset, steps: int, prompts_per_step: int, seed: int) -> Dataset:
    """Prompts in the order of training: the prompts of the first tenth of the steps come again in the last tenth.

    Rewards differ far more between prompts than training moves them, so the first and the last tenth can be compared
    only on the same prompts. Between them the rest come in random order, again and again.
    """
    slots, tenth = steps * prompts_per_step, max(1, steps // 10) * prompts_per_step
    order = np.random.default_rng(seed).permutation(len(rows))
    if steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {steps}: the schedule lays out every step's prompts")
    first, rest = np.resize(order, tenth), order[tenth:] if len(order) > tenth else order
    middle = np.resize(rest, max(0, slots - 2 * len(first)))
    return rows.select(np.concatenate([first, middle, first])[:slots])


def prompts_per_step(args: GRPOConfig) -> int:
    """How many different prompts one optimizer step sees, over all processes."""
    completions = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if completions % args.num_generations:
        raise ValueError(
            f"a step has {completions} completions, which num_generations={args.num_generations} does not divide"
        )
    return completions // args.num_generations


def build_planner_trainer(
    rows: Dataset, bench: Bench, training_args: GRPOConfig, model_args: ModelConfig, weights: dict[str, float]
) -> GRPOTrainer:
    """A GRPOTrainer whose rollouts play `PlannerEnv` episodes on the bench.

    `weights` names a term of `REWARDS` each; terms of weight 0 are left out.
    """
    from trl import GRPOTrainer, get_peft_config

    from recllm.training.callbacks import CLIPPED, ZERO_VARIANCE, Alarm
    from recllm.training.chat import set_chat_template
    from recllm.training.sft import load_model

    used = {name: weight for name, weight in weights.items() if weight}
    training_args.reward_weights = [*used.values(), *(0.0 for _ in MONITORS)]
    # One turn more than the calls, in which the planner ends the episode, is TRL's own.
    training_args.max_tool_calling_iterations = min(training_args.max_tool_calling_iterations or MAX_CALLS, MAX_CALLS)
    training_args.shuffle_dataset = False
    tokenizer, model = load_model(model_args)
    set_chat_template(tokenizer, "keep")
    per_step = prompts_per_step(training_args)
    return GRPOTrainer(
        model=model,
        reward_funcs=[*(REWARDS[name] for name in used), *MONITORS.values()],
        args=training_args,
        train_dataset=schedule(rows, training_args.max_steps, per_step, training_args.seed),
        processing_class=tokenizer,
        environment_factory=functools.partial(PlannerEnv, bench),
        peft_config=get_peft_config(model_args),
        callbacks=[Alarm(ZERO_VARIANCE, CLIPPED)],
    )


def reward_curve(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """`reward/first` and `reward/last`; see `curve_ends`."""
    return curve_ends(log_history, "reward")


def curve_ends(log_history: list[dict[str, Any]], key: str) -> dict[str, float]:
    """`key`/first and `key`/last: the means of a logged number over the first and the last tenth of the logged steps.

    Raises:
        ValueError: no step logged it.
    """
    values = [float(entry[key]) for entry in log_history if entry.get(key) is not None]
    if not values:
        raise ValueError(f"no step logged a {key}; set logging_steps: 1")
    tenth = max(1, len(values) // 10)
    return {f"{key}/first": float(np.mean(values[:tenth])), f"{key}/last": float(np.mean(values[-tenth:]))}
