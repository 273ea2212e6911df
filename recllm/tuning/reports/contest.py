"""Tuners on measured surfaces at one budget over many seeds: the studies, and what is counted of them.

Every study begins with the default configuration. A surface answers for a configuration that was not measured by its
nearest measured one, for every tuner alike.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recllm.tuning.baselines.suggesters import alternating, suggester
from recllm.tuning.baselines.turns import Config
from recllm.tuning.memory.cognition import summarise
from recllm.tuning.memory.memory import Memory
from recllm.tuning.study.agent import Agent, Chooser, StudyRun, run_many
from recllm.tuning.study.choosers import SamplerChooser, SurfaceTrials
from recllm.tuning.study.export import model_share
from recllm.tuning.study.trial import History
from recllm.tuning.trials.surface import Surface

WARM = 3  # best configurations of each other data set
Past = Literal["none", "studies", "surfaces"]


@dataclass(frozen=True)
class Contest:
    """The surfaces by name, and what all studies on them have in common.

    Args:
        seeds: studies of a tuner on a surface. budget: trials of a study.
    """

    surfaces: dict[str, Surface]
    seeds: int
    budget: int
    _past: dict[Any, list[History]] = field(default_factory=dict)

    def others(self, name: str) -> dict[str, Surface]:
        """The surfaces of the same backbone on other data sets."""
        mine = self.surfaces[name].provenance
        return {
            other: surface
            for other, surface in self.surfaces.items()
            if surface.provenance["backbone"] == mine["backbone"] and surface.provenance["dataset"] != mine["dataset"]
        }

    def studies(self, name: str, choosers: Sequence[Chooser], **switches: Any) -> list[History]:
        """Studies of a surface, one a seed; `choosers` has one for all of them or one each.

        `memories` among the switches has a study's memory each; the others are `Agent`'s.
        """
        surface, memories = self.surfaces[name], switches.pop("memories", [None] * self.seeds)
        runs = [
            StudyRun(
                Agent(surface.space, surface.data, self.budget, seed, memory=memories[seed], **switches),
                SurfaceTrials(surface),
                epsilon=surface.epsilon,
            )
            for seed in range(self.seeds)
        ]
        if len(choosers) == 1:
            run_many(runs, choosers[0])
        else:
            for run, chooser in zip(runs, choosers, strict=True):
                run_many([run], chooser)
        return [run.history for run in runs]

    def sampled(self, name: str, method: str, past: Past = "none") -> list[History]:
        """A sampler's studies of a surface.

        With a `past` it tries the best configurations of the other data sets after the default, the best of each
        first: those of their whole surfaces, or those of its own studies there.
        """
        starts: list[Sequence[Config]] = [()] * self.seeds
        if past == "surfaces":
            starts = [alternating([other.best(WARM) for other in self.others(name).values()])] * self.seeds
        elif past == "studies":
            known = [self._remembered((method, other), self.sampled, other, method) for other in self.others(name)]
            starts = [alternating([_best(history) for history in histories]) for histories in zip(*known, strict=True)]
        choosers = [SamplerChooser(suggester(method, seed, start)) for seed, start in enumerate(starts)]
        return self.studies(name, choosers, reflect=False, coverage=False)

    def proposed(self, name: str, chooser: Chooser, past: Past = "none", reflect: bool = True) -> list[History]:
        """An agent's studies of a surface, with memory of its own studies of the other data sets, or of their whole
        surfaces, or without; `reflect` is for the studies of this surface alone."""
        if past == "none":
            return self.studies(name, [chooser], reflect=reflect)
        others = self.others(name)
        if past == "surfaces":
            known = [[whole(surface)] for surface in others.values()]
        else:
            known = [self._remembered((chooser.name, other), self.proposed, other, chooser) for other in others]
        with ExitStack() as stack:
            memories = []
            for seed in range(1 if past == "surfaces" else self.seeds):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-"))
                memories.append(Memory(Path(folder)))
                for (other, surface), histories in zip(others.items(), known, strict=True):
                    memories[-1].learn(summarise(other, histories[seed], surface.data))
            # Whole surfaces are the same for all.
            memories = memories if len(memories) == self.seeds else memories * self.seeds
            return self.studies(name, [chooser], reflect=reflect, memories=memories)

    def _remembered(self, key: Any, run: Callable[..., list[History]], *words: Any) -> list[History]:
        if key not in self._past:
            self._past[key] = run(*words)
        return self._past[key]


@dataclass(frozen=True)
class Dice:
    """A language model that says nothing, so that each of its proposals is a random legal change."""

    name: str = "dice"
    style: Literal["full", "brief"] = "brief"

    def reply(self, asks: Sequence[Any]) -> list[str]:
        return [""] * len(asks)


def whole(surface: Surface) -> History:
    """All rows of a surface as a study's history, the default first."""
    outcomes = [surface.outcome(row) for row in range(len(surface))]
    default = surface.space.key(surface.space.default)
    outcomes.sort(key=lambda outcome: (outcome.key != default, outcome.key))
    return History.sampled(surface.space, outcomes, surface.epsilon)


def counted(surface: Surface, histories: Iterable[History], shares: Sequence[float]) -> list[dict[str, Any]]:
    """A plain row a study: its scores (0 for a failed trial), which source chose each trial, and at its end the
    share of the surface's best score that it lacks and the gain of test NDCG@10 over the default's."""
    best, rows = surface.lookup(surface.best(1)[0]).outcome.score, []
    for history in histories:
        scores_T = [trial.outcome.counted for trial in history.trials]
        ended = max(history.trials, key=lambda trial: trial.outcome.score)
        rows.append(
            {
                "scores": scores_T,
                "sources": [trial.source for trial in history.trials],
                "targets": [surface.target(share) for share in shares],
                "lacks": 1 - max(scores_T) / best,
                "test_gain": _test(surface, ended.config) / _test(surface, history.space.default) - 1,
            }
        )
    return rows


def share_of_model(rows: Iterable[dict[str, Any]]) -> float | None:
    """`model_share` over all rows."""
    return model_share(Counter(source for row in rows for source in row["sources"]))


def _best(history: History) -> list[Config]:
    ranked = sorted(history.trials, key=lambda trial: (-trial.outcome.score, trial.number))
    return list({trial.outcome.key: trial.config for trial in ranked if trial.outcome.ok}.values())[:WARM]


def _test(surface: Surface, config: Config) -> float:
    return surface.test_metrics(surface.lookup(config).outcome.key)["test/ndcg@10"]
