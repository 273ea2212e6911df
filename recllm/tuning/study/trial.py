"""A study's memory of itself: its trials in the order in which they ended, and which configuration it stands on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

from recllm.tuning.spaces.space import Space
from recllm.tuning.study.proposal import Proposal, Refusal, listed_values
from recllm.tuning.study.reflection import Reflection
from recllm.tuning.trials.runner import Outcome

# default: the plain baseline. memory: where an earlier study's summary says to begin. model: what the proposer said;
# repaired: at its second try; random: drawn because the proposer gave nothing legal. sampler: of a baseline.
Source = Literal["default", "memory", "model", "repaired", "random", "sampler"]
SOURCES: tuple[str, ...] = get_args(Source)
LEAST_EPSILON = 1e-4


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    Args:
        number: 0 for the first. source: who chose the configuration.
        proposal: what a proposer said; None for other sources. parent: number of the trial whose configuration it
            changed. refusals: of replies before it.
        reflection: after the trial; None where the study does without. kept: whether the study stands on it afterwards.
    """

    number: int
    source: Source
    outcome: Outcome
    proposal: Proposal | None = None
    parent: int | None = None
    refusals: tuple[Refusal, ...] = ()
    reflection: Reflection | None = None
    kept: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        return self.outcome.config

    def row(self) -> dict[str, Any]:
        """The record as plain JSON values, which `of_row` reads."""
        plain = {
            "number": self.number,
            "source": self.source,
            "parent": self.parent,
            "kept": self.kept,
            "proposal": self.proposal.row() if self.proposal else None,
            "refusals": [[refusal.reason, refusal.words] for refusal in self.refusals],
            "outcome": self.outcome.row(),
            "reflection": self.reflection.row() if self.reflection else None,
        }
        return json.loads(json.dumps(plain))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Trial:
        """The trial of a record."""
        return cls(
            row["number"],
            row["source"],
            Outcome(**row["outcome"]),
            Proposal(**row["proposal"]) if row["proposal"] else None,
            row["parent"],
            tuple(Refusal(*refusal) for refusal in row["refusals"]),
            Reflection.of_row(row["reflection"]) if row["reflection"] else None,
            row["kept"],
        )


@dataclass(frozen=True)
class History:
    """The finished trials of a study.

    Args:
        epsilon: how much better a score must be to count as better: max(1e-4, kappa times the standard deviation of the
            default over seeds) (methods 1.3).
        running: keys of the configurations that other workers run now.
    """

    space: Space
    trials: tuple[Trial, ...] = ()
    epsilon: float = LEAST_EPSILON
    running: tuple[str, ...] = ()

    @property
    def best(self) -> Trial | None:
        """What the study stands on: the last trial that was kept."""
        return next((trial for trial in reversed(self.trials) if trial.kept), None)

    @cached_property
    def standing(self) -> Trial | None:
        """The trial that the next proposal changes; None before anything was kept.

        Noise cannot tell the best from what scored within epsilon of it, so the one of these that fewest trials changed
        has its turn. Where every single change of them was tried, it is the highest scored one of which a change is
        left; the best where none is.
        """
        best, changed = self.best, Counter(trial.parent for trial in self.trials)
        if best is None:
            return None
        ended = sorted((trial for trial in self.trials if trial.outcome.ok), key=lambda trial: -trial.outcome.score)
        alike = [trial for trial in ended if trial.outcome.score >= self.best_score - self.epsilon]
        if turns := [trial for trial in alike if self._has_change_left(trial.config)]:
            return min(turns, key=lambda trial: (changed[trial.number], trial is not best))
        return next((trial for trial in ended if self._has_change_left(trial.config)), best)

    def _has_change_left(self, config: Mapping[str, Any]) -> bool:
        for name, value in config.items():
            values = listed_values(self.space.by_name[name])
            if not values or any(v != value and not self.leads_back(config, name, v) for v in values):
                return True
        return False

    def leads_back(self, config: Mapping[str, Any], name: str, value: Any) -> bool:
        """Whether the change of an axis leads to a configuration that was run or is being run."""
        return self.space.key_after(config, name, value) in self.tried

    def untried(self, draw: Callable[[], dict[str, Any]], draws: int) -> dict[str, Any]:
        """The first drawn configuration that was not tried; after so many draws whatever was drawn last."""
        for _ in range(draws):
            config = draw()
            if self.space.key(config) not in self.tried:
                break
        return config

    @property
    def present(self) -> Mapping[str, Any]:
        """The configuration that a proposal changes: that of `standing`, the default before anything was kept."""
        return self.standing.config if self.standing else self.space.default

    @property
    def best_score(self) -> float:
        """The highest score of all trials, kept or not; minus infinity where none ended well."""
        return max((trial.outcome.score for trial in self.trials), default=-math.inf)

    @cached_property
    def tried(self) -> frozenset[str]:
        """Keys of the configurations that were run or are being run."""
        return frozenset(trial.outcome.key for trial in self.trials) | frozenset(self.running)

    def keeps(self, outcome: Outcome) -> bool:
        """Whether the study should stand on this outcome: better by more than epsilon, or a tie with fewer parameters.

        A tie is compared with the best score of all trials, so that ties cannot add up to a loss.
        """
        if not outcome.ok:
            return False
        best = self.best
        if best is None:
            return True
        if outcome.score > best.outcome.score + self.epsilon:
            return True
        smaller = (outcome.parameters or math.inf) < (best.outcome.parameters or math.inf)
        return smaller and outcome.score >= self.best_score - self.epsilon

    @classmethod
    def sampled(cls, space: Space, outcomes: Iterable[Outcome], epsilon: float) -> History:
        """The history of outcomes that nobody proposed, the default's first."""
        history = cls(space, epsilon=epsilon)
        for number, outcome in enumerate(outcomes):
            source = "sampler" if number else "default"
            history = history.with_trial(Trial(number, source, outcome, kept=history.keeps(outcome)))
        return history

    def with_trial(self, trial: Trial) -> History:
        """The history one trial later."""
        return replace(self, trials=(*self.trials, trial))

    def parent(self, trial: Trial) -> Trial | None:
        """The trial whose configuration a trial changed."""
        return next((other for other in self.trials if other.number == trial.parent), None)

    def delta(self, trial: Trial) -> float | None:
        """How much a proposed trial's score changed from its parent's; None without a parent or where either failed."""
        parent = self.parent(trial)
        if parent is None or not (parent.outcome.ok and trial.outcome.ok):
            return None
        return trial.outcome.score - parent.outcome.score


@dataclass(frozen=True)
class Situation:
    """All that a proposer is shown.

    Args:
        data: descriptors of the data set, by name (see `recllm.tuning.memory.descriptors`). left: trials that may
        follow.
        rules: texts of the long-term rules that apply here, best first. gains: all that memory expects of single
            changes, as (axis, value, share of the present score gained), the most promising first. prior: the cognition
            summary of earlier studies, as text; empty without memory. masked: axes that the coverage rule closes for
            this proposal.
    """

    history: History
    data: Mapping[str, float]
    left: int
    rules: tuple[str, ...] = ()
    gains: tuple[tuple[str, Any, float], ...] = ()
    prior: str = ""
    masked: frozenset[str] = field(default_factory=frozenset)
