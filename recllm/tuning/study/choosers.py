"""Who chooses the next configuration of a study: a language model, or one of the samplers that it is compared with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recllm.teachers.protocol import TeacherError
from recllm.tuning.language.proposer import Proposed, propose
from recllm.tuning.study.trial import History, Situation, Trial
from recllm.tuning.trials.runner import Outcome

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from recllm.tuning.baselines.suggesters import Suggester
    from recllm.tuning.language.language import LanguageModel
    from recllm.tuning.trials.surface import Surface


@dataclass(frozen=True)
class ModelChooser:
    """Asks a language model for proposals.

    A model that is told situations in full also writes the reflections' words; one that is told them briefly was
    trained to propose, and its reflections are those by the numbers. So are those of a model that cannot be reached:
    a trial that has ended is not given up for its words.
    """

    model: LanguageModel

    @property
    def name(self) -> str:
        return self.model.name

    def choose(self, situations: Sequence[Situation], seeds: Sequence[int]) -> list[Proposed]:
        return propose(self.model, situations, seeds)

    def reflect(self, situations: Sequence[Situation], trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
        if self.model.style == "brief":
            return list(trials)
        from recllm.tuning.language.language import Ask
        from recllm.tuning.language.prompt import reflection_messages
        from recllm.tuning.study.reflection import read_reflection, reflection_schema

        asks = []
        for situation, trial, seed in zip(situations, trials, seeds, strict=True):
            schema = reflection_schema(situation.history, trial)
            messages = reflection_messages(situation, trial, self.model.style, schema["properties"])
            asks.append(Ask(messages, schema, seed))
        try:
            replies = self.model.reply(asks)
        except TeacherError as error:
            logger.warning("no reflection by %s, the numbers' own stands: %s", self.model.name, error)
            return list(trials)
        told = []
        for situation, trial, reply in zip(situations, trials, replies, strict=True):
            found = read_reflection(reply, situation.history, trial)
            told.append(trial if found is None else replace(trial, reflection=found))
        return told


@dataclass(frozen=True)
class SamplerChooser:
    """Asks a sampler, which has its own seed."""

    suggester: Suggester

    @property
    def name(self) -> str:
        return self.suggester.name

    def choose(self, situations: Sequence[Situation], seeds: Sequence[int]) -> list[Proposed]:
        return [self._choice(situation.history) for situation in situations]

    def _choice(self, history: History) -> Proposed:
        number = len(history.trials) + len(history.running)
        return Proposed(None, self.suggester.suggest(history, number), "sampler", (), ())

    def reflect(self, situations: Sequence[Situation], trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
        return list(trials)


@dataclass(frozen=True)
class SurfaceTrials:
    """A measured surface as a function of the configuration: what was not measured scores as the nearest that was
    (see `Surface`), and the outcome is told of the configuration that was asked for."""

    surface: Surface

    def __call__(self, config: Mapping[str, Any], seed: int, /) -> Outcome:
        checked = self.surface.space.check(config)
        outcome = self.surface.lookup(checked).outcome
        return replace(outcome, config=checked, key=self.surface.space.key(checked))
