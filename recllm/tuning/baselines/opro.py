"""A language model as an optimizer after OPRO (arXiv 2309.03409): shown the best trials with their scores, worst first,
it writes the next whole configuration. No reflection, no memory, no rule of coverage, no single changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.tuning.language.proposer import Proposed
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.proposal import MOST_REPLY, first_object
from recllm.tuning.study.trial import History, Situation, Trial

if TYPE_CHECKING:
    from recllm.tuning.language.language import Ask, LanguageModel

SHOWN = 20  # trials, as the paper shows
_DRAWS = 200
_TASK = (
    "You choose hyper-parameters of a sequential recommender. Below are configurations with their validation NDCG@10 "
    "in percent of the default's, from worst to best. Write a new configuration, unlike all of them, that scores "
    "higher. Reply with one JSON object that has all of the keys."
)


@dataclass(frozen=True)
class Opro:
    """Chooses whole configurations by a model; what it says that is illegal or was run becomes one drawn at random."""

    model: LanguageModel

    @property
    def name(self) -> str:
        return f"opro:{self.model.name}"

    def choose(self, situations: Sequence[Situation], seeds: Sequence[int]) -> list[Proposed]:
        """As `recllm.tuning.study.agent.Chooser.choose`."""
        asks = [opro_ask(situation.history, seed) for situation, seed in zip(situations, seeds, strict=True)]
        replies = self.model.reply(asks)
        return [
            _proposed(situation.history, seed, reply)
            for situation, seed, reply in zip(situations, seeds, replies, strict=True)
        ]

    def reflect(self, situations: Sequence[Situation], trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
        """The trials as they are."""
        return list(trials)


def opro_ask(history: History, seed: int) -> Ask:
    """What the model is asked: the best trials that ended well, worst first, and the axes with what is legal."""
    from recllm.tuning.language.language import Ask

    space = history.space
    ended = sorted((trial for trial in history.trials if trial.outcome.ok), key=lambda trial: trial.outcome.score)
    base = next((trial.outcome.score for trial in history.trials if trial.outcome.ok), 1.0)
    lines = [f"{json.dumps(dict(t.config))} score {100 * t.outcome.score / (base or 1.0):.1f}" for t in ended[-SHOWN:]]
    axes = []
    for axis in space.axes:
        where = f", only where {' or '.join(condition.told for condition in axis.when)}" if axis.when else ""
        axes.append(f"- {axis.name}: {axis.argument.help} {axis.legal}{where}")
    told = "\n".join([_TASK, "", "Keys:", *axes, "", "Configurations:", *lines])
    return Ask(({"role": "user", "content": told},), opro_schema(space), seed)


def opro_schema(space: Space) -> dict[str, Any]:
    """JSON Schema of a reply: every axis, for few constrained decoders know conditions; silent ones are dropped."""
    told = space.schema()
    del told["allOf"]
    return told | {"required": list(told["properties"])}


def _proposed(history: History, seed: int, reply: str) -> Proposed:
    config = read_configuration(history, reply)
    if config is not None:
        return Proposed(None, config, "model", (), (reply,))
    rng = np.random.default_rng(seed)
    config = history.untried(lambda: history.space.sample(rng), _DRAWS)
    return Proposed(None, config, "random", (), (reply,))


def read_configuration(history: History, reply: str) -> dict[str, Any] | None:
    """The configuration that a reply says, without the axes that do not matter and with the default of those left out.

    None where a key or a value is not legal, or a trial has run it.
    """
    if not isinstance(reply, str) or len(reply) > MOST_REPLY:
        return None
    said, space = first_object(reply), history.space
    if said is None or any(name not in space.by_name for name in said):
        return None
    config: dict[str, Any] = {}
    try:
        for axis in space.axes:
            if axis.active(config):
                config[axis.name] = axis.check(said.get(axis.name, axis.default))
    except ValueError:
        return None
    return None if space.key(config) in history.tried else config
