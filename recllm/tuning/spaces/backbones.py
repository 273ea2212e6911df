"""The search spaces of SASRec and HSTU, after VirtualMLE (arXiv 2606.03221), with the defaults that it starts from; and
GLASS's, with its recipe's.

Left out of the published space: `eval_batch_size`, since the recipe has no such argument (evaluation sizes its own
batches and its result does not depend on them), and `embedding_fusion`, which the recipe has: it needs a folder of item
vectors, and a proposal names no paths.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from recllm.tuning.spaces.axes import Axis, Cost, When
from recllm.tuning.spaces.recipe import recipe_arguments
from recllm.tuning.spaces.space import Limits, Space

RECIPE, GENERATIVE = "train_backbone", "train_generative"
_LEFT_OUT = {
    "eval_batch_size": "evaluation sizes its own batches; the result does not depend on them",
    "embedding_fusion": "needs a folder of item vectors, and a proposal names no paths",
}
_NUMBERS = ("int", "float")
_NO_LIMITS = Limits()


def _axis(
    name: str,
    default: Any,
    *values: Any,
    between: tuple[float, float] | None = None,
    log: bool = False,
    when: tuple[When, ...] = (),
    otherwise: Any = None,
    cost: Cost = "none",
    recipe: str = RECIPE,
) -> Axis:
    """An axis over a recipe's argument; without values or a range the argument's own choices."""
    argument = recipe_arguments(recipe)[name]
    if between is None and not values:
        values = (False, True) if argument.kind == "bool" else argument.choices
    low, high = between or (0.0, 1.0)
    ordered = argument.kind in _NUMBERS
    return Axis(argument, default, values, low, high, log, ordered, when, otherwise, cost)


def _structure(tied: bool, normalised: bool, temperature: float) -> tuple[Axis, ...]:
    unit_length = (When("l2_norm", (True,)),)
    return (
        _axis("tie_embeddings", tied),
        _axis("l2_norm", normalised, False, True),
        _axis("temperature", temperature, between=(0.02, 0.5), log=True, when=unit_length, otherwise=1.0),
        _axis("pooling", "last"),
        _axis("pool_k", 5, between=(2, 10), when=(When("pooling", ("last_k_mean",)),)),
        _axis("share_blocks", False, when=(When("num_blocks", (2, 3, 4)),)),
    )


def _objective(batch_size: int, weight_decay: float, optimizer: str) -> tuple[Axis, ...]:
    sampled = (When("num_negatives", (50, 100, 200, 500, 1000)),)
    return (
        _axis("batch_size", batch_size, 16, 32, 64, 128, 256, 512, cost="low"),
        _axis("lr", 3e-4, between=(1e-5, 3e-2), log=True),
        _axis("weight_decay", weight_decay, 0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        _axis("optimizer", optimizer),
        _axis("num_negatives", 500, 0, 50, 100, 200, 500, 1000),
        _axis("logq", False, when=sampled),
        _axis("train_targets", "all_positions"),
        _axis("train_window", 50, 5, 10, 20, 50),
        _axis("patience", 3, 2, 3, 5, 8, cost="low"),
    )


def _priors() -> tuple[Axis, ...]:
    weights = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    pairs = (When("prior_transition", weights[1:]), When("prior_item_cf", weights[1:]))
    return (
        _axis("prior_transition", 0.0, *weights),
        _axis("prior_item_cf", 0.0, *weights),
        _axis("prior_popularity", 0.0, *weights),
        _axis("prior_norm", "sqrt", when=pairs),
        _axis("prior_recent_k", 5, between=(1, 10), when=pairs),
        _axis("prior_topk", 100, 10, 20, 50, 100, 200, when=pairs),
        _axis("prior_window", 5, between=(1, 10), when=pairs),
    )


def sasrec_space(limits: Limits = _NO_LIMITS) -> Space:
    """SASRec's: width, depth, regularisation, optimiser, loss, structure and train-split priors."""
    axes = (
        _axis("hidden_dim", 128, 16, 32, 64, 128, 256, cost="high"),
        _axis("num_blocks", 1, 1, 2, 3, 4, cost="high"),
        _axis("num_heads", 1, 1, 2, 4),
        _axis("dropout", 0.2, between=(0.0, 0.8)),
        *_objective(256, 1e-5, "adam"),
        *_structure(tied=False, normalised=False, temperature=0.1),
        _axis("ffn", "gelu"),
        _axis("position", "learned", "none", "learned", "relative_bias", "rope", "learned+relative_bias"),
        *_priors(),
    )
    fixed = {"backbone": "sasrec", "loss": "softmax", "max_len": 50, "epochs": 20, "metric": "recall@10"}
    return Space("sasrec", RECIPE, axes, fixed, limits, _LEFT_OUT)


