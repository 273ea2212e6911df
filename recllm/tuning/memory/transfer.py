"""What earlier studies measured, carried to a configuration that this study has not tried yet.

Scores are told as the logarithm of their ratio to the default's, which makes data sets alike. Each earlier study is a
sum of its axes' effects (ridge regression) and what they leave (a Gaussian process over the space). A new study expects
the mean of the earlier ones, weighted by likeness of the data, and corrects it by a Gaussian process over what its own
trials departed from it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from recllm.tuning.spaces.axes import Axis
from recllm.tuning.spaces.space import Space

# How far a new data set departs from earlier ones, as a share of how far their configurations are apart.
DEPARTURE = 0.5
# Departures of two configurations this far apart, by what mattered, have hardly anything in common but single effects.
_REACH = 0.2
# A range counts as so many even levels.
LEVELS = 9
# A change that promises less than a hundredth is not made on promises alone.
LEAST_STEP = 0.01
_LEAST = 1e-3

Configs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Points:
    """Configurations as numbers.

    Args:
        place_CP: their `places` on all axes. position_CN: their `positions`. unit_CA: where they lie on each axis, 0 to
            1, and -1 where it does not matter. ordered_A: whether an axis has an order.
    """

    place_CP: np.ndarray
    position_CN: np.ndarray
    unit_CA: np.ndarray
    ordered_A: np.ndarray

    @classmethod
    def of(cls, space: Space, configs: Configs) -> Points:
        """Those of checked configurations."""
        place_CP = np.hstack([places(axis, configs) for axis in space.axes])
        unit_CA = np.array([[a.unit(one[a.name]) if a.name in one else -1.0 for a in space.axes] for one in configs])
        return cls(place_CP, positions(space, configs), unit_CA, np.array([axis.ordered for axis in space.axes]))

    def apart(self, others: Points) -> np.ndarray:
        """How far configurations are apart on each axis, 0 to 1, of shape (configs, others, axes); see
        `Space.distance`."""
        one_X1A, other_CA = self.unit_CA[:, None], others.unit_CA
        gap_XCA = np.abs(one_X1A - other_CA)
        whole_XCA = ((one_X1A < 0) != (other_CA < 0)) | ~self.ordered_A
        return np.where(whole_XCA, (gap_XCA > 0).astype(float), gap_XCA)


@dataclass(frozen=True)
class Landscape:
    """A study as a function of the configuration.

    Args:
        effect_P, base: of each place, by ridge regression, and what is added to their sum. rest: fitted Gaussian
            process on `positions`, of what is left, in units of `scale`.
        relevance_A: each axis's share of what the effects explain, sum 1. spread: standard deviation of the log ratios.
    """

    effect_P: np.ndarray
    base: float
    rest: Any
    scale: float
    relevance_A: np.ndarray
    spread: float

    @classmethod
    def fit(cls, space: Space, configs: Configs, ratio_C: np.ndarray, noise: float) -> Landscape:
        """Fit to checked configurations and their log ratios; `noise` is their standard deviation between seeds."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        from sklearn.linear_model import RidgeCV

        points = Points.of(space, configs)
        effects = RidgeCV(np.logspace(-1, 2, 8)).fit(points.place_CP, ratio_C)
        left_C = ratio_C - effects.predict(points.place_CP)
        least = min(max((noise / max(float(np.std(left_C)), _LEAST)) ** 2, 1e-4), 0.9)
        kernel = ConstantKernel(1.0, (1e-2, 10.0)) * RBF(2.0, (0.3, 30.0)) + WhiteKernel(least, (least / 2, 2.0))
        middle, scale = float(np.mean(left_C)), max(float(np.std(left_C)), _LEAST**2)
        rest = GaussianProcessRegressor(kernel)
        with warnings.catch_warnings():
            # Where the effects say it all, the process's scales end at their bounds, which is how it should be.
            warnings.simplefilter("ignore", ConvergenceWarning)
            rest.fit(points.position_CN, (left_C - middle) / scale)
        ends = np.cumsum([_count(axis) for axis in space.axes])[:-1]
        parts = zip(np.split(points.place_CP, ends, axis=1), np.split(effects.coef_, ends), strict=True)
        share_A = np.array([np.var(place_CP @ effect_P) for place_CP, effect_P in parts])
        # No axis is thought to be of no use: this study's data may be the one where it is.
        share_A += max(share_A.sum(), _LEAST**2) * 0.2 / len(share_A)
        spread = max(float(np.std(ratio_C)), noise, _LEAST)
        base = float(effects.intercept_) + middle
        return cls(effects.coef_, base, rest, scale, share_A / share_A.sum(), spread)

    def expect(self, points: Points) -> np.ndarray:
        """Expected log ratio of each configuration."""
        # The process's own `predict` checks its input for longer than it computes.
        near_CF = self.rest.kernel_(points.position_CN, self.rest.X_train_)
        return points.place_CP @ self.effect_P + self.base + self.scale * (near_CF @ self.rest.alpha_)

    def alike(self, points: Points, others: Points) -> np.ndarray:
        """How much departures of configurations have in common, 0 to 1, of shape (configs, others).

        Half is what their axes' effects share, one by one, half falls with the distance by all of them together.
        """
        distance_XC = points.apart(others) @ self.relevance_A
        return (1 - distance_XC + np.exp(-distance_XC / _REACH)) / 2


