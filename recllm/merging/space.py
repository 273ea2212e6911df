"""The points of a sweep: a grid in YAML, expanded, checked, and every distinct merge kept once.

    grid:
      - method: linear
        strength: {from: 0, to: 1, steps: 11}
      - method: ties
        strength: [0.3, 0.5, 0.7]
        density: [0.2, 0.5, 0.8]
      - method: slerp
        strength: [0.8, [0, 0.5, 1], {mlp: 0.9, rest: 0.2}]   # everywhere, rising over the depth, by module
        modules: [mlp, [mlp, attention]]                      # merged there; elsewhere the direct parent
        depth: [[0.33, 1]]                                    # the last two thirds of the layers
      - mergekit: recipe.yml                                  # somebody's mergekit configuration

A list is an axis; every combination is a point. What makes two points the same:

Points are the same where they yield the same bits for any parents: the order and the spelling of numbers do not count,
nor a seed where nothing is drawn, a mask over everything, a density of 1 where the method then is another one
(`dare_linear` is `task_arithmetic`), or which method stops at a parent (linear and slerp at strength 0 and 1). Points
that are equal by mathematics alone, such as linear and task arithmetic at one strength, round differently: both run,
`Point.line` marks them, and `Space.lines` lists them so that no table counts them as two methods.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from recllm.merging.axes import check_axis, unknown_name
from recllm.merging.layout import Layout
from recllm.merging.methods import (
    COMMON,
    DEFAULTS,
    DIRECT,
    METHODS,
    NO_BASE,
    SELECTIVE_STRENGTH,
    THINKING,
    Method,
    recipe,
)

_MOST_POINTS = 100_000
# Methods that at density 1 run another one's code: nothing is dropped, nothing rescaled.
_DENSE = {
    **{"dare_linear": "task_arithmetic", "breadcrumbs": "task_arithmetic", "della_linear": "task_arithmetic"},
    **{"breadcrumbs_ties": "dare_ties", "della": "ties"},
}
_NEEDS_DENSITY = ("gamma", "epsilon", "rescale", "seed")
# mergekit's result of these is float32 whatever the parents are.
_WIDENS = ("ramplus_tl", "arcee_fusion")
# The line (1 - strength) direct + strength thinking, whatever the base.
_ON_THE_LINE = ("linear", "task_arithmetic")


@dataclass(frozen=True)
class Point:
    """One merge. Make it with `Point.of`; `axes` is canonical, with every default filled in.

    An imported configuration that no axes express has the one axis `config` (in which parents go by roles) and a seed.
    """

    method: str
    text: str

    @classmethod
    def of(cls, method: str, **axes: Any) -> Point:
        """A checked, canonical point.

        Raises:
            ValueError: an unknown method or axis, a missing one, or a value out of range; the message names it.
        """
        if method not in METHODS:
            raise ValueError(f"method {method!r} is unknown{unknown_name(method, METHODS)}")
        found = METHODS[method]
        if "config" not in axes:
            method, axes = _canonical(found, _checked(found, axes))
        return cls(method, json.dumps(axes, sort_keys=True))

    @cached_property
    def axes(self) -> dict[str, Any]:
        """Name -> value, defaults included."""
        return json.loads(self.text)

    @cached_property
    def key(self) -> str:
        """16 hex digits of the sha256 of the canonical form: the same merge of the same parents has the same key."""
        return hashlib.sha256(f"point-1 {self.method} {self.text}".encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For people: the method and what was varied."""
        usual = {**DEFAULTS, "base": METHODS[self.method].bases[0]}
        shown = {k: v for k, v in self.axes.items() if k != "config" and v != usual.get(k)}
        return " ".join([self.method, *(f"{key}={json.dumps(value)}" for key, value in shown.items())])

    @property
    def seed(self) -> int | None:
        """The seed of a method that draws."""
        return self.axes.get("seed")

    @property
    def strength(self) -> float | None:
        """Where the point lies between the parents, if that is one number."""
        value = self.axes.get("strength")
        return value if isinstance(value, float) else None

    @property
    def line(self) -> float | None:
        """The strength, where this is (1 - strength) direct + strength thinking up to rounding; else None."""
        plain = self.method in _ON_THE_LINE and self.axes.get("scale", 1.0) == 1.0 and "normalize" not in self.axes
        return self.strength if plain and not {"modules", "depth", "config"} & set(self.axes) else None

    def recipe(self, layout: Layout, stored: str | None = None) -> dict[str, Any]:
        """The merge as a mergekit configuration with roles for parents.

        `stored`: the parents' dtype, in which a point that computes in another one is kept all the same.
        """
        config = self.axes.get("config") or recipe(METHODS[self.method], self.axes, layout)
        return config | {"out_dtype": stored} if stored and ("dtype" in config or self.method in _WIDENS) else config


