"""Four merge methods that mergekit lacks, written as mergekit methods and registered with it on import.

So mergekit writes their checkpoints and checks their parameters as it does for its own. These are the reference; the
engine's fast forms (recllm/merging/kernels.py) are tested against them.
"""

from __future__ import annotations

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import BasePolicy, InputContract, TensorGroup
from mergekit.merge_methods.easy_define import merge_method

_TWO = InputContract(base=BasePolicy.REQUIRED, min_inputs=2, max_inputs=2)
_SPECTRUM = "The Thinking Spectrum, the authors' public runs"


def low_rank(difference: torch.Tensor, penalty: float) -> torch.Tensor:
    """Singular value thresholding: every singular value of the matrix loses `penalty` times the largest one.

    Args:
        difference: (rows, columns), float32 or float64. A vector counts as one row, further axes as columns.

    Returns:
        The proximal point of the nuclear norm, in the same shape.
    """
    matrix = difference.reshape(difference.shape[0], -1) if difference.dim() > 1 else difference.reshape(1, -1)
    if penalty <= 0 or matrix.numel() == 0:
        return difference
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = (values - penalty * values[0]).clamp(min=0)
    return ((left * kept) @ right).reshape(difference.shape)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def top_mask(changes: torch.Tensor, density: float) -> torch.Tensor:
    """True for the `density` share of entries that changed most; among equal ones the first in memory."""
    count = int(density * changes.numel())
    order = torch.argsort(changes.abs().float().reshape(-1), descending=True, stable=True)[:count]
    mask = torch.zeros(changes.numel(), dtype=torch.bool, device=changes.device)
    mask[order] = True
    return mask.reshape(changes.shape)


def _pair(group: TensorGroup) -> tuple[torch.Tensor, torch.Tensor]:
    return group.base.tensor, group.non_base[0].tensor


def mix(direct: torch.Tensor, thinking: torch.Tensor, t: float) -> torch.Tensor:
    """(1 - t) direct + t thinking, rounded once."""
    return (wide(direct) * (1 - t) + wide(thinking) * t).to(direct.dtype)


@merge_method(name="lore", pretty_name="LoRE-Merging", reference_url="https://arxiv.org/abs/2502.10749", contract=_TWO)
def lore(group: TensorGroup, t: float, penalty: float = 0.1) -> torch.Tensor:
    """Low-rank estimation of what each parent adds to a base that nobody has.

    The paper minimises sum_i |base + delta_i - parent_i|^2 + mu |delta_i|_* by turns, from base = the parents' mean.
    With two parents this stands still after one turn: base = mean, delta_thinking = -delta_direct = the thresholded
    half difference. With weights 1 - t and t the merge is base + (2t - 1) delta_thinking. `penalty` is relative to the
    largest singular value of each matrix (mu in the paper is absolute, and would empty the small layers first);
    penalty 0 is the straight mix.
    """
    direct, thinking = _pair(group)
    if penalty <= 0:
        return mix(direct, thinking, t)
    mean = (wide(direct) + wide(thinking)) / 2
    delta = low_rank((wide(thinking) - wide(direct)) / 2, penalty)
    return (mean + delta * (2 * t - 1)).to(direct.dtype)


@merge_method(
    name="selective_overwrite", pretty_name=f"Average, then overwrite the most changed ({_SPECTRUM})", contract=_TWO
)
def selective_overwrite(group: TensorGroup, density: float, t: float = 0.5) -> torch.Tensor:
    """The mix everywhere, and the thinking parent's own value where the parents differ most."""
    direct, thinking = _pair(group)
    return torch.where(top_mask(thinking - direct, density), thinking, mix(direct, thinking, t))


@merge_method(name="selective_average", pretty_name=f"Average the most changed only ({_SPECTRUM})", contract=_TWO)
def selective_average(group: TensorGroup, density: float, t: float = 0.5) -> torch.Tensor:
    """The mix where the parents differ most, the direct parent elsewhere."""
    direct, thinking = _pair(group)
    return torch.where(top_mask(thinking - direct, density), mix(direct, thinking, t), direct)


@merge_method(name="selective_surgical", pretty_name=f"Transplant the most changed only ({_SPECTRUM})", contract=_TWO)
def selective_surgical(group: TensorGroup, density: float) -> torch.Tensor:
    """The thinking parent where the parents differ most, the direct parent elsewhere."""
    direct, thinking = _pair(group)
    return torch.where(top_mask(thinking - direct, density), thinking, direct)


OWN = (lore, selective_overwrite, selective_average, selective_surgical)
for _method in OWN:
    if _method.spec.name not in {known.spec.name for known in registry.registered_methods()}:
        registry.register(_method)