@dataclass(frozen=True)
class Expectation:
    """What a study may expect of a configuration: its forerunners, each with a weight, and its own trials.

    Args:
        space: of the configurations. landscapes: of the earlier studies. weights: of each, positive.
        configs, ratio_C: this study's trials and their log ratios. noise: their standard deviation between seeds.
    """

    space: Space
    landscapes: tuple[Landscape, ...]
    weights: tuple[float, ...]
    configs: tuple[Mapping[str, Any], ...] = ()
    ratio_C: np.ndarray | None = None
    noise: float = 0.02

    def of(self, configs: Configs) -> np.ndarray:
        """Expected log ratio of each configuration to the default's score."""
        points = Points.of(self.space, configs)
        expected_X = self._mean([one.expect(points) for one in self.landscapes])
        if not self.configs:
            return expected_X
        here, solved_C = self._departures
        return expected_X + self._mean([one.alike(points, here) for one in self.landscapes]) @ solved_C

    @cached_property
    def _departures(self) -> tuple[Points, np.ndarray]:
        """This study's trials, and what each adds to the expectation of a configuration that is all like it."""
        here = Points.of(self.space, self.configs)
        scale = DEPARTURE * float(self._mean([one.spread for one in self.landscapes]))
        common_CC = self._mean([one.alike(here, here) for one in self.landscapes])
        noisy_CC = scale**2 * common_CC + max(self.noise, _LEAST) ** 2 * np.eye(len(self.configs))
        departed_C = self.ratio_C - self._mean([one.expect(here) for one in self.landscapes])
        return here, scale**2 * np.linalg.solve(noisy_CC, departed_C)

    def climb(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration that single changes of value sets lead to from one, each time the most promising.

        It ends where none promises more than LEAST_STEP, or after as many changes as there are axes.
        """
        config = dict(config)
        for _ in self.space.axes:
            options = [config, *self.space.neighbours(config)]
            expected_X = self.of(options)
            best = int(np.argmax(expected_X))
            if expected_X[best] <= expected_X[0] + LEAST_STEP:
                break
            config = options[best]
        return config

    def _mean(self, found: Sequence[Any]) -> Any:
        return np.average(found, axis=0, weights=self.weights)


def places(axis: Axis, configs: Configs) -> np.ndarray:
    """Each configuration's place on an axis, of shape (configs, places): 1 at its value, 0 elsewhere.

    A value of a range is shared between the two nearest of nine even levels. All 0 where the axis does not matter.
    """
    count = _count(axis)
    found_CP = np.zeros((len(configs), count))
    for row, config in enumerate(configs):
        if axis.name in config:
            place = axis.values.index(config[axis.name]) if axis.values else axis.unit(config[axis.name]) * (count - 1)
            below = min(int(place), count - 1)
            found_CP[row, below] = 1 - (place - below)
            if place > below:
                found_CP[row, below + 1] = place - below
    return found_CP


def _count(axis: Axis) -> int:
    """How many places an axis has."""
    return len(axis.values) or LEVELS


def positions(space: Space, configs: Configs) -> np.ndarray:
    """Configurations as points, of shape (configs, numbers): an axis of numbers 0 to 1, a name one number a value.

    The middle where an axis does not matter.
    """
    return np.array([[number for axis in space.axes for number in _position(axis, config)] for config in configs])


def _position(axis: Axis, config: Mapping[str, Any]) -> list[float]:
    if axis.ordered or len(axis.values) == 2:
        return [axis.unit(config[axis.name]) if axis.name in config else 0.5]
    return [float(config.get(axis.name) == value) for value in axis.values]


def mended(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of another space or version, made legal: numbers go to the nearest legal value of their axis.

    Names that are not legal, axes that the space does not have and axes that do not matter are dropped, and defaults
    take their place.
    """
    found: dict[str, Any] = {}
    for axis in space.axes:
        if axis.active(found):
            found[axis.name] = nearest(axis, config[axis.name]) if axis.name in config else axis.default
    return found


def nearest(axis: Axis, value: Any) -> Any:
    """The legal value nearest to a value; the default for one that is of no use."""
    try:
        return axis.check(value)
    except ValueError:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not axis.ordered:
            return axis.default
    if axis.values:
        return min(axis.values, key=lambda legal: (_gap(legal, value), legal))
    return axis.check(min(max(round(value) if axis.kind == "int" else value, axis.low), axis.high))


def _gap(one: float, other: float) -> float:
    return abs(math.log(one / other)) if one > 0 and other > 0 else math.inf if one > 0 or other > 0 else 0.0
