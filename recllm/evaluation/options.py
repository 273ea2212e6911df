"""Options that a user gave as a mapping, read into a dataclass and checked."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Options = TypeVar("Options")


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """The options as the dataclass `kind`, whose fields are of type int, float, bool or str, or one of these or None.

    Raises:
        ValueError: an unknown option (the nearest known one is named), a missing one, or a value of another type.
    """
    known = typing.get_type_hints(kind)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"evaluator_options: unknown option {name!r}; {hint}")
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in options:
            raise ValueError(f"evaluator_options: {field.name} is missing")
    return kind(**{name: _typed(name, value, known[name]) for name, value in options.items()})


def _typed(name: str, value: Any, kind: Any) -> Any:
    kinds = typing.get_args(kind) or (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        wanted = " or ".join("null" if each is type(None) else each.__name__ for each in kinds)
        raise ValueError(f"evaluator_options: {name} must be of type {wanted}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"evaluator_options: {name} must be a finite number, got {value}")
    return value


def check_least(options: Any, least: Mapping[str, float]) -> None:
    """Raise ValueError naming the first option that lies below its bound; one that is None has none."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ValueError(f"evaluator_options: {name} must be at least {bound}, got {value}")


def check_share(options: Any, name: str) -> None:
    """Raise ValueError where an option lies outside (0, 1]."""
    if not 0 < getattr(options, name) <= 1:
        raise ValueError(f"evaluator_options: {name} must lie above 0 and be at most 1, got {getattr(options, name)}")


def mark(*parts: Any) -> str:
    """Fingerprint of plain values: hex sha256 of their JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
