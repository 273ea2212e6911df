"""What a sweep computes once: everything about a tensor that depends on no strength."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify

from recllm.merging.checkpoint import Weights
from recllm.merging.draws import ByteCache, Stream
from recllm.merging.kernels import PIECE, slerp_cosine
from recllm.merging.methods import DIRECT, THINKING
from recllm.merging.own import low_rank, wide
from recllm.merging.resolve import MergePlan, TensorPlan
from recllm.merging.selection import Band, Selection, select
from recllm.merging.space import Point

BANDS = {SparsificationMethod.magnitude: "top", SparsificationMethod.magnitude_outliers: "middle"}
SELECTIVE = ("selective_overwrite", "selective_average", "selective_surgical")
DRAWN = (SparsificationMethod.random, SparsificationMethod.della_magprune)


class Reuse:
    """Angles, selections, random masks and low-rank differences of fixed parents.

    Args:
        parents: role -> weights.
        cache_bytes: most memory for masks and low-rank differences; the rest takes bytes a tensor.
        workers: threads that sort, at most one for each parent of a tensor.
    """

    def __init__(self, parents: Mapping[str, Weights], cache_bytes: int, workers: int) -> None:
        self._parents = parents
        self._cache = ByteCache(cache_bytes)
        self._workers = workers
        self._cosines: dict[tuple, torch.Tensor] = {}
        self._selections: dict[tuple, dict[Band, Selection]] = {}
        self._bands: dict[tuple, set[Band]] = {}
        self._streams: dict[tuple, Stream] = {}

    def note(self, found: MergePlan) -> None:
        """Remember which selections a point will need, so that one sort serves all its tensor's densities."""
        method = found.method
        name = method.spec.name
        kind = BANDS.get(getattr(method, "sparsification_method", None))
        for tensor in found.tensors:
            if name in SELECTIVE:
                band = Band("first", tensor.shared["density"])
                self._bands.setdefault((tensor.name, DIRECT, THINKING), set()).add(band)
            elif kind and not tensor.shared["rescale"]:
                for role in tensor.others:
                    band = _band(kind, tensor.inputs[role])
                    if band.density < 1:
                        self._bands.setdefault((tensor.name, tensor.base, role), set()).add(band)

    def _selection(
        self, place: tuple[str, str, str], flat: Mapping[str, torch.Tensor], dtype: torch.dtype, band: Band
    ) -> Selection:
        _, base, role = place
        known = self._selections.setdefault((*place, dtype), {})
        if band not in known:
            delta = flat[role].to(dtype) - flat[base].to(dtype)
            known |= select(delta, self._bands.get(place, set()) | {band})
        return known[band]

    def select(
        self, tensor: TensorPlan, flat: Mapping[str, torch.Tensor], dtype: torch.dtype, kind: str
    ) -> dict[str, Selection | None]:
        """role -> which entries of its task vector stay; None for all. The parents are sorted side by side."""

        def one(role: str) -> Selection | None:
            band = _band(kind, tensor.inputs[role])
            place = (tensor.name, tensor.base, role)
            return None if band.density >= 1 else self._selection(place, flat, dtype, band)

        if self._workers < 2 or flat[tensor.base].numel() < PIECE:
            return {role: one(role) for role in tensor.others}
        with ThreadPoolExecutor(self._workers) as pool:
            return dict(zip(tensor.others, pool.map(one, tensor.others), strict=True))

    def stream(self, found: MergePlan, point: Point) -> Stream:
        """The draws that this point shares with all that differ in strength only."""
        key = (found.method.spec.name, point.seed, found.roles, found.drops)
        if key not in self._streams:
            self._streams[key] = Stream(point.seed or 0)
        return self._streams[key]

    def sparse(self, found: MergePlan, index: int, dtype: torch.dtype, point: Point) -> list[torch.Tensor]:
        """mergekit's sparsified task vectors of one tensor, flat, one for each parent but the base."""
        tensor, method = found.tensors[index], found.method.sparsification_method
        stream = self.stream(found, point)
        rescale = RescaleNorm.l1 if tensor.shared["rescale"] else None

        def make() -> torch.Tensor:
            base = self._parents[tensor.base].tensor(tensor.name).to(dtype)
            rows = torch.empty((len(tensor.others), base.numel()), dtype=dtype)
            for row, role in zip(rows, tensor.others, strict=True):
                options = {k: v for k, v in tensor.inputs[role].items() if k in ("density", "gamma", "epsilon")}
                delta = self._parents[role].tensor(tensor.name).to(dtype) - base
                row.copy_(sparsify(delta, method=method, rescale_norm=rescale, **options).reshape(-1))
            return rows

        draw = (lambda: stream.draw(index, make)) if method in DRAWN else make
        return list(self._cache.get((id(stream), index, dtype, rescale), draw))

    def low_rank(
        self, tensor: TensorPlan, flat: Mapping[str, torch.Tensor], shape: torch.Size, dtype: torch.dtype
    ) -> torch.Tensor:
        """LoRE's thresholded half difference, flat, in float32 at least."""
        penalty = tensor.shared["penalty"]

        def make() -> torch.Tensor:
            direct, thinking = (wide(flat[role].to(dtype)) for role in (DIRECT, THINKING))
            return low_rank(((thinking - direct) / 2).reshape(shape), penalty).reshape(-1)

        return self._cache.get(("lore", tensor.name, penalty, dtype), make)

    def most_changed(self, tensor: TensorPlan, flat: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Selection:
        """Where the parents differ most, for the selective methods."""
        band = Band("first", tensor.shared["density"])
        return self._selection((tensor.name, DIRECT, THINKING), flat, dtype, band)

    def cosine(self, tensor: TensorPlan, flat: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Cosine between SLERP's two parents."""
        key = (tensor.name, tensor.base, tensor.others[0], dtype)
        if key not in self._cosines:
            self._cosines[key] = slerp_cosine(flat[tensor.base], flat[tensor.others[0]], dtype)
        return self._cosines[key]


def _band(kind: str, values: Mapping[str, float]) -> Band:
    return Band(kind, values["density"], values.get("gamma", 0.0))