def hstu_space(limits: Limits = _NO_LIMITS) -> Space:
    """HSTU's: as SASRec's, with the widths of its heads and dropout of its attention, and without a feed-forward."""
    axes = (
        _axis("hidden_dim", 128, 16, 32, 64, 128, 256, cost="high"),
        _axis("num_blocks", 1, 1, 2, 3, 4, cost="high"),
        _axis("num_heads", 1, 1, 2, 4),
        _axis("linear_dim", 16, 8, 16, 32, 64, cost="low"),
        _axis("attention_dim", 16, 8, 16, 32, 64, cost="low"),
        _axis("dropout", 0.5, between=(0.0, 0.8)),
        _axis("attn_dropout", 0.0, between=(0.0, 0.5)),
        *_objective(128, 0.0, "adamw"),
        *_structure(tied=True, normalised=True, temperature=0.05),
        _axis(
            *("position", "learned+relative_bias"),
            *("none", "learned", "relative_bias", "rope", "learned+relative_bias"),
        ),
        _axis("time_bias", "auto", "auto", "none"),
        *_priors(),
    )
    fixed = {"backbone": "hstu", "loss": "softmax", "max_len": 50, "epochs": 20, "metric": "recall@10", "beta2": 0.98}
    return Space("hstu", RECIPE, axes, fixed, limits, _LEFT_OUT)


def glass_space(limits: Limits = _NO_LIMITS) -> Space:
    """GLASS's: shape, parts, retrieval and optimiser, from what `recipes/train_generative.py` takes."""
    retrieval = (When("retrieval", (True,)),)
    values = partial(_axis, recipe=GENERATIVE)
    axes = (
        values("hidden_dim", 128, 32, 64, 96, 128, 192, cost="high"),
        values("num_blocks", 4, 1, 2, 3, 4, 6, cost="high"),
        values("num_heads", 6, 2, 4, 6, 8, cost="low"),
        values("head_dim", 64, 16, 32, 64, cost="low"),
        values("ffn_dim", 1024, 128, 256, 512, 1024, 2048, cost="low"),
        values("dropout", 0.1, between=(0.0, 0.5)),
        values("max_len", 20, 10, 20, 50, cost="high"),
        values("user_tokens", 0, 0, 500, 2000),
        values("tier", True),
        values("retrieval", True, cost="low"),
        values("gate", "code", when=retrieval),
        values("retrieved", 30, 10, 20, 30, 50, when=retrieval),
        values("neighbours", 3, 0, 1, 3, 5, when=retrieval),
        values("threshold", 5, 2, 5, 10, when=(When("neighbours", (1, 3, 5)),)),
        values("targets_per_user", 0, 0, 1, 2, 5, cost="high"),
        values("batch_size", 256, 32, 64, 128, 256, 512, cost="low"),
        values("lr", 1e-3, between=(1e-4, 1e-2), log=True),
        values("weight_decay", 1e-2, 0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        values("patience", 5, 2, 3, 5, 8, cost="low"),
    )
    return Space("glass", GENERATIVE, axes, {"backbone": "glass"}, limits)


SPACES = {"sasrec": sasrec_space, "hstu": hstu_space, "glass": glass_space}


def backbone_space(name: str, limits: Limits = _NO_LIMITS) -> Space:
    """The space of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SPACES:
        raise ValueError(f"there is no space {name!r}; choose one of {', '.join(SPACES)}")
    return SPACES[name](limits)


# A surface answers for single changes, so every one must have been measured: any other configuration is answered by the
# nearest one, and among a few hundred spread over a dozen axes that is nearly always the one that was changed. So each
# surface has the six axes that move its backbone most, few values each, and is measured whole.
_SURFACE: dict[str, dict[str, tuple[Any, ...]]] = {
    "sasrec": {
        "hidden_dim": (32, 64, 128),
        "dropout": (0.2, 0.5),
        "batch_size": (64, 256),
        "lr": (3e-4, 3e-3, 1e-2),
        "num_negatives": (0, 500),
        "prior_item_cf": (0.0, 0.2, 1.0),
    },
    "hstu": {
        "hidden_dim": (32, 64, 128),
        "dropout": (0.2, 0.5),
        "batch_size": (32, 128),
        "lr": (3e-4, 3e-3, 1e-2),
        "temperature": (0.05, 0.2),
        "prior_transition": (0.0, 0.2, 1.0),
    },
}
SURFACE_EPOCHS = 12


def surface_space(backbone: str, limits: Limits = _NO_LIMITS) -> Space:
    """The part of a backbone's space that its surfaces cover.

    Raises:
        ValueError: there is no surface of such a backbone.
    """
    if backbone not in _SURFACE:
        raise ValueError(f"there is no surface of {backbone!r}; choose one of {', '.join(_SURFACE)}")
    space = backbone_space(backbone, limits)
    others = {axis.name: (axis.default,) for axis in space.axes}
    space = space.narrowed(**{**others, **_SURFACE[backbone]})
    return replace(space, fixed={**space.fixed, "epochs": SURFACE_EPOCHS})
