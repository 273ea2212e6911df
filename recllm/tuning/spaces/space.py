"""A typed search space: what a proposal may say, and the recipe's arguments that it becomes.

A configuration is a mapping of axis to value that holds exactly the axes that matter: `pool_k` is there if and only if
`pooling` is `last_k_mean`. Whatever is not an axis cannot be said, so no proposal names a path, a script or a switch
that the space does not have.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from recllm.tuning.spaces.axes import Axis, When

_MOST_KEYS = 200


@dataclass(frozen=True)
class Limits:
    """What a trial may use at most; None is no limit.

    Args:
        parameters: of the model, item embeddings included. cpu_seconds: processor time of the trial's process.
        wall_seconds: time by the clock, which other work on the machine stretches. memory_gib: resident set.
    """

    parameters: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True)
class Space:
    """The axes of a backbone, in an order where conditions look back only.

    Args:
        name: of the space, such as `sasrec`.
        recipe: script in recipes/ that runs a trial.
        fixed: the recipe's arguments that are no axes and differ from its defaults.
        limits: of a trial.
        left_out: dimension of the published search space -> why it is no axis here.
    """

    name: str
    recipe: str
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any]
    limits: Limits = Limits()
    left_out: Mapping[str, str] = ()

    def __post_init__(self) -> None:
        seen: list[str] = []
        for axis in self.axes:
            if missing := [condition.key for condition in axis.when if condition.key not in seen]:
                raise ValueError(f"axis {axis.name} depends on {missing[0]}, which must stand before it")
            if axis.name in seen or axis.name in self.fixed:
                raise ValueError(f"axis {axis.name} is there twice")
            axis.check(axis.default)
            seen.append(axis.name)

    @cached_property
    def by_name(self) -> dict[str, Axis]:
        return {axis.name: axis for axis in self.axes}

    @cached_property
    def default(self) -> dict[str, Any]:
        """The configuration where a study begins."""
        return self.complete({})

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` checked and with the default of every axis that it leaves out and that matters.

        Raises:
            ValueError: as `check`, but for what is missing.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"a configuration is a mapping of axes to values, not a {type(config).__name__}")
        if len(config) > _MOST_KEYS:
            raise ValueError(f"a configuration of {len(config)} keys: the space has {len(self.axes)} axes")
        for key in config:
            if key not in self.by_name:
                raise ValueError(self._unknown(key))
        found: dict[str, Any] = {}
        for axis in self.axes:
            if axis.active(found):
                found[axis.name] = axis.check(config.get(axis.name, axis.default))
            elif axis.name in config:
                told = " or ".join(condition.told for condition in axis.when)
                raise ValueError(f"{axis.name} matters only where {told}; leave it out")
        return found

    def check(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with every value of its axis's type, in the order of the axes.

        Raises:
            ValueError: no mapping, an unknown key, an illegal value, a key that does not matter, or a missing one; the
                message names the key and says what is legal.
        """
        found = self.complete(config)
        if missing := [name for name in found if name not in config]:
            raise ValueError(f"{missing[0]} is missing; {self.by_name[missing[0]].legal}")
        return found

    def change(self, config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
        """`config` with one axis changed: those that come to matter take defaults, those that cease to are left out.

        Raises:
            ValueError: an unknown axis, an illegal value, or an axis that does not matter under `config`.
        """
        before = self.check(config)
        if not isinstance(key, str) or key not in self.by_name:
            raise ValueError(self._unknown(key))
        axis = self.by_name[key]
        if key not in before:
            raise ValueError(f"{key} matters only where {' or '.join(condition.told for condition in axis.when)}")
        return self._settled({**before, key: axis.check(value)})

    def _settled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for axis in self.axes:
            if axis.active(found):
                found[axis.name] = values.get(axis.name, axis.default)
        return found

    def from_units(self, share_A: np.ndarray) -> dict[str, Any]:
        """The configuration at a point of the unit cube, one number an axis in [0, 1); axes that do not matter drop."""
        values = {axis.name: axis.from_unit(float(share)) for axis, share in zip(self.axes, share_A, strict=True)}
        return self._settled(values)

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """A configuration drawn at random."""
        return self.from_units(rng.random(len(self.axes)))

    def spread(self, seed: int) -> Iterator[dict[str, Any]]:
        """Configurations that fill the space evenly: a scrambled Sobol sequence, repeats left out, without end.

        A space that is used up yields nothing more after 2^14 points in a row without a new one.
        """
        from scipy.stats import qmc

        sampler, seen, idle = qmc.Sobol(len(self.axes), scramble=True, rng=np.random.default_rng(seed)), set(), 0
        while idle < 1 << 14:
            for share_A in sampler.random(64):
                config = self.from_units(share_A)
                key = self.key(config)
                idle = idle + 1 if key in seen else 0
                if key not in seen:
                    seen.add(key)
                    yield config

    def neighbours(self, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every configuration that differs in one axis with a value set (and in what that brings along)."""
        before = self.check(config)
        for name, value in before.items():
            yield from (self.change(before, name, other) for other in self.by_name[name].values if other != value)

    def key(self, config: Mapping[str, Any]) -> str:
        """16 hex digits that are the same for the same configuration of this recipe."""
        text = json.dumps({**self.fixed, **self.check(config)}, sort_keys=True)
        return hashlib.sha256(f"trial-1 {self.recipe} {text}".encode()).hexdigest()[:16]

    @cached_property
    def _keys_after(self) -> dict[tuple[Any, ...], str]:
        return {}

    def key_after(self, config: Mapping[str, Any], axis: str, value: Any) -> str:
        """`key` of what the change of a checked configuration's axis to a legal value makes.

        A study asks for those of every change at every turn, so each is looked up once.
        """
        change = (tuple(config.items()), axis, value)
        if change not in self._keys_after:
            self._keys_after[change] = self.key(self.change(config, axis, value))
        return self._keys_after[change]

    def distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """Gower's distance, 0 to 1: the mean over all axes of how far two checked configurations are apart.

        A value set of numbers counts by place, a range by its share (of the logarithm where the axis is log), a name
        0 or 1; an axis that matters in one configuration only counts 1, one that matters in neither 0.
        """
        total = 0.0
        for axis in self.axes:
            here, there = axis.name in one, axis.name in other
            total += axis.apart(one[axis.name], other[axis.name]) if here and there else float(here != there)
        return total / len(self.axes)

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's arguments of a configuration: what is fixed, the axes, and what stands for inactive ones.

        Raises:
            ValueError: as `check`.
        """
        found = self.check(config)
        silent = {axis.name: axis.otherwise for axis in self.axes if axis.otherwise is not None}
        return {**self.fixed, **{name: value for name, value in silent.items() if name not in found}, **found}

    def narrowed(self, **values: tuple[Any, ...]) -> Space:
        """The space where the named axes have only these values, each legal in the whole one; one value fixes the axis.

        The default of an axis must be among its values. An axis that nothing can make matter any more is left out.

        Raises:
            ValueError: an unknown axis, an illegal value, or values without the default.
        """
        for name in values:
            if name not in self.by_name:
                raise ValueError(self._unknown(name))
        axes, fixed, never = [], dict(self.fixed), set()
        asked = {condition.key for axis in self.axes for condition in axis.when}
        for axis in self.axes:
            kept = tuple(axis.check(value) for value in values.get(axis.name, ()))
            if len(kept) == 1 and not axis.when:
                fixed[axis.name] = kept[0]
                continue
            if kept and axis.default not in kept:
                raise ValueError(f"{axis.name}: its default {axis.default!r} must be among its values")
            axis = replace(axis, values=kept) if kept else axis
            usual = len(kept) == 1 and axis.otherwise is None and kept[0] == axis.argument.default
            if usual and axis.name not in asked:
                continue  # what the recipe does unasked, where it matters and where it does not
            if axis.when:
                axis, met = _under(axis, {name: fixed[name] for name in fixed if name not in never}, axes)
                if met is False:
                    never.add(axis.name)
                    fixed |= {} if axis.otherwise is None else {axis.name: axis.otherwise}
                    continue
                if met and len(axis.values) == 1:
                    fixed[axis.name] = axis.values[0]
                    continue
            axes.append(axis)
        return replace(self, axes=tuple(axes), fixed=fixed)

    def schema(self, described: bool = True) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of a configuration, conditions included; the axes' meanings where `described`."""
        rules = []
        for axis in self.axes:
            if axis.when:
                met = {"anyOf": [_condition(condition) for condition in axis.when]}
                rules.append({"if": met, "then": {"required": [axis.name]}, "else": {"properties": {axis.name: False}}})
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "type": "object",
            "properties": {axis.name: axis.schema(described) for axis in self.axes},
            "required": [axis.name for axis in self.axes if not axis.when],
            "additionalProperties": False,
            "allOf": rules,
        }

    def _unknown(self, key: Any) -> str:
        shown = repr(key)[:60]
        close = difflib.get_close_matches(str(key)[:60], list(self.by_name), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"the axes are {', '.join(self.by_name)}"
        return f"{shown} is no axis of {self.name}; {hint}"


def _under(axis: Axis, fixed: Mapping[str, Any], before: list[Axis]) -> tuple[Axis, bool | None]:
    """An axis with the conditions that can still hold, under what is fixed and the axes that remain before it.

    Also whether one always holds (True; then it has no condition), none ever does (False), or it depends (None).
    """
    if any(condition.key in fixed and fixed[condition.key] in condition.values for condition in axis.when):
        return replace(axis, when=()), True
    left = {other.name: other.values for other in before}
    open_ = []
    for condition in axis.when:
        values = left.get(condition.key)
        possible = condition.values if values == () else tuple(v for v in condition.values if v in (values or ()))
        if possible:  # a range, which has no list, may still have every value
            open_.append(replace(condition, values=possible))
    return replace(axis, when=tuple(open_)), None if open_ else False


def _condition(condition: When) -> dict[str, Any]:
    return {"properties": {condition.key: {"enum": list(condition.values)}}, "required": [condition.key]}
