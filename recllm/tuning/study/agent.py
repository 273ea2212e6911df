"""The tuning agent: what it runs next, what it is shown, and what a trial makes of its study (VirtualMLE, 1.1 and 1.3).

`Agent` is the logic and holds no state: a history goes in, a situation or the next history comes out. Two thin drivers
stand on it: `step_many` here, which lets one chooser answer many studies in a batch, and `recllm.tuning.study.study`,
which writes a study down and shares it between workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from recllm.tuning.language.proposer import Proposed
from recllm.tuning.memory.rules import foremost
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.coverage import masked_axes
from recllm.tuning.study.reflection import measured_reflection
from recllm.tuning.study.trial import History, Situation, Trial
from recllm.tuning.trials.runner import Outcome

if TYPE_CHECKING:
    from recllm.tuning.memory.memory import Memory, Prior

# Chosen with the agent's eyes on one configuration, so that a change can be told from it.
_CHANGES = ("model", "repaired", "random")


class Evaluate(Protocol):
    """Runs a configuration: `TrialRunner.run`, or `SurfaceTrials` for a measured surface."""

    def __call__(self, config: Mapping[str, Any], seed: int, /) -> Outcome: ...


class Chooser(Protocol):
    """Says what to run next, for many studies at once; see `recllm.tuning.study.choosers`."""

    name: str

    def choose(self, situations: Sequence[Situation], seeds: Sequence[int]) -> list[Proposed]:
        """One choice a situation, in order; the same situation and seed give the same choice."""
        ...

    def reflect(self, situations: Sequence[Situation], trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
        """The trials with what the chooser makes of them, where it has something to say; `trials` have ended."""
        ...


@dataclass(frozen=True)
class Agent:
    """A study's rules of the game.

    Args:
        space: what may be run. data: descriptors of the data set. budget: trials in all, the default's included.
        seed: of the choices. memory: of earlier studies; None: the study begins cold.
        reflect: whether a trial is looked back on. coverage: whether axes that were tried often of late are closed.
    """

    space: Space
    data: Mapping[str, float]
    budget: int
    seed: int = 0
    memory: Memory | None = None
    reflect: bool = True
    coverage: bool = True

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"a study has at least 1 trial, the default's; the budget is {self.budget}")

    @cached_property
    def prior(self) -> Prior | None:
        """What earlier studies say before the first trial."""
        return None if self.memory is None else self.memory.prior(self.space, self.data)

    def opening(self, history: History) -> Proposed | None:
        """What is run next without asking: the plain default first, then, before any proposal, where memory begins."""
        if not history.trials:
            return Proposed(None, self.space.default, "default", (), ())
        if self.memory is None or any(trial.source not in ("default", "memory") for trial in history.trials):
            return None
        start = self.memory.next_start(self.space, self.data, history)
        return None if start is None else Proposed(None, dict(start), "memory", (), ())

    def situation(self, history: History) -> Situation:
        """What a proposer is shown."""
        known = [] if self.memory is None else self.memory.weighed(self.space, self.data, history)
        return Situation(
            history,
            self.data,
            left=max(self.budget - len(history.trials) - len(history.running), 0),
            rules=tuple(rule.text for rule in foremost(known, history)),
            gains=tuple((rule.dimension, rule.value, rule.gain) for rule in known),
            prior="" if self.prior is None else self.prior.text,
            masked=masked_axes(history) if self.coverage else frozenset(),
        )

    def seed_of(self, number: int, part: str = "choice") -> int:
        """The seed of a part of a trial: of the study's and the trial's number alone, so that a resumed study chooses
        as one that never stopped."""
        told = f"agent-1 {self.seed} {number} {part}".encode()
        return int.from_bytes(hashlib.sha256(told).digest()[:4], "big") >> 1

    def parent_of(self, history: History, proposed: Proposed) -> int | None:
        """Number of the trial that a choice changes, None where it changes none."""
        if proposed.source not in _CHANGES:
            return None
        # Where nothing ended well the default is changed, which is the first trial.
        return history.standing.number if history.standing is not None else history.trials[0].number

    def judge(self, history: History, proposed: Proposed, outcome: Outcome, number: int, parent: int | None) -> Trial:
        """The record of a trial that has ended: whether the study stands on it, and the reflection by the numbers."""
        trial = Trial(
            number, proposed.source, outcome, proposed.proposal, parent, proposed.refusals, None, history.keeps(outcome)
        )
        if self.reflect and parent is not None:
            trial = replace(trial, reflection=measured_reflection(history, trial))
        return trial

    def absorb(self, history: History, proposed: Proposed, outcome: Outcome) -> History:
        """The history after a choice was run."""
        number = len(history.trials)
        return history.with_trial(self.judge(history, proposed, outcome, number, self.parent_of(history, proposed)))

    def done(self, history: History) -> bool:
        """Whether the budget is spent."""
        return len(history.trials) >= self.budget


@dataclass
class StudyRun:
    """A study in memory, for `step_many`.

    Args:
        seed: of the trials. epsilon: see `History`.
    """

    agent: Agent
    evaluate: Evaluate
    seed: int = 0
    epsilon: float | None = None
    history: History = field(init=False)

    def __post_init__(self) -> None:
        known = {} if self.epsilon is None else {"epsilon": self.epsilon}
        self.history = History(self.agent.space, **known)

    @property
    def done(self) -> bool:
        return self.agent.done(self.history)


def step_many(runs: Sequence[StudyRun], chooser: Chooser) -> int:
    """One trial further in every study that is not done; returns in how many that was.

    The choices of all studies are asked for in one batch, and so are the reflections.
    """
    going = [run for run in runs if not run.done]
    chosen = [run.agent.opening(run.history) for run in going]
    asking = [place for place, known in enumerate(chosen) if known is None]
    situations = [going[place].agent.situation(going[place].history) for place in asking]
    seeds = [going[place].agent.seed_of(len(going[place].history.trials)) for place in asking]
    for place, proposed in zip(asking, chooser.choose(situations, seeds) if asking else (), strict=True):
        chosen[place] = proposed
    for run, proposed in zip(going, chosen, strict=True):
        run.history = run.agent.absorb(run.history, proposed, run.evaluate(proposed.config, run.seed))
    _reflect_many([run for run in going if run.history.trials[-1].reflection is not None], chooser)
    return len(going)


def run_many(runs: Sequence[StudyRun], chooser: Chooser) -> None:
    """`step_many` until all are done."""
    while step_many(runs, chooser):
        pass


def _reflect_many(runs: Sequence[StudyRun], chooser: Chooser) -> None:
    if not runs:
        return
    situations = [run.agent.situation(before(run.history)) for run in runs]
    trials = [run.history.trials[-1] for run in runs]
    seeds = [run.agent.seed_of(trial.number, "reflection") for run, trial in zip(runs, trials, strict=True)]
    for run, trial in zip(runs, chooser.reflect(situations, trials, seeds), strict=True):
        run.history = before(run.history).with_trial(trial)


def before(history: History) -> History:
    """The history one trial earlier."""
    return replace(history, trials=history.trials[:-1])
