"""Tuners without a language model, at the same budget as the agent: random, grid, sweep, climb, TPE and CMA-ES.

Each is rebuilt from the history alone: the same seed and history give the same suggestion, so a study that was killed
goes on as it would have. Each tries the default first, then what it was told to start with. A failed trial counts 0,
the least that NDCG can be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recllm.tuning.baselines.samplers import cmaes, tpe
from recllm.tuning.baselines.turns import Config, Planned, Turn
from recllm.tuning.spaces.axes import Axis
from recllm.tuning.spaces.space import Space


def random_search(turn: Turn) -> dict[str, Any]:
    """A configuration drawn evenly over the unit cube that no trial has run."""
    rng = turn.rng()
    return turn.untried(lambda: turn.space.sample(rng))


def climb(turn: Turn) -> dict[str, Any]:
    """A random change of one axis of what the study stands on, which is the best configuration that has an untried
    change: the agent's loop with dice for a proposer."""
    rng = turn.rng()
    return turn.untried(lambda: _single_change(turn.space, turn.history.present, rng))


def sweep(turn: Turn) -> dict[str, Any]:
    """One axis at a time: the first untried single change of the best configuration, axes in an order drawn by seed.

    A range is swept at the middles of five equal parts. When the best moves, its own changes come next.
    """
    space, best = turn.space, turn.history.best
    base = best.config if best else space.default
    for place in np.random.default_rng(turn.seed).permutation(len(space.axes)):
        axis = space.axes[place]
        for value in _levels(axis, len(axis.values) or 5) if axis.name in base else ():
            config = space.change(base, axis.name, value)
            if space.key(config) not in turn.history.tried:
                return config
    return random_search(turn)


def grid(turn: Turn) -> dict[str, Any]:
    """Full factorial over the first six numeric axes with three levels each, two where there are no more, in an order
    drawn by seed.

    Levels are the middles of equal parts of an axis and all else stays at the default: 729 configurations at most, as
    many as the published grid search has. A grid that is used up is followed by random search.
    """
    space = turn.space
    axes = [axis for axis in space.axes if axis.ordered and not axis.when and len(_levels(axis, 3)) > 1][:6]
    cells = list(itertools.product(*(_levels(axis, 3) for axis in axes)))
    order = np.random.default_rng(turn.seed).permutation(len(cells))
    for place in np.roll(order, turn.planned - turn.number):
        config = space.complete(dict(zip((axis.name for axis in axes), cells[place], strict=True)))
        if space.key(config) not in turn.history.tried:
            return config
    return random_search(turn)


METHODS: dict[str, Callable[[Turn], dict[str, Any]]] = {
    "random": random_search,
    "grid": grid,
    "sweep": sweep,
    "climb": climb,
    "tpe": tpe,
    "cmaes": cmaes,
}


def suggester(name: str, seed: int = 0, start: Sequence[Config] = ()) -> Planned:
    """The tuner of that name, one of `METHODS`; `start` holds configurations to try after the default (a warm start).

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"there is no tuner {name!r}; choose one of {', '.join(METHODS)}")
    return Planned(name, METHODS[name], seed, tuple(start))


def alternating(bests: Sequence[Sequence[Config]]) -> list[Config]:
    """A warm start from several studies: the best of each, then the second of each, and so on."""
    return [config for row in itertools.zip_longest(*bests) for config in row if config is not None]


def _single_change(space: Space, base: Config, rng: np.random.Generator) -> dict[str, Any]:
    axes = [axis for axis in space.axes if axis.name in base and len(axis.values) != 1]
    axis = axes[int(rng.integers(len(axes)))]
    others = [value for value in axis.values if value != base[axis.name]]
    value = others[int(rng.integers(len(others)))] if others else axis.from_unit(float(rng.random()))
    return space.change(base, axis.name, value)


def _levels(axis: Axis, count: int) -> list[Any]:
    """The values at the middles of so many equal parts of an axis, without repeats."""
    return list(dict.fromkeys(axis.from_unit((part + 0.5) / count) for part in range(count)))
