"""A measured table of configurations, which answers for a backbone and a data set in no time.

A measured configuration is answered by its own values. Any other is answered by the nearest measured one that is legal
in the space, by `Space.distance`, and the answer says which one and how far it is: no value is ever made up. Ties go
to the smaller key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.spaces.space import Limits, Space
from recllm.tuning.study.noise import epsilon_of
from recllm.tuning.study.trial import LEAST_EPSILON
from recllm.tuning.trials.runner import OBJECTIVE, Outcome

# What a surface keeps of a trial's metrics, for either role.
METRICS = ("ndcg@5", "ndcg@10", "recall@5", "recall@10")
ROLES = ("validation", "test")
# Origins of the evenly spread configurations.
EVEN = ("default", "spread")
_PROVENANCE = "recllm.surface"
SCHEMA = {
    **{"key": pl.String, "origin": pl.String, "seed": pl.Int64, "status": pl.String, "config": pl.String},
    **{f"{role}/{name}": pl.Float64 for role in ROLES for name in METRICS},
    **{"parameters": pl.Int64, "cpu_seconds": pl.Float64, "wall_seconds": pl.Float64, "peak_gib": pl.Float64},
    "words": pl.String,
}


@dataclass(frozen=True)
class Answer:
    """What a surface says of a configuration.

    Args:
        outcome: of the measured configuration `outcome.config`; validation metrics only.
        exact: whether that is the one that was asked for. distance: 0 where it is.
    """

    outcome: Outcome
    exact: bool
    distance: float


@dataclass(frozen=True)
class Surface:
    """The rows of one backbone and data set, one a configuration, with its space and its provenance."""

    space: Space
    frame: pl.DataFrame
    provenance: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Surface:
        """Read a surface's parquet.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file without provenance or columns, or rows that its space does not have.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; benchmarks/measure_surfaces.py makes it")
        told = pl.read_parquet_metadata(path).get(_PROVENANCE)
        frame = pl.read_parquet(path)
        if told is None or dict(frame.schema) != SCHEMA:
            raise ValueError(f"{path} is no surface: make it with benchmarks/measure_surfaces.py")
        provenance = json.loads(told)
        space = surface_space(provenance["backbone"], Limits(**provenance["limits"]))
        surface = cls(space, frame, provenance)
        surface._check(path)
        return surface

    def _check(self, path: Path) -> None:
        if dict(self.space.fixed) != self.provenance["fixed"]:
            raise ValueError(f"{path} was measured with other fixed arguments than its space has now; measure it again")
        for row, (key, config) in enumerate(zip(self.frame["key"], self._configs, strict=True), 1):
            try:
                known = self.space.key(config)
            except ValueError as error:
                raise ValueError(f"{path}: row {row} is not legal in the space: {error}") from error
            if known != key:
                raise ValueError(f"{path}: row {row} has key {key}, its configuration {known}")

    @cached_property
    def _configs(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.frame["config"]]

    @cached_property
    def _row(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.frame["key"])}

    def __len__(self) -> int:
        return self.frame.height

    @property
    def data(self) -> dict[str, float]:
        """Descriptors of the data set that it was measured on (see `recllm.tuning.memory.descriptors`)."""
        return dict(self.provenance.get("descriptors", {}))

    @property
    def epsilon(self) -> float:
        """The noise threshold of a score, from the default's seeds (methods 1.3)."""
        scores = list(self.provenance.get("default_by_seed", {}).values())
        return epsilon_of(scores) if len(scores) > 1 else LEAST_EPSILON

    def best(self, count: int) -> list[dict[str, Any]]:
        """The configurations with the highest validation NDCG@10, best first; ties go to the smaller key."""
        chosen = self.frame.filter(pl.col("status") == "ok").sort([-pl.col(OBJECTIVE), pl.col("key")]).head(count)
        return [json.loads(text) for text in chosen["config"]]

    def lookup(self, config: Mapping[str, Any]) -> Answer:
        """The answer for a configuration.

        Raises:
            ValueError: it is not legal in the space.
        """
        checked = self.space.check(config)
        row, distance = self.row_of(checked, self.space.key(checked))
        return Answer(self.outcome(row), distance == 0.0, distance)

    def row_of(self, config: Mapping[str, Any], key: str) -> tuple[int, float]:
        """The row that answers for a checked configuration, and how far it is; `key` is the configuration's."""
        row = self._row.get(key)
        if row is not None:
            return row, 0.0
        distance_R = self.index.distances(config)
        nearest = np.flatnonzero(distance_R == distance_R.min())
        row = min(nearest.tolist(), key=lambda row: self.frame["key"][row])
        return row, float(distance_R[row])

    def outcome(self, row: int) -> Outcome:
        """The outcome of a row, without its test metrics."""
        found = self.frame.row(row, named=True)
        names = [f"validation/{name}" for name in METRICS]
        metrics = {name: found[name] for name in names if found[name] is not None}
        facts = {name: found[name] for name in ("parameters", "cpu_seconds", "wall_seconds", "peak_gib", "words")}
        return Outcome(found["status"], found["key"], self._configs[row], found["seed"], metrics, **facts)

    def test_metrics(self, key: str) -> dict[str, float]:
        """Test metrics of a measured configuration: for the one reading at a study's end.

        Raises:
            ValueError: it was not measured, or failed.
        """
        row = self._row.get(key)
        if row is None or self.frame["status"][row] != "ok":
            raise ValueError(f"{key} was not measured or failed: there is no test metric of it")
        return {f"test/{name}": self.frame[f"test/{name}"][row] for name in METRICS}

    def target(self, share: float) -> float:
        """The validation NDCG@10 that the best `share` (0 to 1) of the evenly spread configurations reach.

        Failed ones count as configurations and reach nothing.
        """
        chosen = self.frame.filter(pl.col("origin").is_in(EVEN))
        return reached_by(chosen[OBJECTIVE].fill_null(-np.inf).to_numpy(), share)

    @cached_property
    def index(self) -> Index:
        return Index.of(self.space, self._configs)


