"""Rollouts of a needs model: answers drawn under a stage's grammar, about the visits that the curriculum picks.

TRL lays out its prompts before it trains, and which prompt a step is to see depends on rewards that come later. So the
trainer's data set has numbered places alone (`places`), and what stands in a place is decided here, when its
completions are drawn: all that TRL makes of a prompt, it makes of what a rollout returns. The curriculum's state is
the rollout's, which checkpoints keep beside the buffer of completions, so TRL's skipping of batches on a resume skips
places and nothing else.

The answers of a group are drawn side by side after one reading of their prompt. A token that the grammar forced was not
drawn, so it is masked (`env_mask` 0) and teaches nothing. TRL's loss takes log-probabilities over the whole vocabulary,
the draw those over the open tokens.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig, LogitsProcessor

from recllm.data.prompts import user
from recllm.needs.constrain import AnswerGrammar, State
from recllm.needs.curriculum import Curriculum, Pick
from recllm.training.prefix.generation import draw_shared
from recllm.training.recommender_rollout import decoding, group_prompts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel
    from trl import GRPOTrainer

logger = logging.getLogger(__name__)

STEPS_FILE = "steps.jsonl"
_COLUMNS = ("stage", "row", "need", "target", "typicality")


def places(count: int) -> Dataset:
    """The trainer's data set: `count` prompts, each the number of a place."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [[user(str(place))] for place in range(count)]})


class Held(LogitsProcessor):
    """Closes all tokens but those that may follow in each row's grammar. Each call's rows are one token longer."""

    def __init__(self, grammar_R: Sequence[AnswerGrammar]) -> None:
        self.grammar_R = list(grammar_R)
        self.state_R: list[State] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.state_R is None:
            self.state_R = [State()] * len(self.grammar_R)
        else:
            last_R = input_ids[:, -1].tolist()
            self.state_R = [
                grammar.step(state, token)
                for grammar, state, token in zip(self.grammar_R, self.state_R, last_R, strict=True)
            ]
        open_R = [grammar.allowed(state) for grammar, state in zip(self.grammar_R, self.state_R, strict=True)]
        count_R = torch.tensor([len(tokens) for tokens in open_R])
        row_F = torch.repeat_interleave(torch.arange(len(open_R)), count_R).to(scores.device)
        token_F = torch.cat(open_R).to(scores.device)
        closed_RV = torch.full_like(scores, float("-inf"))
        closed_RV[row_F, token_F] = scores[row_F, token_F]
        return closed_RV


def draw_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    grammar_R: Sequence[AnswerGrammar],
    temperature: float = 1.0,
) -> list[list[int]]:
    """Tokens of one answer after each prompt, its end included; equal prompts are read once."""
    end = grammar_R[0].end
    config = GenerationConfig(
        max_new_tokens=max(grammar.longest for grammar in grammar_R),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        eos_token_id=end,
        pad_token_id=end,
    )
    return [ids[: ids.index(end) + 1] for ids in draw_shared(model, prompts, config, Held(grammar_R))]


@dataclass
class NeedsRollout:
    """A `rollout_func` for GRPOTrainer.

    `ask` writes the prompt of a pick; `events` are the columns `row`, `need`, `target` and `typicality` of the events
    that picks number. Returns `prompt_ids`, `completion_ids`, `logprobs` (0: the loss computes its own), `env_mask`,
    and for the rewards `stage`, `row`, `need`, `target`, `typicality` and `asked`, the chat. Draws come from torch's
    generator, whose state is part of a checkpoint.

    Rewards that are handed to `told` promote the curriculum when the next round begins. What every round asked stands
    in a line of `record`, from which a resumed run drops the rounds that its checkpoint does not know.
    """

    curriculum: Curriculum
    ask: Callable[[Pick], list[dict[str, str]]]
    events: Mapping[str, Sequence[Any]]
    grammars: Mapping[str, AnswerGrammar]
    record: Path
    _told: list[tuple[str, float]] = field(default_factory=list, init=False)
    _cut: bool = field(default=False, init=False)

    def told(self, stages: Sequence[str], rewards: Sequence[float | None]) -> None:
        """Take in the rewards of this process's completions; None is no reward."""
        pairs = zip(stages, rewards, strict=True)
        self._told += [(stage, float(reward)) for stage, reward in pairs if reward is not None]

    def settle(self) -> None:
        """Let the rewards of the last round count; every process calls it."""
        told, self._told = gather_object(self._told), []
        if told and (promotion := self.curriculum.observe(told)):
            why = "its threshold" if promotion.by_threshold else "the cap"
            logger.info("round %d: stage %s begins, by %s", promotion.round, promotion.stage, why)

    def __call__(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> dict[str, list]:
        if not trainer.model.training:
            raise RuntimeError("the curriculum lays out training alone: leave eval_dataset and eval_strategy out")
        self.settle()
        picks = self.curriculum.pick()
        groups = group_prompts(prompts, trainer.num_generations, strict=True)
        mine = [picks[int(prompts[members[0]][0]["content"]) % len(picks)] for members in groups]
        self._write(trainer, picks)
        chats = [self.ask(pick) for pick in mine]
        prompt_ids = trainer.processing_class.apply_chat_template(
            chats,
            add_generation_prompt=True,
            return_dict=False,
            **trainer.chat_template_kwargs,
        )
        own = [(i, place) for place, members in enumerate(groups) for i in members]
        grammar_R = [self.grammars[mine[place].stage] for _, place in own]
        with decoding(trainer) as model:
            drawn = draw_answers(model, [prompt_ids[place] for _, place in own], grammar_R, trainer.temperature)
        columns: dict[str, list] = defaultdict(lambda: [None] * len(prompts))
        for (i, place), grammar, tokens in zip(own, grammar_R, drawn, strict=True):
            columns["prompt_ids"][i], columns["completion_ids"][i] = prompt_ids[place], tokens
            columns["logprobs"][i], columns["env_mask"][i] = [0.0] * len(tokens), grammar.drawn(tokens)
            for name, value in {**self._labels(mine[place]), "asked": chats[place]}.items():
                columns[name][i] = value
        return dict(columns)

    def state_dict(self) -> dict[str, Any]:
        """The curriculum's state and the rewards that have not counted yet, for a checkpoint."""
        return {"curriculum": self.curriculum.state_dict(), "told": [list(pair) for pair in self._told]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self.curriculum.load_state_dict(state["curriculum"])
        self._told = [(str(stage), float(reward)) for stage, reward in state["told"]]
        self._cut = False

    def _labels(self, pick: Pick) -> dict[str, Any]:
        return {name: pick.stage if name == "stage" else self.events[name][pick.event] for name in _COLUMNS}

    def _write(self, trainer: GRPOTrainer, picks: list[Pick]) -> None:
        """One line about a round: the step it serves, the stage that is on, and what was asked."""
        if not trainer.is_world_process_zero():
            return
        if not self._cut:
            known = self.record.read_text(encoding="utf-8").splitlines(keepends=True) if self.record.exists() else []
            self.record.write_text("".join(known[: self.curriculum.round - 1]), encoding="utf-8")
            self._cut = True
        labels = [self._labels(pick) for pick in picks]
        line = {"step": trainer.state.global_step, "round": self.curriculum.round - 1, "stage": self.curriculum.stage}
        line |= {f"{name}s": [label[name] for label in labels] for name in ("stage", "row")}
        line["typicality"] = [label["typicality"] for label in labels]
        with self.record.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
