"""Tuners without a language model, at the same budget as the agent: random, grid, sweep, climb, TPE and CMA-ES.

Each is rebuilt from the history alone: the same seed and history give the same suggestion, so a study that was killed
goes on as it would have. Each tries the default first, then what it was told to start with. A failed trial counts 0,
the least that NDCG can be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recllm.tuning.axes import Axis
from recllm.tuning.space import Space
from recllm.tuning.trial import History, Trial

Config = Mapping[str, Any]
_DRAWS = 200  # tries for a configuration that no trial has run


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
    """What a suggestion is made from: the trials so far, the next one's number, how many were planned, the seed."""

    history: History
    number: int
    planned: int
    seed: int

    @property
    def space(self) -> Space:
        return self.history.space

    @property
    def best(self) -> Config:
        """The best configuration so far; the default where nothing ended well."""
        best = self.history.best
        return best.config if best else self.space.default

    def rng(self) -> np.random.Generator:
        """The random stream of this trial."""
        return np.random.default_rng((self.seed, self.number))

    def untried(self, draw: Callable[[], dict[str, Any]], draws: int = 200) -> dict[str, Any]:
        """The first drawn configuration that no trial has run; after so many draws whatever is drawn."""
        for _ in range(draws):
            config = draw()
            if self.space.key(config) not in self.history.tried:
                break
        return config


@dataclass(frozen=True)
class Planned:
    """A suggester that tries the default, then `start` in its order, each once, and goes on by `method`."""

    name: str
    method: Callable[[Turn], dict[str, Any]]
    seed: int = 0
    start: tuple[Config, ...] = ()

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
        return self.method(Turn(history, number, len(first), self.seed))


def random_search(turn: Turn) -> dict[str, Any]:
    """A configuration drawn evenly over the unit cube that no trial has run."""
    rng = turn.rng()
    return turn.untried(lambda: turn.space.sample(rng))


def climb(turn: Turn) -> dict[str, Any]:
    """A random change of one axis of the best configuration: the agent's loop with dice for a proposer."""
    rng = turn.rng()
    return turn.untried(lambda: _single_change(turn.space, turn.best, rng))


def sweep(turn: Turn) -> dict[str, Any]:
    """One axis at a time: the first untried single change of the best configuration, axes in an order drawn by seed.

    A range is swept at the middles of five equal parts. When the best moves, its own changes come next.
    """
    space, base = turn.space, turn.best
    for place in np.random.default_rng(turn.seed).permutation(len(space.axes)):
        axis = space.axes[place]
        for value in _levels(axis, len(axis.values) or 5) if axis.name in base else ():
            config = space.change(base, axis.name, value)
            if space.key(config) not in turn.history.tried:
                return config
    return random_search(turn)


def grid(turn: Turn) -> dict[str, Any]:
    """Full factorial over the first six numeric axes with three levels each, in an order drawn by seed.

    Levels are the middles of equal parts of an axis and all else stays at the default: 729 configurations, as many as
    the published grid search has. A grid that is used up is followed by random search.
    """
    space = turn.space
    axes = [axis for axis in space.axes if axis.ordered and not axis.when and len(_levels(axis, 3)) == 3][:6]
    cells = list(itertools.product(*(_levels(axis, 3) for axis in axes)))
    order = np.random.default_rng(turn.seed).permutation(len(cells))
    for place in np.roll(order, turn.planned - turn.number):
        config = space.complete(dict(zip((axis.name for axis in axes), cells[place], strict=True)))
        if space.key(config) not in turn.history.tried:
            return config
    return random_search(turn)


def tpe(turn: Turn, **options: Any) -> dict[str, Any]:
    """Optuna's tree-structured Parzen estimator with its own defaults: ten trials at random, then by its model.

    Numbers are integers by place or ranges, names categories, conditions define by run. A configuration that a trial
    has run is drawn anew, which Optuna alone does not do.
    """
    import optuna

    space, seed = turn.space, int(turn.rng().integers(2**31))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, **options))
        study.add_trials([_frozen(space, trial) for trial in turn.history.trials])

        def ask() -> dict[str, Any]:
            trial, found = study.ask(), {}
            for axis in space.axes:
                if axis.active(found):
                    found[axis.name] = _suggested(axis, trial)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return space.check(found)

        return turn.untried(ask, draws=20)
    finally:
        optuna.logging.set_verbosity(verbosity)


def cmaes(turn: Turn) -> dict[str, Any]:
    """CMA-ES on the unit cube around the best of the planned trials, by the library that Optuna's sampler stands on.

    The step is 1/6, as Optuna's. Names count by place. The optimizer is run again over the history: where a trial ran
    another value than was asked for (a surface answers by its nearest row), it is told the middle of what ran.
    """
    from cmaes import CMA

    space, trials = turn.space, turn.history.trials
    known = max(trials[: turn.planned], key=_value, default=None)
    mean_A = _moved(space, known.config if known else space.default, np.full(len(space.axes), 0.5))
    bounds_A2 = np.tile([0.0, 1 - 1e-9], (len(space.axes), 1))
    optimizer = CMA(mean_A, 1 / 6, bounds=bounds_A2, seed=turn.seed)
    group: list[tuple[np.ndarray, float]] = []
    for trial in trials[turn.planned :]:
        group.append((_moved(space, trial.config, optimizer.ask()), -_value(trial)))
        if len(group) == optimizer.population_size:
            optimizer.tell(group)
            group = []
    for _ in range(turn.number - max(len(trials), turn.planned)):
        optimizer.ask()  # what other workers are at
    return space.from_units(optimizer.ask())


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


def _value(trial: Trial) -> float:
    return trial.outcome.score if trial.outcome.ok else 0.0


def _frozen(space: Space, trial: Trial) -> Any:
    """A trial as Optuna keeps it."""
    import optuna

    config = space.check(trial.config)
    params = {name: _place(space.by_name[name], value) for name, value in config.items()}
    distributions = {name: _distribution(space.by_name[name]) for name in config}
    return optuna.trial.create_trial(params=params, distributions=distributions, value=_value(trial))


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values:
        places = len(axis.values)
        return IntDistribution(0, places - 1) if axis.ordered else CategoricalDistribution(tuple(range(places)))
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _place(axis: Axis, value: Any) -> Any:
    return axis.values.index(value) if axis.values else value


def _suggested(axis: Axis, trial: Any) -> Any:
    places = len(axis.values)
    if places and not axis.ordered:
        return axis.values[trial.suggest_categorical(axis.name, tuple(range(places)))]
    told = _distribution(axis)
    if places:
        return axis.values[trial.suggest_int(axis.name, told.low, told.high)]
    if axis.kind == "int":
        return trial.suggest_int(axis.name, told.low, told.high, log=told.log)
    value = trial.suggest_float(axis.name, told.low, told.high, log=told.log)
    return min(max(float(f"{value:.3g}"), axis.low), axis.high)


def _moved(space: Space, config: Config, share_A: np.ndarray) -> np.ndarray:
    """A point of the unit cube that stands for `config`: `share_A` where it says that already or the axis is silent."""
    point_A = share_A.copy()
    for place, axis in enumerate(space.axes):
        if axis.name in config and axis.from_unit(float(share_A[place])) != config[axis.name]:
            unit = axis.unit(config[axis.name])
            count = len(axis.values)
            point_A[place] = (axis.values.index(config[axis.name]) + 0.5) / count if count else min(unit, 1 - 1e-9)
    return point_A
