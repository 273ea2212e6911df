"""Checks of the values that a sweep's axes may take, and their one spelling."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from recllm.merging.layout import MODULES

_FLAGS = ("normalize", "rescale", "normalize_weights", "filter_wise", "nuslerp_row_wise", "nuslerp_flatten")
_COUNTS = ("seed", "max_iter")
# Axis -> (lowest, highest, whether the lowest itself is allowed).
_RANGES = {
    "density": (0.0, 1.0, False),
    "gamma": (0.0, 1.0, True),
    "epsilon": (0.0, 1.0, False),
    "scale": (-100.0, 100.0, True),
    "threshold": (0.0, math.inf, True),
    "penalty": (0.0, 1.0, True),
    "r": (0.0, math.inf, True),
    "alpha": (0.0, math.inf, True),
    "tol": (0.0, math.inf, False),
}
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def check_axis(method: str, key: str, value: Any) -> Any:
    """The value in its canonical spelling.

    Raises:
        ValueError: the value is of the wrong kind or out of range; the message names method and axis.
    """
    where = f"{method}: {key}"
    if key == "strength":
        return _strength(where, value)
    if key == "modules":
        return _modules(where, value)
    if key == "depth":
        return _depth(where, value)
    if key in ("base", "dtype"):
        if not isinstance(value, str) or (key == "dtype" and value not in _DTYPES):
            known = _DTYPES if key == "dtype" else ("base", "direct", "none")
            raise ValueError(f"{where} must be one of {', '.join(known)}, got {value!r}")
        return value
    if key in _FLAGS:
        if not isinstance(value, bool):
            raise ValueError(f"{where} must be true or false, got {value!r}")
        return value
    if key in _COUNTS:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ValueError(f"{where} must be a whole number from 0 to 2**32 - 1, got {value!r}")
        return value
    low, high, closed = _RANGES[key]
    return _number(where, value, low, high, closed)


def _number(where: str, value: Any, low: float, high: float, closed: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} must be a number, got {value!r}")
    if value < low or value > high or (value == low and not closed):
        raise ValueError(f"{where} must lie in {'[' if closed else '('}{low:g}, {high:g}], got {value!r}")
    return round(float(value), 12) + 0.0  # one zero


def _strength(where: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        for name in value:
            if name not in (*MODULES, "rest"):
                raise ValueError(f"{where}: module {name!r} is unknown{unknown_name(name, (*MODULES, 'rest'))}")
        found = {name: _strength(f"{where} of {name}", part) for name, part in sorted(value.items())}
        rest = found.get("rest", 0.0)
        full = {name: found.get(name, rest) for name in MODULES}
        spelled = list(full.values())
        return spelled[0] if all(part == spelled[0] for part in spelled) else full
    if isinstance(value, list | tuple):
        if len(value) < 2:
            raise ValueError(f"{where}: a gradient over the depth needs at least two numbers, got {value!r}")
        numbers = [_number(where, part, 0.0, 1.0) for part in value]
        return numbers[0] if len(set(numbers)) == 1 else numbers
    return _number(where, value, 0.0, 1.0)


def _modules(where: str, value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"{where} must be a module or a list of them, got {value!r}")
    for name in names:
        if name not in (*MODULES, "all"):
            raise ValueError(f"{where}: module {name!r} is unknown{unknown_name(name, (*MODULES, 'all'))}")
    chosen = [name for name in MODULES if name in names]
    return "all" if "all" in names or len(chosen) == len(MODULES) else chosen


def _depth(where: str, value: Any) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(
            f"{where} must be a pair [from, to] between 0 and 1, got {value!r}; an axis is a list of pairs"
        )
    low, high = (_number(where, part, 0.0, 1.0) for part in value)
    if low > high:
        raise ValueError(f"{where}: {low:g} lies behind {high:g}")
    return [low, high]
