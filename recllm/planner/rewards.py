"""The planner's reward, term by term (methods: R = quality + dense - cost + valid - invalid - redundant).

Each term is a reward function of its own for TRL, so that its mean is logged under its own name; the weights stand in
the YAML. Every function takes TRL's keyword columns and reads the episodes out of `environments`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recllm.planner.env import PlannerEnv, answer_ndcg, ranked_place, tools_cost
from recllm.planner.labels import dense_value


def quality(environments: Sequence[PlannerEnv], **columns: Any) -> list[float]:
    """NDCG@10 of the answer, 0..1."""
    return [answer_ndcg(env) for env in environments]


def dense(environments: Sequence[PlannerEnv], **columns: Any) -> list[float]:
    """1 - ln(rank) / ln(51) of the target in the whole first 50 of the answering tool, 0..1.

    NDCG is zero for nine users in ten; this term tells a near miss from a far one.
    """
    return [float(dense_value(ranked_place(env))) for env in environments]


def cost(environments: Sequence[PlannerEnv], **columns: Any) -> list[float]:
    """Minus the tools' cost as a share of the slow tool's, at most 0 (its weight is positive)."""
    return [-tools_cost(env) / env._bench.cost("reason", env.episode.row) for env in environments]


def valid(environments: Sequence[PlannerEnv], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the plan has a call, no faulty one, and came to an end; else 0."""
    pairs = zip(environments, completions, strict=True)
    return [float(bool(env.episode.calls) and not faults(done) and ended(done)) for env, done in pairs]


def invalid(environments: Sequence[PlannerEnv], completions: Sequence[Any], **columns: Any) -> list[float]:
    """-1 where a call was faulty or none was made, else 0 (its weight is positive)."""
    pairs = zip(environments, completions, strict=True)
    return [-float(bool(faults(done)) or not env.episode.calls) for env, done in pairs]


def redundant(environments: Sequence[PlannerEnv], **columns: Any) -> list[float]:
    """Minus the number of calls that repeat a tool or come after the limit (its weight is positive)."""
    return [-float(env.episode.redundant) for env in environments]


REWARDS = {
    "quality": quality,
    "dense": dense,
    "cost": cost,
    "valid": valid,
    "invalid": invalid,
    "redundant": redundant,
}


def chose_rank(environments: Sequence[PlannerEnv], **columns: Any) -> list[float]:
    """1 where rank's list is the answer: not a term of the reward, its mean shows where the planner is heading."""
    return [float(env.episode.tool == "rank") for env in environments]


def chose_reason(environments: Sequence[PlannerEnv], **columns: Any) -> list[float]:
    """1 where reason's list is the answer; see `chose_rank`."""
    return [float(env.episode.tool == "reason") for env in environments]


MONITORS = {"chose_rank": chose_rank, "chose_reason": chose_reason}


def faults(completion: Sequence[dict[str, Any]]) -> int:
    """Faulty calls in a completion: answers that are errors, and call markers that did not parse as a call."""
    count = 0
    for message in completion:
        content = message.get("content") or ""
        if message["role"] == "tool":
            count += content.startswith("{'error':")
        else:
            count += "<tool_call>" in content or "</tool_call>" in content
    return count


def ended(completion: Sequence[dict[str, Any]]) -> bool:
    """Whether the last message is the planner's own and calls nothing."""
    last = completion[-1]
    return last["role"] == "assistant" and not last.get("tool_calls")
