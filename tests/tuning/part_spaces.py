"""A part of a backbone's space with axes of every kind, some of them conditional, and few values each."""

from dataclasses import replace

from recllm.tuning.spaces.backbones import backbone_space
from recllm.tuning.spaces.space import Space

_BOTH = {
    "hidden_dim": (16, 32, 64, 128),
    "num_blocks": (1, 2, 3),
    "num_heads": (1,),
    "batch_size": (32, 64, 128, 256),
    "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "num_negatives": (0, 100, 500),
    "logq": (False,),
    "train_window": (50,),
    "patience": (3,),
    "temperature": (0.05, 0.1, 0.2),
    "pooling": ("last", "mean"),
    "share_blocks": (False,),
    "prior_transition": (0.0, 0.2, 1.0),
    "prior_item_cf": (0.0, 0.2, 1.0),
    "prior_popularity": (0.0,),
    "prior_norm": ("sqrt",),
    "prior_recent_k": (5,),
    "prior_topk": (100,),
    "prior_window": (5,),
}
_OWN = {
    "sasrec": {
        "dropout": (0.0, 0.2, 0.4, 0.6),
        "weight_decay": (0.0, 1e-5, 1e-4, 1e-3),
        "optimizer": ("adam",),
        "position": ("learned",),
    },
    "hstu": {
        "dropout": (0.0, 0.2, 0.5, 0.7),
        "weight_decay": (0.0, 1e-4, 1e-2, 1e-1),
        "optimizer": ("adamw",),
        "position": ("learned+relative_bias",),
        "linear_dim": (16, 32, 64),
        "attention_dim": (16,),
        "attn_dropout": (0.0, 0.2),
        "time_bias": ("auto",),
    },
}


def part_space(backbone: str) -> Space:
    space = backbone_space(backbone).narrowed(**_BOTH, **_OWN[backbone])
    return replace(space, fixed={**space.fixed, "epochs": 12})
