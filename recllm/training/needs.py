"""GRPO for the needs model, from patterns to delivered folder: the curriculum's answers, on TRL's trainer as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.metrics.bootstrap import flat_gain
from recllm.needs.asking import Asking, references
from recllm.needs.chats import check_stages, needs_given
from recllm.needs.curriculum import Curriculum, Pick, Plan
from recllm.needs.encoders import named_encoder
from recllm.needs.patterns import Patterns
from recllm.needs.rewards import TERMS, Judge, NeedReward, Places, Values
from recllm.needs.schema import STAGES, ServiceNames
from recllm.needs.vocabulary import NeedsVocabulary
from recllm.provenance import RunRecord
from recllm.sid.table import SidTable
from recllm.training.callbacks import ZERO_VARIANCE, Alarm
from recllm.training.greedy import greedy_replies
from recllm.training.needs_rollout import STEPS_FILE, Held, NeedsRollout, places
from recllm.training.recommender import Groups, check_settings, make_ready, start_from, train_and_grade

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer, ModelConfig

    from recllm.needs.constrain import AnswerGrammar


@dataclass(frozen=True, eq=False)
class NeedsTask:
    """What a needs model is trained on: the visits of a data set with their patterns, asked about in `stages`.

    `source` is the model's folder, whose vocabulary and SID table say what it may answer.
    """

    source: str
    visits: Visits
    catalog: Catalog
    patterns: Patterns
    vocabulary: NeedsVocabulary
    table: SidTable
    stages: tuple[str, ...]
    all_events: bool = False

    @classmethod
    def load(
        cls, source: str, dataset: str | Path, patterns: str | Path, stages: Sequence[str], all_events: bool = False
    ) -> NeedsTask:
        """Read the folders.

        Raises:
            ValueError: the model's vocabulary is of another data set, or an unknown stage.
        """
        visits, catalog = Visits.load(dataset), Catalog.load(dataset)
        vocabulary, table = NeedsVocabulary.load(source), SidTable.load(Path(source) / "sid_table")
        vocabulary.check(visits, catalog)
        found = Patterns.load(patterns, visits)
        return cls(source, visits, catalog, found, vocabulary, table, check_stages(stages), all_events)

    @cached_property
    def places(self) -> Places:
        """The candidates."""
        return self.vocabulary.places(self.catalog)

    @cached_property
    def asking(self) -> Asking:
        """Who writes the prompts."""
        return Asking(self.visits, self.places, ServiceNames(self.table))

    @cached_property
    def events(self) -> pl.DataFrame:
        """The visits that are learned from; see `references`."""
        return references(self.visits, self.patterns, self.places, "fit", self.all_events)

    def ask(self, row: int, stage: str, need: str, need_type: str) -> list[dict[str, str]]:
        """The prompt about a visit, which tells the need to a model that never learns to say it."""
        return self.asking.chat(row, stage, (need, need_type) if needs_given(self.stages) else None)

    def judge(self, encoder: str, semantic: bool = True) -> Judge:
        """The judge of answers, with a frozen encoder, by name (`named_encoder`).

        Raises:
            ValueError: an unknown encoder.
        """
        corpus = [*self.patterns.frame["need"].unique(maintain_order=True), *self.places.categories]
        return Judge(self.places, named_encoder(encoder, corpus), semantic)

    def graded(self, count: int) -> pl.DataFrame:
        """At most `count` validation targets, chosen by a fixed seed: `row`, `target`, `need`, `need_type`."""
        rows = self.places.answerable(self.visits, "validation")
        frame = self.patterns.events[rows].select("need", "need_type")
        frame = frame.with_columns(row=pl.Series(rows), target=pl.Series(self.visits.sequences.items_M[rows]))
        if needs_given(self.stages):
            frame = frame.filter(pl.col("need") != "")
        return frame[np.sort(np.random.default_rng(1).permutation(frame.height)[:count])]


@dataclass(frozen=True)
class StageReward:
    """The reward of each completion's stage as TRL calls it. It logs the mean of every stage and of every term, and
    tells the rollout, whose curriculum lives on it."""

    reward: NeedReward
    rollout: NeedsRollout

    @property
    def __name__(self) -> str:
        return self.reward.name

    def __call__(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        stage: Sequence[str],
        need: Sequence[str | None],
        target: Sequence[int],
        prompts: Sequence[list] = (),
        asked: Sequence[list] = (),
        log_metric: Any = lambda name, value: None,
        **columns: Any,
    ) -> Values:
        # TRL logs its prompts after the rewards, and knows the numbers of places only: they become what was asked.
        for messages, chat in zip(prompts, asked, strict=bool(asked)):
            messages[:] = chat
        values = self.reward.values(completion_ids, stage, need, target)
        for name in TERMS:
            if known := [value for value in values[name] if value is not None]:
                log_metric(f"terms/{name}/mean", float(np.mean(known)))
        for each in STAGES:
            pairs = zip(values["reward"], stage, strict=True)
            if known := [value for value, at in pairs if at == each and value is not None]:
                log_metric(f"stage_reward/{each}", float(np.mean(known)))
        log_metric("curriculum_stage", float(list(STAGES).index(self.rollout.curriculum.stage)))
        self.rollout.told(stage, values["reward"])
        return values["reward"]


def rounds_of(args: GRPOConfig) -> int:
    """How many times a run draws completions."""
    serves = args.steps_per_generation * getattr(args, "num_iterations", 1)
    return math.ceil(args.max_steps * args.gradient_accumulation_steps / serves)


def build_needs_trainer(
    task: NeedsTask,
    training_args: GRPOConfig,
    model_args: ModelConfig,
    judge: Judge,
    need_tokens: int,
    **plan: Any,
) -> GRPOTrainer:
    """A GRPOTrainer whose completions are answers in the grammar of the stage that the curriculum is in.

    need_tokens: tokens of a need at most. plan: options of `Plan`.

    Raises:
        ValueError: a setting that the draw cannot honour, a plan that cannot be, no event to learn from, or a model
            whose answers do not end as the grammar's do.
    """
    from trl import GRPOTrainer

    check_settings(training_args, Groups("independent"), len(task.table))
    start = start_from(model_args, training_args, task.table)
    if list(start.end) != [start.tokenizer.eos_token_id]:
        raise ValueError("the model's chat template ends no answer, and a grammar's answers end: use another template")
    grammars = task.vocabulary.grammars(start.tokenizer, task.table, need_tokens)
    rollout = make_rollout(task, training_args, grammars, plan)
    # Divisor of the dr_grpo loss.
    training_args.max_completion_length = max(grammars[stage].longest for stage in task.stages)
    training_args.shuffle_dataset = False
    count = rollout.curriculum.plan.rounds * rollout.curriculum.plan.prompts
    trainer = GRPOTrainer(
        model=start.model,
        reward_funcs=[StageReward(NeedReward("reward", start.tokenizer, task.asking.names, judge), rollout)],
        args=training_args,
        train_dataset=places(count),
        processing_class=start.tokenizer,
        rollout_func=rollout,
        peft_config=start.peft,
        callbacks=[Alarm(ZERO_VARIANCE)],
    )
    make_ready(trainer)
    return trainer


def make_rollout(
    task: NeedsTask, args: GRPOConfig, grammars: Mapping[str, AnswerGrammar], plan: Mapping[str, Any]
) -> NeedsRollout:
    """The rollout of a run with its curriculum; `plan` are options of `Plan`.

    Raises:
        ValueError: no event to learn from, or a plan that cannot be.
    """
    if args.max_steps < 1 or not task.events.height:
        raise ValueError(
            f"max_steps={args.max_steps} must be at least 1, and {task.events.height} events are there to learn from: "
            "targets of the fold fit that a pattern explains"
        )
    events = {name: task.events[name].to_list() for name in task.events.columns}
    prompts = args.generation_batch_size // args.num_generations
    known = Plan(rounds_of(args), prompts, task.stages, seed=args.seed, **plan)

    def ask(pick: Pick) -> list[dict[str, str]]:
        row, need, need_type = (events[name][pick.event] for name in ("row", "need", "need_type"))
        return task.ask(row, pick.stage, need, need_type)

    curriculum = Curriculum(known, np.array(events["typicality"]))
    return NeedsRollout(curriculum, ask, events, grammars, Path(args.output_dir) / STEPS_FILE)


def graded_values(
    model: Any, grammar: AnswerGrammar, task: NeedsTask, graded: pl.DataFrame, reward: NeedReward
) -> dict[str, Values]:
    """The terms of greedy answers in the last of the task's stages, and their `reward`, about the `graded` rows."""
    stage, tokenizer = task.stages[-1], reward.tokenizer
    fields = [graded[name].to_list() for name in ("row", "need", "need_type", "target")]
    chats = [task.ask(row, stage, need, kind) for row, need, kind, _ in zip(*fields, strict=True)]

    def options(count: int) -> dict[str, Any]:
        held = Held([grammar] * count)
        return {"max_new_tokens": grammar.longest, "pad_token_id": grammar.end, "logits_processor": [held]}

    answers = greedy_replies(model, tokenizer, chats, options)
    return reward.values(answers, [stage] * len(chats), fields[1], fields[3])


