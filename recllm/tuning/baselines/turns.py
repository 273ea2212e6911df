"""A suggester and one turn of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from recllm.tuning.spaces.space import Space
from recllm.tuning.study.trial import History

Config = Mapping[str, Any]


class Suggester(Protocol):
    """Says which configuration comes next."""

    name: str

    def suggest(self, history: History, number: int | None = None) -> dict[str, Any]:
        """A legal configuration for trial `number`, by default the one after the history's last.

        Workers that run trials of one study at once pass the number that each has claimed, so that they do not all get
        the same one.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """What a suggestion is made from: the trials so far, the next one's number, how many were planned, the seed.

    `memo` saves work between turns and changes no suggestion.
    """

    history: History
    number: int
    planned: int
    seed: int
    memo: dict[str, Any]

    @property
    def space(self) -> Space:
        return self.history.space

    def rng(self) -> np.random.Generator:
        """The random stream of this trial."""
        return np.random.default_rng((self.seed, self.number))

    def untried(self, draw: Callable[[], dict[str, Any]], draws: int = 200) -> dict[str, Any]:
        """The first drawn configuration that no trial has run; after so many draws whatever is drawn."""
        return self.history.untried(draw, draws)


@dataclass(frozen=True)
class Planned:
    """A suggester that tries the default, then `start` in its order, each once, and goes on by `method`."""

    name: str
    method: Callable[[Turn], dict[str, Any]]
    seed: int = 0
    start: tuple[Config, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def suggest(self, history: History, number: int | None = None) -> dict[str, Any]:
        """As `Suggester.suggest`.

        Raises:
            ValueError: a start that the history's space does not have.
        """
        space = history.space
        wanted = [space.default, *(space.check(config) for config in self.start)]
        first = list({space.key(config): config for config in wanted}.values())
        number = len(history.trials) if number is None else number
        if number < len(first):
            return first[number]
        return self.method(Turn(history, number, len(first), self.seed, self.memo))
