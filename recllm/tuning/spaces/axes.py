"""One dimension of a search space: what it may be, where a value lies between 0 and 1, how far two values are apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recllm.tuning.spaces.recipe import Argument

Cost = Literal["none", "low", "high"]


@dataclass(frozen=True)
class When:
    """A condition: the axis `key` has one of `values`. A condition on an axis that is itself inactive does not hold."""

    key: str
    values: tuple[Any, ...]

    def holds(self, config: Mapping[str, Any]) -> bool:
        return self.key in config and config[self.key] in self.values

    @property
    def told(self) -> str:
        shown = " or ".join(json.dumps(value) for value in self.values)
        return f"{self.key} is {shown}"


@dataclass(frozen=True)
class Axis:
    """A dimension named after the recipe's argument that it sets.

    Args:
        argument: the recipe's own description of it.
        values: the legal values, in order where `ordered`; empty for a range.
        low, high: ends of a range, both legal. log: whether it is even in the logarithm.
        ordered: neighbours among `values` are alike (numbers); else any two are equally far apart (names).
        default: the value where a study begins.
        when: any of these conditions makes it matter; none: it always does. `otherwise`: what the recipe is told where
            it does not matter; None leaves the argument out.
        cost: what raising it does to a trial's time.
    """

    argument: Argument
    default: Any
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    ordered: bool = True
    when: tuple[When, ...] = ()
    otherwise: Any = None
    cost: Cost = "none"

    @property
    def name(self) -> str:
        return self.argument.name

    @property
    def kind(self) -> str:
        return self.argument.kind

    def active(self, config: Mapping[str, Any]) -> bool:
        """Whether the axis matters under the values of the axes before it."""
        return not self.when or any(condition.holds(config) for condition in self.when)

    def check(self, value: Any) -> Any:
        """The value as the recipe's type.

        Raises:
            ValueError: another type, a value that is not legal, or one outside the range.
        """
        typed = _typed(self.kind, value)
        if typed is None or (self.values and typed not in self.values):
            raise ValueError(f"{self.name}: {_shown(value)} is not legal; {self.legal}")
        if not self.values and not self.low <= typed <= self.high:
            raise ValueError(f"{self.name}: {_shown(value)} is outside the range; {self.legal}")
        return typed

    @property
    def legal(self) -> str:
        """What is legal, in words."""
        if self.values:
            return f"choose one of {', '.join(json.dumps(value) for value in self.values)}"
        return f"{self.kind} from {self.low:g} to {self.high:g}{' (logarithmic)' if self.log else ''}"

    def unit(self, value: Any) -> float:
        """Where a legal value lies, 0 to 1; the place in the list of a value set."""
        if self.values:
            return self.values.index(value) / max(len(self.values) - 1, 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def from_unit(self, share: float) -> Any:
        """The legal value at a share of the axis, 0 <= share < 1; each of a value set takes an equal part."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = (self.low, self.high + 1) if self.kind == "int" else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        if self.kind == "int":
            return min(int(value), int(self.high))
        # Three figures say all that a trial can tell, and are short to write and read.
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def apart(self, one: Any, other: Any) -> float:
        """Distance of two legal values, 0 to 1."""
        if not self.ordered:
            return float(one != other)
        return abs(self.unit(one) - self.unit(other))

    def schema(self, described: bool = True) -> dict[str, Any]:
        """JSON Schema of the value, with its meaning where `described`."""
        told: dict[str, Any] = {"description": self.argument.help} if described else {}
        told["default"] = self.default
        if self.values:
            return told | {"enum": list(self.values)}
        kind = {"int": "integer", "float": "number"}[self.kind]
        low, high = (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)
        return told | {"type": kind, "minimum": low, "maximum": high}


def _typed(kind: str, value: Any) -> Any:
    """The value as that kind, or None where it is no such value; a bool is no number, 64.0 is the integer 64."""
    if kind == "bool" or isinstance(value, bool):
        return value if kind == "bool" and isinstance(value, bool) else None
    if kind == "str":
        return value if isinstance(value, str) else None
    if not isinstance(value, int | float) or not abs(value) < 1e15:
        return None
    if kind == "int":
        return int(value) if value == int(value) else None
    return float(value) + 0.0  # so that -0.0 is no value of its own


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
