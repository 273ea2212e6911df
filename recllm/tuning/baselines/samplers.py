"""Samplers with a model of the scores, by libraries: TPE and CMA-ES."""

from __future__ import annotations

from typing import Any

import numpy as np

from recllm.tuning.baselines.turns import Config, Turn
from recllm.tuning.spaces.axes import Axis
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.trial import Trial

# Draws until one is new.
_DRAWS = 20


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
        study = _told(turn)
        study.sampler = optuna.samplers.TPESampler(seed=seed, **options)

        def ask() -> dict[str, Any]:
            trial, found = study.ask(), {}
            for axis in space.axes:
                if axis.active(found):
                    found[axis.name] = _suggested(axis, trial)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # which a sampler passes over
            return space.check(found)

        return turn.untried(ask, _DRAWS)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _told(turn: Turn) -> Any:
    """An Optuna study that knows the turn's trials, the turn's before carried on where it knows no other."""
    import optuna

    trials = turn.history.trials
    told, study = turn.memo.get("told", ((), None))
    if study is None or trials[: len(told)] != told:
        told, study = (), optuna.create_study(direction="maximize")
    study.add_trials([_frozen(turn.space, trial) for trial in trials[len(told) :]])
    turn.memo["told"] = trials, study
    return study


def cmaes(turn: Turn) -> dict[str, Any]:
    """CMA-ES on the unit cube around the best of the planned trials, by the library that Optuna's sampler stands on.

    The step is 1/6, as Optuna's. Names count by place. A configuration that a trial has run is drawn anew, which the
    library alone does not do. The optimizer is run again over the history: where a trial ran another value than was
    asked for (a surface answers by its nearest row), it is told the middle of what ran.
    """
    from cmaes import CMA

    space, trials = turn.space, turn.history.trials
    tried = {trial.outcome.key for trial in trials[: turn.planned]}

    def ask() -> np.ndarray:
        for _ in range(_DRAWS):
            share_A = optimizer.ask()
            if space.key(space.from_units(share_A)) not in tried:
                break
        return share_A

    known = max(trials[: turn.planned], key=lambda trial: trial.outcome.counted, default=None)
    mean_A = _moved(space, known.config if known else space.default, np.full(len(space.axes), 0.5))
    bounds_A2 = np.tile([0.0, 1 - 1e-9], (len(space.axes), 1))
    optimizer = CMA(mean_A, 1 / 6, bounds=bounds_A2, seed=turn.seed)
    group: list[tuple[np.ndarray, float]] = []
    for trial in trials[turn.planned :]:
        group.append((_moved(space, trial.config, ask()), -trial.outcome.counted))
        tried.add(trial.outcome.key)
        if len(group) == optimizer.population_size:
            optimizer.tell(group)
            group = []
    for _ in range(turn.number - max(len(trials), turn.planned)):
        ask()  # what other workers are at
    return space.from_units(ask())


def _frozen(space: Space, trial: Trial) -> Any:
    """A trial as Optuna keeps it."""
    import optuna

    config = space.check(trial.config)
    params = {name: _place(space.by_name[name], value) for name, value in config.items()}
    distributions = {name: _distribution(space.by_name[name]) for name in config}
    return optuna.trial.create_trial(params=params, distributions=distributions, value=trial.outcome.counted)


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
