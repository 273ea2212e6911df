"""What the evaluators of `tunable_depth.py` may be asked for, read out of a mapping that a user wrote."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recllm.metrics.ranking import ndcg_at_k, recall_at_k
from recllm.provenance import fingerprint

METRICS = {"ndcg@10": ndcg_at_k, "recall@10": recall_at_k}
ROLES = ("validation", "test")
# They change how long a result takes, not what it is.
_IDLE = ("batch_size",)
_FOLDERS = ("dataset", "sid_table", "tool_cache")


@dataclass(frozen=True)
class RecommendationOptions:
    """Options of `recommendation_evaluator`.

    Attributes:
        dataset, sid_table: folders.
        role: whose targets are asked for, `validation` or `test`.
        users: so many of the role's users, chosen by the seed; all where there are not more.
        samples: completions a user. At temperature 0 they are equal.
        metric: `ndcg@10` or `recall@10`.
        think_tokens: most tokens before the answer; a thought that is still open then is closed.
        temperature, top_p: of what comes before the answer. The answer itself is searched for, not drawn.
        beams: width of that search, at least 10.
        exclude_seen: whether items of the history leave the list. The target always competes.
        seed: of the users and of the draws.
        batch_size: completions side by side.
    """

    dataset: str
    sid_table: str
    role: str = "validation"
    users: int = 300
    samples: int = 2
    metric: str = "ndcg@10"
    think_tokens: int = 24
    temperature: float = 0.6
    top_p: float = 0.95
    beams: int = 24
    exclude_seen: bool = True
    seed: int = 0
    batch_size: int = 256


@dataclass(frozen=True)
class PlannerOptions:
    """Options of `planner_evaluator`.

    Attributes:
        dataset, sid_table, tool_cache: folders.
        role: on whose targets episodes are played, `validation` or `test`.
        users: the first so many of the role's users; all where there are not more.
        quality_weight ... redundant_weight: of the terms of the reward, as in `grpo_planner.py`.
        turn_tokens: most tokens of a turn.
        batch_size: episodes side by side.
    """

    dataset: str
    sid_table: str
    tool_cache: str
    role: str = "validation"
    users: int = 300
    quality_weight: float = 1.0
    dense_weight: float = 0.2
    cost_weight: float = 0.15
    valid_weight: float = 0.1
    invalid_weight: float = 0.5
    redundant_weight: float = 0.02
    turn_tokens: int = 64
    batch_size: int = 256


Options = TypeVar("Options", RecommendationOptions, PlannerOptions)


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """The options as `kind`, every value checked.

    Raises:
        ValueError: an unknown option (the nearest known one is named), a missing one, or a value of another type or
            out of range.
    """
    known = typing.get_type_hints(kind)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"evaluator_options: unknown option {name!r}; {hint}")
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in options:
            raise ValueError(f"evaluator_options: {field.name} is missing; give it the folder of that name")
    values = {name: _typed(name, value, known[name]) for name, value in options.items()}
    read = kind(**values)
    _check_ranges(read)
    return read


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"evaluator_options: {name} must be of type {kind.__name__}, got {value!r}")
    return value


def _check_ranges(read: RecommendationOptions | PlannerOptions) -> None:
    values = dataclasses.asdict(read)
    choices = {"role": ROLES, "metric": tuple(METRICS)}
    least = {"users": 1, "samples": 1, "think_tokens": 1, "turn_tokens": 1, "batch_size": 1, "beams": 10}
    for name, value in values.items():
        if name in choices and value not in choices[name]:
            raise ValueError(f"evaluator_options: {name} must be {' or '.join(choices[name])}, got {value!r}")
        if name in least and value < least[name]:
            raise ValueError(f"evaluator_options: {name} must be at least {least[name]}, got {value}")
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"evaluator_options: {name} must be a number of at least 0, got {value}")
    if not 0 < values.get("top_p", 1.0) <= 1:
        raise ValueError(f"evaluator_options: top_p must lie above 0 and be at most 1, got {values['top_p']}")


def mark(name: str, read: RecommendationOptions | PlannerOptions) -> str:
    """Fingerprint of the options, folders by their content."""
    values = {key: value for key, value in dataclasses.asdict(read).items() if key not in _IDLE}
    for key in _FOLDERS:
        if key in values:
            values[key] = fingerprint(Path(values[key]))
    return hashlib.sha256(json.dumps([name, values], sort_keys=True).encode()).hexdigest()
