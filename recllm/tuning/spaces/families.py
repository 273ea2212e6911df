"""What kind of thing an axis sets, and what it says about a study that a change of it helped or hurt."""

from __future__ import annotations

import json
from typing import Any

from recllm.tuning.spaces.axes import Axis

FAMILIES = {
    "capacity": ("hidden_dim", "num_blocks", "num_heads", "linear_dim", "attention_dim", "head_dim", "ffn_dim"),
    "regularisation": ("dropout", "attn_dropout", "weight_decay"),
    "step size": ("lr",),
    "schedule": ("batch_size", "optimizer", "patience"),
    "objective": ("num_negatives", "logq", "train_targets", "train_window", "temperature", "targets_per_user"),
    "structure": (
        *("tie_embeddings", "share_blocks", "l2_norm", "pooling", "pool_k", "ffn", "position", "time_bias"),
        *("tier", "gate", "user_tokens"),
    ),
    "history": ("max_len", "retrieval", "retrieved", "neighbours", "threshold"),
    "priors": (
        *("prior_transition", "prior_item_cf", "prior_popularity"),
        *("prior_norm", "prior_recent_k", "prior_topk", "prior_window"),
    ),
}
# (family, up or down, helped or hurt) -> what it means, what limits the study now.
_STORIES = {
    ("capacity", "up", True): ("more capacity was of use: the model under-fitted", "capacity"),
    ("capacity", "up", False): ("more capacity fitted what does not carry over", "over-fitting"),
    ("capacity", "down", True): ("less capacity carries over better: the model over-fitted", "over-fitting"),
    ("capacity", "down", False): ("the capacity that was taken away was of use", "capacity"),
    ("regularisation", "up", True): ("stronger regularisation: the model over-fitted", "over-fitting"),
    ("regularisation", "up", False): ("regularisation is strong enough: more of it under-fits", "capacity"),
    ("regularisation", "down", True): ("weaker regularisation: the model under-fitted", "capacity"),
    ("regularisation", "down", False): ("the regularisation that was taken away was needed", "over-fitting"),
    ("step size", "up", True): ("larger steps: training had not got far enough in its epochs", "optimisation"),
    ("step size", "up", False): ("steps are large enough: beyond this, training is unsteady", "stability"),
    ("step size", "down", True): ("smaller steps: training was unsteady", "stability"),
    ("step size", "down", False): ("training gets less far in its epochs with this", "optimisation"),
    ("priors", "up", True): ("counts of the fitting events know what the model has not learned", "memorisation"),
    ("priors", "up", False): ("the counts drown what the model has learned", "model"),
    ("priors", "down", True): ("the counts had drowned what the model has learned", "model"),
    ("priors", "down", False): ("the counts knew what the model has not learned", "memorisation"),
}
_NAMED = {
    "capacity": "how the capacity is shared out",
    "regularisation": "regularisation",
    "step size": "the step size",
    "schedule": "the optimiser's schedule",
    "objective": "what the loss asks for",
    "structure": "the structure",
    "history": "what of the history is read",
    "priors": "how counts are made",
    "other": "this axis",
}
_FAILED = {
    "timeout": ("too slow for its limit", "time"),
    "out_of_memory": ("needs more memory than is allowed", "memory"),
    "too_large": ("has more parameters than are allowed", "size"),
    "nan": ("training diverged", "stability"),
    "refused": ("the backbone refuses this combination", "legality"),
    "crash": ("the trial crashed", "stability"),
}
_BY_AXIS = {name: family for family, names in FAMILIES.items() for name in names}


def family_of(axis: str) -> str:
    """The kind of thing an axis sets: a key of FAMILIES, or `other`."""
    return _BY_AXIS.get(axis, "other")


def direction(axis: Axis, before: Any, after: Any) -> str:
    """`up` or `down` along an axis of numbers or from False to True; `other` between names."""
    if axis.kind == "str" or before == after:
        return "other"
    return "up" if float(after) > float(before) else "down"


def story(axis: Axis, before: Any, after: Any, verdict: str, failure: str | None) -> tuple[str, str, str]:
    """(causal attribution, bottleneck, next action) of a single change, by the axis's family."""
    family, way = family_of(axis.name), direction(axis, before, after)
    change = f"{axis.name} {json.dumps(before)} to {json.dumps(after)}"
    if failure is not None:
        why, limit = _FAILED.get(failure, (failure, "stability"))
        return f"{change}: {why}", limit, f"go back to {axis.name} {json.dumps(before)}"
    if verdict == "inconclusive":
        return f"{change}: within the noise, {_NAMED[family]} is not what limits", "elsewhere", "change another axis"
    helped = verdict == "confirmed"
    limits = f"{_NAMED[family]} limited" if helped else f"{_NAMED[family]} was better before"
    why, limit = _STORIES.get((family, way, helped), (limits, family))
    further = f"try {axis.name} further {way}" if way != "other" else "change another axis of its kind"
    return f"{change}: {why}", limit, further if helped else f"keep {axis.name} {json.dumps(before)}"