def reached_by(score_R: np.ndarray, share: float) -> float:
    """The score that the best `share` (0 to 1) of some configurations reach, the best one's at least."""
    return float(np.sort(score_R)[::-1][max(math.ceil(share * len(score_R)) - 1, 0)])


@dataclass(frozen=True)
class Index:
    """`Space.distance` from one configuration to many at once.

    `unit_RA` holds where each row lies on each axis, NaN where the axis does not matter there; names count by place.
    """

    space: Space
    unit_RA: np.ndarray

    @classmethod
    def of(cls, space: Space, configs: list[dict[str, Any]]) -> Index:
        return cls(space, np.array([_units(space, config) for config in configs]))

    def distances(self, config: Mapping[str, Any]) -> np.ndarray:
        """Distance of a checked configuration to every row, `distance_R`."""
        unit_A = _units(self.space, config)
        gap_RA = np.abs(self.unit_RA - unit_A)
        named_A = np.array([not axis.ordered for axis in self.space.axes])
        gap_RA[:, named_A] = gap_RA[:, named_A] > 0
        here_A, there_RA = ~np.isnan(unit_A), ~np.isnan(self.unit_RA)
        gap_RA = np.where(here_A & there_RA, gap_RA, (here_A != there_RA).astype(float))
        return gap_RA.sum(1) / len(self.space.axes)


def _units(space: Space, config: Mapping[str, Any]) -> np.ndarray:
    return np.array([axis.unit(config[axis.name]) if axis.name in config else np.nan for axis in space.axes])


def write_surface(path: str | Path, rows: list[Mapping[str, Any]], provenance: Mapping[str, Any]) -> None:
    """Write rows (see `surface_row`) as a surface, whole or not at all, in the order of their keys."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows, schema=SCHEMA).sort("key")
    staging = path.with_suffix(".staging")
    told = {_PROVENANCE: json.dumps(dict(provenance))}
    frame.write_parquet(staging, metadata=told, compression="zstd", compression_level=19)
    staging.replace(path)


def surface_row(outcome: Outcome, origin: str) -> dict[str, Any]:
    """The row of an outcome that was measured unsealed."""
    facts = {name: getattr(outcome, name) for name in SCHEMA if hasattr(outcome, name) and name != "config"}
    metrics = {f"{role}/{name}": outcome.metrics.get(f"{role}/{name}") for role in ROLES for name in METRICS}
    return {**facts, **metrics, "origin": origin, "config": json.dumps(dict(outcome.config))}
