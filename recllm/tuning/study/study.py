"""A study in a folder: it may be killed at any point and given to several workers, and runs no finished trial twice.

`study.json` says what is tuned on what and by whom, and a worker that would do otherwise does not join. The journal is
the only thing that a study is resumed from. With one worker a study that was killed ends as one that never was.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from recllm.machine import device_name, git, versions
from recllm.provenance import read_json, write_json
from recllm.tuning.language.proposer import Proposed
from recllm.tuning.study.agent import Agent, Chooser, Evaluate
from recllm.tuning.study.journal import Journal, Planned
from recllm.tuning.study.noise import epsilon_of
from recllm.tuning.study.trial import LEAST_EPSILON, History, Trial
from recllm.tuning.trials.finalize import is_sealed

logger = logging.getLogger(__name__)
STUDY_FILE = "study.json"
REPEATS = 2
_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A planned trial that this worker runs; `claim` is closed when it is done."""

    journal: Journal
    planned: Planned
    claim: ExitStack


@dataclass(frozen=True)
class Study:
    """One study and a worker on it.

    Args:
        folder: of the study. agent: the rules of the game. chooser: who chooses. evaluate: what runs a trial.
        seed: of the trials.
        repeats: further seeds of the default from which the noise of a score is told; they are no trials of the budget.
        epsilon: known noise threshold; None measures it by the repeats.
        facts: plain values of which study.json is to say that all workers agree, such as fingerprints of the data.

    Raises:
        ValueError: no repeat, and no epsilon either.
    """

    folder: Path
    agent: Agent
    chooser: Chooser
    evaluate: Evaluate
    seed: int = 0
    repeats: int = REPEATS
    epsilon: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epsilon is None and self.repeats < 1:
            raise ValueError("repeats must be at least 1: without a second seed nobody knows how large noise is")

    def run(self) -> History:
        """Run trials until the budget is spent, by this worker or by others, and return the study's history.

        Raises:
            ValueError: the folder holds another study, or this one grown after its test was read.
        """
        self.open()
        while not self._finished():
            job = self._take()
            if job is None:
                time.sleep(_WAIT_SECONDS)
                continue
            with job.claim:
                self._do(job)
        return self.history()

    def open(self) -> None:
        """Write down what the study is, or see that it is what was written down. A budget may grow.

        Raises:
            ValueError: as `run`.
        """
        path, here = self.folder / STUDY_FILE, self._description()
        with self._trials.alone("open"):
            known = read_json(path) if path.exists() else here | {"made_with": []}
            if not path.exists() and self._trials.planned():
                raise ValueError(f"{path} is missing and the journal has trials: nothing says of what; start elsewhere")
            for name in here:
                if name != "budget" and known.get(name) != here[name]:
                    raise ValueError(
                        f"{path}: {name} was {_short(known.get(name))} and is {_short(here[name])} now: that is "
                        "another study; go on as before, or start it in another folder"
                    )
            if here["budget"] < known["budget"]:
                raise ValueError(f"{path}: the budget was {known['budget']} trials; it may grow, not shrink")
            if here["budget"] != known["budget"] and not is_sealed(self.folder):
                raise ValueError(f"{path}: the study's test was read after {known['budget']} trials; it has no more")
            made = {"versions": versions(), "git_sha": git("rev-parse", "HEAD"), "device": device_name()}
            made_with = known["made_with"] if made in known["made_with"] else [*known["made_with"], made]
            write_json(path, known | {"budget": here["budget"], "made_with": made_with})

    def _description(self) -> dict[str, Any]:
        space, agent = self.agent.space, self.agent
        plain = {
            **{"space": space.name, "recipe": space.recipe, "fixed": dict(space.fixed)},
            "schema": space.schema(described=False),  # its wording does not make another study
            **{"limits": asdict(space.limits), "data": dict(agent.data), "proposer": self.chooser.name},
            **{"seed": self.seed, "choice_seed": agent.seed, "budget": agent.budget},
            **{"repeats": self.repeats if self.epsilon is None else 0, "epsilon": self.epsilon},
            **{"memory": agent.memory is not None, "reflect": agent.reflect, "coverage": agent.coverage},
            **self.facts,
        }
        return json.loads(json.dumps(plain))

    @cached_property
    def _trials(self) -> Journal:
        return Journal(self.folder, self.agent.space)

    @cached_property
    def _noise(self) -> Journal:
        return Journal(self.folder, self.agent.space, "noise")

    def history(self) -> History:
        """What the study knows now."""
        running = tuple(self.agent.space.key(planned.proposed.config) for planned in self._trials.running())
        ended = tuple(self._trials.ended())
        return History(self.agent.space, ended, self._epsilon(ended), running)

    def noise(self) -> list[Trial]:
        """The repeats of the default with other seeds."""
        return self._noise.ended()

    def _epsilon(self, ended: tuple[Trial, ...]) -> float:
        if self.epsilon is not None:
            return self.epsilon
        scores = [trial.outcome.score for trial in (*ended[:1], *self.noise()) if trial.outcome.ok]
        return epsilon_of(scores) if len(scores) > 1 else LEAST_EPSILON

    def _finished(self) -> bool:
        return len(self._trials.ended()) >= self.agent.budget and not self._noise.running()

    def _take(self) -> Job | None:
        """What this worker should run: what a dead one left, else what is planned now; None: wait for others."""
        journals = (self._trials, self._noise)
        with self._trials.alone("end"):
            for journal in journals:
                journal.mend()
        with self._trials.alone("plan"):
            for journal in journals:
                for planned in journal.running():
                    if claim := journal.claim(planned):
                        return Job(journal, planned, claim)
            if (found := self._plan()) is None:
                return None
            journal, planned = found
            claim = journal.claim(planned)
            return None if claim is None else Job(journal, planned, claim)

    def _plan(self) -> tuple[Journal, Planned] | None:
        """Plan a trial: the default and its repeats, which may run at once, and when they have ended all others."""
        if not is_sealed(self.folder):
            raise ValueError(f"{self.folder}: the study's test was read; it has no more trials")
        number, repeat = self._trials.planned(), self._noise.planned()
        if number and self.epsilon is None and repeat < self.repeats:
            again = Proposed(None, self.agent.space.default, "default", (), ())
            return self._noise, self._noise.plan(self.seed + 1 + repeat, again, None)
        if number >= self.agent.budget or (number and not self._trials.ended()) or self._noise.running():
            return None
        history = self.history()
        proposed = self.agent.opening(history) if not number or history.trials else None
        if proposed is None:
            situation = self.agent.situation(history)
            (proposed,) = self.chooser.choose([situation], [self.agent.seed_of(number)])
        return self._trials, self._trials.plan(self.seed, proposed, self.agent.parent_of(history, proposed))

    def _do(self, job: Job) -> None:
        planned, journal = job.planned, job.journal
        outcome = journal.outcome_of(planned)
        if outcome is None:
            outcome = self.evaluate(planned.proposed.config, planned.seed)
            journal.ran(planned, outcome)
        with self._trials.alone("end"):
            if journal is self._noise:
                if not outcome.ok:
                    logger.warning("noise is told without seed %d: %s", planned.seed, outcome.status)
                journal.end(Trial(planned.number, "default", outcome))
                return
            history = self.history()
            trial = self.agent.judge(history, planned.proposed, outcome, planned.number, planned.parent)
            if trial.reflection is not None:
                seed = self.agent.seed_of(trial.number, "reflection")
                (trial,) = self.chooser.reflect([self.agent.situation(history)], [trial], [seed])
            journal.end(trial)
        _log(trial, history)


def _log(trial: Trial, history: History) -> None:
    said = trial.proposal
    what = f"{said.changed_dimension} = {said.value}" if said else trial.source
    score = f"{trial.outcome.score:.4f}" if trial.outcome.ok else trial.outcome.status
    logger.info("trial %d: %s: %s%s", trial.number, what, score, ", kept" if trial.kept else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
