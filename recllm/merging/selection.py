"""Which entries of a difference a method keeps, by magnitude, in a few bytes.

TIES, breadcrumbs and the selective methods sort a tensor's magnitudes and keep a band of ranks. The sort is the dear
part and depends on no strength; what it says fits in two thresholds and the positions of those entries that tie with a
threshold and are kept. bfloat16 differences tie by the thousand, and which of them mergekit keeps follows from its
sort, so the same sort is asked here, once for all densities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Band(NamedTuple):
    """What to keep. kind: "top" (TIES), "middle" (breadcrumbs), "first" (selective: ties go to the first)."""

    kind: str
    density: float
    gamma: float = 0.0


@dataclass(frozen=True)
class Selection:
    """Entries with low < magnitude < high are kept, and those at the sorted `positions` of the flat tensor."""

    low: float
    high: float
    positions: torch.Tensor

    def mask(self, difference: torch.Tensor, part: slice) -> torch.Tensor:
        """True where an entry of this piece is kept."""
        magnitudes = difference.abs().float()
        kept = magnitudes > self.low
        if self.high < math.inf:
            kept &= magnitudes < self.high
        kept[self._listed(part)] = True
        return kept

    def apply(self, difference: torch.Tensor, part: slice) -> torch.Tensor:
        """The piece with everything else set to zero. Thresholding by hardshrink is 20 times a mask's speed."""
        if difference.dtype == torch.float64:  # thresholds are float32, as is the sort they came from
            return difference * self.mask(difference, part)
        listed = self._listed(part)
        kept = F.hardshrink(difference, max(self.low, 0.0))
        if self.high <= self.low:
            kept.zero_()  # nothing lies between
        elif self.high < math.inf:
            kept -= F.hardshrink(difference, _below(self.high, difference.dtype))
        if len(listed):
            kept[listed] = difference[listed]
        return kept

    def _listed(self, part: slice) -> torch.Tensor:
        begin, end = torch.searchsorted(self.positions, torch.tensor([part.start, part.stop])).tolist()
        return self.positions[begin:end].long() - part.start


def _below(value: float, dtype: torch.dtype) -> float:
    """The next smaller number of the dtype: floats above zero are ordered as their bits are. Zero stays zero."""
    bits = torch.tensor([value], dtype=dtype).view(torch.int16 if dtype.itemsize == 2 else torch.int32)
    return float((bits - 1).view(dtype)) if value > 0 else 0.0


def select(difference: torch.Tensor, bands: Iterable[Band]) -> dict[Band, Selection]:
    """The selections of all `bands` from one sort for each kind.

    Args:
        difference: any shape, in the dtype in which it is computed.
    """
    magnitudes = difference.abs().reshape(-1).float()
    found: dict[Band, Selection] = {}
    bands = set(bands)
    for kind in sorted({band.kind for band in bands}):
        order = _order(magnitudes, kind)
        for band in bands:
            if band.kind == kind:
                found[band] = _selection(magnitudes, order, band)
    return found


def _order(magnitudes: torch.Tensor, kind: str) -> torch.Tensor:
    # Not stable for mergekit's methods, since mergekit's is not: the order of equals is the algorithm's.
    if kind == "middle":
        return torch.sort(magnitudes, descending=False).indices
    return torch.argsort(magnitudes, descending=True, stable=kind == "first")


def _selection(magnitudes: torch.Tensor, order: torch.Tensor, band: Band) -> Selection:
    count = len(order)
    if band.kind == "middle":
        target = int(band.density * count)
        begin = max(0, count - target - int(band.gamma * count))
        kept = order[begin : begin + target]
    else:
        kept = order[: max(band.kind == "top", int(band.density * count))]
    if not len(kept):
        return Selection(math.inf, math.inf, torch.empty(0, dtype=torch.int64))
    values = magnitudes[kept[[0, -1]]]
    low, high = float(values.min()), math.inf
    edge = magnitudes[kept] == low
    if band.kind == "middle":
        high = float(values.max())
        edge |= magnitudes[kept] == high
    positions = kept[edge].sort().values
    small = count < 2**31
    return Selection(low, high, positions.to(torch.int32) if small else positions)