def gains(before: Mapping[str, Values], after: Mapping[str, Values]) -> dict[str, float]:
    """Flat means of the reward and its terms before and after with intervals, over the rows that each applies to."""
    metrics: dict[str, float] = {"validation/graded_targets": len(after["reward"])}
    for name in ("reward", *TERMS):
        pairs = [(b, a) for b, a in zip(before[name], after[name], strict=True) if a is not None and b is not None]
        if pairs:
            before_E, after_E = np.array(pairs, dtype=np.float64).T
            metrics |= flat_gain("validation", name, before_E, after_E)
    return metrics


def train_needs(
    trainer: GRPOTrainer, record: RunRecord, task: NeedsTask, graded: pl.DataFrame, judge: Judge
) -> dict[str, Any]:
    """Train and deliver merged weights; returns the metrics, on the main process only.

    `validation/before_*`, `after_*` and `gain_*` are of greedy answers (`graded_values`), and `promotion/STAGE/*` says
    in which round a stage began, whether by the threshold, and the average reward that it left behind.
    """
    rollout, reward = trainer.rollout_func, NeedReward("reward", trainer.processing_class, task.asking.names, judge)
    grammar = rollout.grammars[task.stages[-1]]

    def grade(model: Any) -> dict[str, Values]:
        return graded_values(model, grammar, task, graded, reward)

    metrics = train_and_grade(trainer, record, task.source, grade, ("reward",), gain=gains)
    if not metrics:
        return {}
    for promotion in rollout.curriculum.promotions:
        told = {"round": promotion.round, "by_threshold": int(promotion.by_threshold), "mean": promotion.mean}
        metrics |= {f"promotion/{promotion.stage}/{name}": value for name, value in told.items()}
    return {"events": task.events.height, **metrics}
