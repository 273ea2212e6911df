"""What earlier studies measured, carried to a configuration that this study has not tried yet.

Scores are told as the logarithm of their ratio to the default's, which makes data sets alike. Each earlier study is a
Gaussian process over the space; a new study expects their mean, weighted by likeness of the data, and corrects it by a
Gaussian process over what its own trials left unexplained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recllm.tuning.axes import Axis
from recllm.tuning.space import Space

LEAST_RATIO = 0.2  # how much worse than a fifth of the default a trial is does not matter
# How far a new data set departs from earlier ones, as a share of how far their configurations are apart.
DEPARTURE = 0.5


def log_ratio(score: float | None, default_score: float) -> float:
    """Logarithm of a score over the default's, at least that of LEAST_RATIO, which a failed trial has."""
    return math.log(max((score or 0.0) / default_score, LEAST_RATIO))


@dataclass(frozen=True)
class Landscape:
    """A study as a function of the configuration.

    Args:
        process: fitted `sklearn` Gaussian process. spread: standard deviation of its log ratios.
    """

    space: Space
    process: Any
    spread: float

    @classmethod
    def fit(cls, space: Space, configs: Sequence[Mapping[str, Any]], ratio_C: np.ndarray, noise: float) -> Landscape:
        """Fit to checked configurations and their log ratios; `noise` is their standard deviation between seeds."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        point_CF, spread = features(space, configs), max(float(np.std(ratio_C)), noise, 1e-3)
        lengths = np.full(point_CF.shape[1], 2.0)
        least = max((noise / spread) ** 2, 1e-4)
        kernel = ConstantKernel(1.0, (0.1, 10.0)) * RBF(lengths, (0.3, 30.0)) + WhiteKernel(least, (least / 2, 1.0))
        process = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings():
            # An axis that does not matter has a length at its bound, which is how it should be.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(point_CF, ratio_C)
        return cls(space, process, spread)

    def expect(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Expected log ratio of each configuration."""
        return self.process.predict(features(self.space, configs))

    def alike(self, configs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """How alike configurations are by what mattered in this study, 0 to 1, of shape (configs, others)."""
        return self.process.kernel_.k1.k2(features(self.space, configs), features(self.space, others))


@dataclass(frozen=True)
class Expectation:
    """What a study may expect of a configuration: its forerunners, each with a weight, and its own trials.

    Args:
        landscapes: of the earlier studies. weights: of each, positive.
        configs, ratio_C: this study's trials and their log ratios. noise: their standard deviation between seeds.
    """

    landscapes: tuple[Landscape, ...]
    weights: tuple[float, ...]
    configs: tuple[Mapping[str, Any], ...] = ()
    ratio_C: np.ndarray | None = None
    noise: float = 0.02

    def of(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Expected log ratio of each configuration to the default's score."""
        return self._before(configs) + self._departure(configs)

    def _before(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.average([one.expect(configs) for one in self.landscapes], axis=0, weights=self.weights)

    def _departure(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        if not self.configs:
            return np.zeros(len(configs))
        own_CC, own_XC = self._alike(self.configs), self._alike(configs)
        scale = DEPARTURE * float(np.average([one.spread for one in self.landscapes], weights=self.weights))
        noisy_CC = scale**2 * own_CC + max(self.noise, 1e-3) ** 2 * np.eye(len(self.configs))
        left_C = self.ratio_C - self._before(self.configs)
        return scale**2 * own_XC @ np.linalg.solve(noisy_CC, left_C)

    def _alike(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.average([one.alike(configs, self.configs) for one in self.landscapes], axis=0, weights=self.weights)


def features(space: Space, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Configurations as points: each axis of numbers 0 to 1, a name one place a value; the middle where inactive."""
    return np.array([[place for axis in space.axes for place in _places(axis, config)] for config in configs])


def _places(axis: Axis, config: Mapping[str, Any]) -> list[float]:
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
