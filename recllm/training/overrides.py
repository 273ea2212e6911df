"""The methods of TRL's and transformers' trainers that recllm replaces, each checked against what it was read as.

A replacement is attached to one trainer object, so a trainer that somebody built on their own can be equipped, too, and
no class of ours stands between them and TRL. All of them are private to their library and may change with any version:
`override` compares the signature first, and another one stops the run before anything is trained.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any


class OverrideError(RuntimeError):
    """A method that is to be replaced is missing or takes other arguments than those it was written for."""


def override(trainer: Any, name: str, parameters: Sequence[str], replacement: Callable[..., Any], remedy: str) -> None:
    """Replace the method `name` of this trainer by `replacement(original, *args, **kwargs)`.

    `original` is the bound method as it was, so replacements of one method stack. `parameters` are the names that the
    class's method must take, without `self`; more that come after them are let through. `remedy` says what a user can
    do where they differ.

    Raises:
        OverrideError: the method is missing or its first parameters have other names.
    """
    method = getattr(type(trainer), name, None)
    found = None if method is None else list(inspect.signature(method).parameters)[1:]
    if found is None or found[: len(parameters)] != list(parameters):
        is_now = "is missing" if found is None else f"takes ({', '.join(found)})"
        raise OverrideError(
            f"{type(trainer).__name__}.{name} was expected to take ({', '.join(parameters)}), and {is_now} in TRL "
            f"{version('trl')} with transformers {version('transformers')}: {remedy}, or install trl>=1.16,<1.17"
        )
    original = getattr(trainer, name)
    setattr(trainer, name, functools.wraps(original)(functools.partial(replacement, original)))
