"""What the evaluators of `tunable_depth.py` may be asked for, read out of a mapping that a user wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.evaluation.options import Options, check_least, check_share, mark, read_options
from recllm.metrics.ranking import ndcg_at_k, recall_at_k
from recllm.provenance import fingerprint

METRICS = {"ndcg@10": ndcg_at_k, "recall@10": recall_at_k}
ROLES = ("validation", "test")
# They change how long a result takes, not what it is.
_IDLE = ("batch_size",)
_FOLDERS = ("dataset", "sid_table", "tool_cache")
_CHOICES = {"role": ROLES, "metric": tuple(METRICS)}
_LEAST = {"users": 1, "samples": 1, "think_tokens": 1, "turn_tokens": 1, "batch_size": 1, "beams": 10}


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


def read_checked(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """The options as `RecommendationOptions` or `PlannerOptions`, every value checked.

    Raises:
        ValueError: as `read_options`, or a value out of range.
    """
    read = read_options(kind, options)
    values = dataclasses.asdict(read)
    check_least(read, {name: bound for name, bound in _LEAST.items() if name in values})
    for name, value in values.items():
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"evaluator_options: {name} must be {' or '.join(_CHOICES[name])}, got {value!r}")
        if isinstance(value, float) and value < 0:
            raise ValueError(f"evaluator_options: {name} must be a number of at least 0, got {value}")
    if "top_p" in values:
        check_share(read, "top_p")
    return read


def options_mark(name: str, read: RecommendationOptions | PlannerOptions) -> str:
    """Fingerprint of the options, folders by their content."""
    values = {key: value for key, value in dataclasses.asdict(read).items() if key not in _IDLE}
    return mark(name, {key: fingerprint(Path(value)) if key in _FOLDERS else value for key, value in values.items()})