def _checked(method: Method, axes: Mapping[str, Any]) -> dict[str, Any]:
    known = [*method.axes, *COMMON, "base"]
    values = {}
    for key, value in axes.items():
        if key not in known:
            raise ValueError(f"{method.name} has no axis {key!r}{unknown_name(key, known)}")
        values[key] = check_axis(method.name, key, value)
    for key in method.axes[: method.required]:
        if key not in values:
            raise ValueError(f"{method.name} needs {key}: give a number or a list")
    if not method.maskable and {"modules", "depth"} & set(values):
        raise ValueError(f"{method.name} has no setting that leaves a tensor alone: it takes no modules and no depth")
    values.setdefault("base", method.bases[0])
    if values["base"] not in method.bases:
        raise ValueError(f"{method.name}: base must be {' or '.join(method.bases)}, got {values['base']!r}")
    if "strength" in method.axes:
        values.setdefault("strength", SELECTIVE_STRENGTH)
    for key in ("gamma", "scale", "seed", "penalty"):
        if key in method.axes:
            values.setdefault(key, DEFAULTS[key])
    if "epsilon" in method.axes and "density" in method.axes:
        epsilon, density = values.setdefault("epsilon", DEFAULTS["epsilon"]), values["density"]
        if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise ValueError(f"{method.name}: density {density} with epsilon {epsilon} leaves (0, 1); narrow epsilon")
    return values


def _canonical(method: Method, axes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = method.name
    if sorted(axes.get("modules", ())) == [] or axes.get("modules") == "all":
        axes.pop("modules", None)
    if axes.get("depth") == [0.0, 1.0]:
        axes.pop("depth")
    masked = bool({"modules", "depth"} & set(axes))
    if axes.get("density") == 1.0 and method.kind == "task":
        for key in _NEEDS_DENSITY:
            axes.pop(key, None)
        if name in _DENSE and not masked:
            name = _DENSE[name]
            if name == "task_arithmetic":
                axes.pop("density")
    if name in ("linear", "slerp") and axes["strength"] in (0.0, 1.0) and not masked:
        name, axes = "linear", {**axes, "base": NO_BASE}
    return name, axes


# The parents themselves, as points: whatever the method, it is the same merge.
ENDS = {DIRECT: Point.of("linear", strength=0.0), THINKING: Point.of("linear", strength=1.0)}


def expand(entry: Mapping[str, Any]) -> Iterable[Point]:
    """The points of one entry of a grid, in the order of its axes."""
    axes = {key: _values(key, value) for key, value in entry.items() if key != "method"}
    if math.prod(len(values) for values in axes.values()) > _MOST_POINTS:
        raise ValueError(f"the grid has more than {_MOST_POINTS} points: narrow an axis")
    for values in itertools.product(*axes.values()):
        yield Point.of(entry["method"], **dict(zip(axes, values, strict=True)))


def _values(key: str, value: Any) -> list[Any]:
    if isinstance(value, Mapping) and set(value) == {"from", "to", "steps"}:
        low, high, steps = float(value["from"]), float(value["to"]), int(value["steps"])
        if not 2 <= steps <= _MOST_POINTS:
            raise ValueError(f"{key}: steps must be at least 2, got {steps}")
        return [round(low + (high - low) * step / (steps - 1), 12) for step in range(steps)]
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{key} is an empty list: leave the key out or give values")
        return value
    return [value]


@dataclass(frozen=True)
class Space:
    """The distinct points of a sweep, in the order of the grid. `repeats` counts what was left out as known."""

    points: tuple[Point, ...]
    repeats: int = 0

    @classmethod
    def of(cls, points: Iterable[Point]) -> Space:
        """Keep the first of the points that are the same."""
        kept: dict[str, Point] = {}
        count = 0
        for point in points:
            count += 1
            if count > _MOST_POINTS:
                raise ValueError(f"the grid has more than {_MOST_POINTS} points: narrow an axis")
            kept.setdefault(point.key, point)
        return cls(tuple(kept.values()), count - len(kept))

    @classmethod
    def read(cls, path: str | Path) -> Space:
        """Read a grid from YAML.

        Raises:
            ValueError: what is wrong, with the file and the number of the entry.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        grid = content.get("grid") if isinstance(content, dict) else None
        if not isinstance(grid, list) or not grid or set(content) != {"grid"}:
            raise ValueError(f"{path}: expected one key `grid` with a list of entries, each with a method")
        return cls.of_entries(grid, str(path), path.parent)

    @classmethod
    def of_entries(cls, entries: Iterable[Any], where: str = "grid", folder: Path = Path()) -> Space:
        """The points of a grid's entries. `folder`: where their mergekit files lie.

        Raises:
            ValueError: what is wrong, with `where` and the number of the entry.
        """
        found = (_entry(where, folder, row, entry) for row, entry in enumerate(entries, 1))
        return cls.of(itertools.chain.from_iterable(found))

    def lines(self) -> dict[float, list[Point]]:
        """Strength -> the points that are the same straight mix by mathematics, where there are several."""
        found: dict[float, list[Point]] = {}
        for point in self.points:
            if point.line is not None:
                found.setdefault(point.line, []).append(point)
        return {strength: points for strength, points in found.items() if len(points) > 1}


def _entry(where: str, folder: Path, row: int, entry: Any) -> Iterable[Point]:
    from recllm.merging.mergekit_yaml import read_mergekit

    try:
        if isinstance(entry, dict) and set(entry) == {"mergekit"}:
            return [read_mergekit(folder / str(entry["mergekit"]))[0]]
        if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
            raise ValueError("needs a method, or the key mergekit with a file")
        return list(expand(entry))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: entry {row} of the grid: {error}") from error


def engine_order(points: Iterable[Point]) -> list[Point]:
    """Points in the order that lets the engine reuse most: same draws and same selections next to each other."""

    def place(point: Point) -> tuple[str, str, str]:
        axes = {key: value for key, value in point.axes.items() if key not in ("strength", "scale", "density")}
        return point.method, json.dumps(axes, sort_keys=True), json.dumps(point.axes.get("density"))

    return sorted(points, key=place)
