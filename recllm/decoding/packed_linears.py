"""Linear layers with their weights laid out for a few rows at a time, for decoding on the CPU.

A step of decoding multiplies a handful of rows with every weight. The usual product lays a weight out anew in each
call, which costs more than the product; oneDNN can do it once. Results differ by float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

# Fewer products than these do not pay for the copy.
WORTHWHILE = 8
# The copy's limit: a model of half a billion parameters.
MOST_BYTES = 2 << 30


@contextmanager
def packed_linears(model: torch.nn.Module, rows: int, times: int) -> Iterator[None]:
    """Inside, the model's float32 linear layers on the CPU multiply from a packed copy of their weights.

    `rows` is how many rows a call brings, `times` how many calls are to come: where these are few, torch was built
    without oneDNN, or the copy would take more than `MOST_BYTES`, nothing changes. No gradient flows, and weights must
    not change inside.
    """
    changed, held = [], 0
    if times >= WORTHWHILE and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu"):
        for module in model.modules():
            # A layer of another type, or with a forward of its own, has more to do than this product.
            plain = type(module) is torch.nn.Linear and "forward" not in vars(module)
            fits = held + module.weight.nbytes <= MOST_BYTES if plain else False
            if fits and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
                held += module.weight.nbytes
                packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), rows)
                module.forward = partial(_product, packed, module.bias)
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _product(packed: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
