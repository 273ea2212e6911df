"""Where a tensor sits in a language model: its module and its depth, read from its name.

Masks and per-module strengths are said in these terms; mergekit knows substrings of names and layer gradients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MODULES = ("attention", "mlp", "embeddings", "norms", "router", "other")
_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")
# The first that matches counts: a norm inside attention is a norm, a router inside the MLP is a router.
_PATTERNS = (
    ("norms", re.compile(r"norm|\.ln_|layernorm", re.IGNORECASE)),
    ("embeddings", re.compile(r"embed_tokens|lm_head|\bwte\b|\bwpe\b|embed_in|embed_out|word_embeddings")),
    ("router", re.compile(r"\.mlp\.gate\.|\.router\.|block_sparse_moe\.gate\.")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|expert|block_sparse_moe")),
)


@dataclass(frozen=True)
class Place:
    """module: one of MODULES. depth: 0 (first layer, embeddings) to 1 (last layer, final norm, head)."""

    module: str
    depth: float
    layer: int | None


class Layout:
    """The places of a model's tensors.

    Args:
        names: all tensor names of the checkpoint.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = sorted(names)
        layers = {name: int(found.group(1)) for name in names if (found := _LAYER.search(name))}
        self.layers = max(layers.values(), default=-1) + 1
        self.places: dict[str, Place] = {name: self._place(name, layers.get(name)) for name in names}

    def _place(self, name: str, layer: int | None) -> Place:
        module = next((module for module, pattern in _PATTERNS if pattern.search(name)), "other")
        if layer is not None:
            return Place(module, layer / (self.layers - 1) if self.layers > 1 else 0.0, layer)
        first = module == "embeddings" and not re.search(r"lm_head|embed_out", name)
        return Place(module, 0.0 if first else 1.0, None)


def compress(values: Mapping[str, float]) -> float | list[dict[str, object]]:
    """A value per tensor name in mergekit's language: one number, or filters with a default at the end.

    A filter holds for every name that contains it and the first that holds counts, so each filter used here matches
    tensors of one value only. Candidates are a layer, a part of a layer, a part of all layers, and the full name.
    """
    counts: dict[float, int] = {}
    for value in values.values():
        counts[value] = counts.get(value, 0) + 1
    default = max(counts, key=lambda value: (counts[value], value))
    if len(counts) == 1:
        return default
    chosen: list[dict[str, object]] = []
    left = {name for name, value in values.items() if value != default}
    ranked = []
    for candidate in {candidate for name in left for candidate in _candidates(name)}:
        matched = [name for name in values if candidate in name]
        if len({values[name] for name in matched}) == 1:
            ranked.append((-len(matched), candidate, matched))
    for _, candidate, matched in sorted(ranked):
        if left & set(matched):
            chosen.append({"filter": candidate, "value": values[matched[0]]})
            left -= set(matched)
    if left:
        raise ValueError(f"tensor {min(left)}: its name is part of another's, so no filter tells them apart")
    return [*chosen, {"value": default}]


def _candidates(name: str) -> list[str]:
    found = _LAYER.search(name)
    if not found:
        return [name]
    head, rest = name[: found.end()], name[found.end() :]
    parts = rest.split(".")
    prefixes = [".".join(parts[:count]) + "." for count in range(1, len(parts))]
    return [name, head, *(head + prefix for prefix in prefixes), *("." + prefix for prefix in prefixes)]
