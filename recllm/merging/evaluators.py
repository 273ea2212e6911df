"""Evaluators by name, or by the import path of a user's own.

A factory takes a mapping of options and answers with an `Evaluator`. Only the one that is asked for is imported.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from recllm.evaluation.samples import Evaluator

EVALUATORS = {
    "arithmetic": "recllm.evaluation.maths:arithmetic_evaluator",
    "gsm8k": "recllm.evaluation.maths:gsm8k_evaluator",
    "lm_eval": "recllm.evaluation.lm_harness:lm_eval_evaluator",
    "recommendation": "recllm.evaluation.tunable_depth:recommendation_evaluator",
    "planner": "recllm.evaluation.tunable_depth:planner_evaluator",
}
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def load_evaluator(name: str, options: Mapping[str, Any] | None = None) -> Evaluator:
    """The evaluator of that name, or of the factory at that import path (`package.module:factory`).

    Raises:
        ValueError: an unknown name, a path that leads nowhere, options that the factory refuses, or an answer that is
            no evaluator.
    """
    path = EVALUATORS.get(name, name)
    if not _PATH.fullmatch(path):
        near = difflib.get_close_matches(name, EVALUATORS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(EVALUATORS)}"
        raise ValueError(
            f"evaluator {name!r} is unknown ({hint}); a factory of your own goes by package.module:factory"
        )
    module, _, attribute = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"evaluator {name!r} cannot be imported ({error}); the module must be installed or on PYTHONPATH"
        ) from error
    found = factory(dict(options or {}))
    if not (callable(found) and all(_is_text(getattr(found, field, None)) for field in ("name", "fingerprint"))):
        raise ValueError(f"evaluator {name!r}: {path} must answer with a callable that has a name and a fingerprint")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def read_options(text: str, folders: Mapping[str, str]) -> dict[str, Any]:
    """Options from YAML, with the folders that are given beside them under their names.

    Raises:
        ValueError: no mapping, a name that is no text, or a folder that is given twice.
    """
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"evaluator_options is not valid YAML: {error}") from error
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise ValueError(f"evaluator_options must be a mapping of names to values, got {text!r}")
    if twice := sorted(options.keys() & folders.keys()):
        raise ValueError(f"{twice[0]} is given both as a key of its own and in evaluator_options: give it once")
    return options | dict(folders)
