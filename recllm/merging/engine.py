"""Every point of a sweep from parents that are mapped once, without touching the disk.

mergekit is the reference: recipes are resolved by its rules, and the tensors are the ones that it writes (bit for bit
in all methods but SLERP and the own ones, which sum or factor in another order: at most one bfloat16 step). Frequent
methods have kernels of their own; the rest runs mergekit's function tensor by tensor. What depends on no strength is
computed once: angles (SLERP), selections by magnitude (TIES, breadcrumbs), random masks, low-rank differences.

Memory: the parents are file pages that the system may take back; beyond them the engine holds one tensor's scratch,
the selections (bytes), and a cache of masks and low-rank differences of at most `cache_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce

import torch
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.buffers import copy_non_floating_buffer
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

from recllm.merging import kernels
from recllm.merging.checkpoint import Weights, stored_dtype
from recllm.merging.kernels import Pieces, TaskVector
from recllm.merging.layout import Layout
from recllm.merging.methods import DIRECT, THINKING
from recllm.merging.resolve import MergePlan, TensorPlan, plan
from recllm.merging.reuse import BANDS, DRAWN, SELECTIVE, Reuse
from recllm.merging.space import Point


class MergeEngine:
    """The fast path over fixed parents.

    Args:
        parents: role (direct, thinking, base) -> weights with the same tensors.
        points: the points that will be asked for: their densities are then selected from one sort. Others may be
            asked for, too.
        cache_bytes: most memory for random masks and low-rank differences.
        workers: threads that sort, at most one for each parent of a tensor.
    """

    def __init__(
        self,
        parents: Mapping[str, Weights],
        points: Iterable[Point] = (),
        cache_bytes: int = 2 << 30,
        workers: int = 2,
    ) -> None:
        self.parents = dict(parents)
        self.layout = Layout(next(iter(self.parents.values())))
        self._stored = stored_dtype(self.parents.values())
        self._reuse = Reuse(self.parents, cache_bytes, workers)
        for point in points:
            self._reuse.note(self.plan(point))

    def plan(self, point: Point) -> MergePlan:
        """The point's numbers for every tensor.

        Raises:
            ValueError: the point needs a parent that is not here, or mergekit refuses it.
        """
        found = plan(point.recipe(self.layout, self._stored), self.layout)
        if missing := [role for role in found.roles if role not in self.parents]:
            raise ValueError(f"{point.label} needs the parent {missing[0]!r}: give it, or choose methods without it")
        return found

    def tensors(self, point: Point) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and merged tensor, one at a time in mergekit's order. Each is new memory."""
        found = self.plan(point)
        for index, tensor in enumerate(found.tensors):
            sources = self._sources(tensor)
            out = torch.empty(next(iter(sources.values())).shape, dtype=self._out_dtype(found, sources))
            self._fill(out, found, index, sources, point)
            yield tensor.name, out

    @torch.no_grad()
    def write_into(self, point: Point, targets: Mapping[str, torch.Tensor]) -> None:
        """Write the point's tensors in place, into a live model's `state_dict()` for instance.

        A name that the parents lack is fine where it shares memory with one that they have (tied embeddings).

        Raises:
            ValueError: a tensor is missing on one side, differs in shape, or is not contiguous.
        """
        self._check_targets(targets)
        found = self.plan(point)
        for index, tensor in enumerate(found.tensors):
            self._fill(targets[tensor.name], found, index, self._sources(tensor), point)

    def out_dtypes(self, point: Point) -> dict[str, torch.dtype]:
        """The dtype of every merged tensor, in mergekit's order."""
        found = self.plan(point)
        return {tensor.name: self._out_dtype(found, self._sources(tensor)) for tensor in found.tensors}

    def release(self, name: str) -> None:
        """Give the parents' pages of one tensor back to the system."""
        for weights in self.parents.values():
            weights.release(name)

    def _check_targets(self, targets: Mapping[str, torch.Tensor]) -> None:
        written = set()
        for name in self.layout.places:
            shape = next(iter(self.parents.values())).infos[name].shape
            target = targets.get(name)
            if target is None or tuple(target.shape) != shape or not target.is_contiguous():
                found = "missing" if target is None else f"of shape {tuple(target.shape)}"
                raise ValueError(f"tensor {name}: the parents have shape {shape}, in the live model it is {found}")
            written.add(target.data_ptr())
        if left := sorted(n for n, t in targets.items() if n not in self.layout.places and t.data_ptr() not in written):
            raise ValueError(
                f"tensor {left[0]}: the live model has it, the parents do not; load the model from a parent"
            )

    def _sources(self, tensor: TensorPlan) -> dict[str, torch.Tensor]:
        return {role: self.parents[role].tensor(tensor.name) for role in tensor.roles}

    @staticmethod
    def _dtype(found: MergePlan, sources: Mapping[str, torch.Tensor]) -> torch.dtype:
        if found.dtype:
            return getattr(torch, found.dtype)
        return reduce(torch.promote_types, (source.dtype for source in sources.values()))

    def _out_dtype(self, found: MergePlan, sources: Mapping[str, torch.Tensor]) -> torch.dtype:
        first = next(iter(sources.values())).dtype
        if not first.is_floating_point:
            return first
        return getattr(torch, found.out_dtype) if found.out_dtype else self._dtype(found, sources)

    def _fill(
        self,
        out: torch.Tensor,
        found: MergePlan,
        index: int,
        sources: Mapping[str, torch.Tensor],
        point: Point,
    ) -> None:
        flat, rounded = out.view(-1), self._out_dtype(found, sources)
        for part, piece in self._pieces(found, index, sources, point):
            flat[part].copy_(piece.to(rounded))

    def _pieces(self, found: MergePlan, index: int, sources: Mapping[str, torch.Tensor], point: Point) -> Pieces:
        tensor, method = found.tensors[index], found.method
        fixed = copy_non_floating_buffer(list(sources.values()), tensor.name)
        if fixed is not None:
            return iter([(slice(0, fixed.numel()), fixed.view(-1))])
        flat = {role: source.reshape(-1) for role, source in sources.items()}
        dtype = self._dtype(found, sources)
        name = method.spec.name
        if name == "linear":
            weights = [tensor.inputs[role]["weight"] for role in tensor.roles]
            return kernels.linear(list(flat.values()), weights, tensor.shared["normalize"], dtype)
        if name == "slerp":
            other = tensor.others[0]
            factors = kernels.slerp_factors(self._reuse.cosine(tensor, flat, dtype), tensor.shared["t"])
            return kernels.combine(flat[tensor.base], flat[other], factors, dtype)
        if isinstance(method, GeneralizedTaskArithmeticMerge):
            return self._task_vectors(found, index, flat, dtype, point)
        if name == "lore" and tensor.shared["penalty"] > 0:
            delta = self._reuse.low_rank(tensor, flat, sources[DIRECT].shape, dtype)
            return kernels.low_rank_mix(flat[DIRECT], flat[THINKING], delta, tensor.shared["t"], dtype)
        if name in SELECTIVE:
            chosen = self._reuse.most_changed(tensor, flat, dtype)
            inside = tensor.shared["t"] if name == "selective_average" else None
            outside = tensor.shared["t"] if name == "selective_overwrite" else 0.0
            return kernels.selective(flat[DIRECT], flat[THINKING], chosen, inside, outside, dtype)
        return self._by_mergekit(found, index, sources, dtype, point)

    def _by_mergekit(
        self, found: MergePlan, index: int, sources: Mapping[str, torch.Tensor], dtype: torch.dtype, point: Point
    ) -> Pieces:
        tensor = found.tensors[index]
        parameters = dict(tensor.shared)
        for spec in found.method.spec.input_parameters:
            parameters[spec.name] = {r: v[spec.name] for r, v in tensor.inputs.items() if spec.name in v}

        def call() -> torch.Tensor:
            base = None if tensor.base is None else tensor.roles.index(tensor.base)
            return merge_tensors(
                list(sources.values()),
                found.method,
                parameters=parameters,
                ids=tensor.roles,
                base_index=base,
                name=tensor.name,
                dtype=dtype,
            )

        merged = call() if point.seed is None else self._reuse.stream(found, point).draw(index, call)
        yield slice(0, merged.numel()), merged.reshape(-1)

    def _task_vectors(
        self, found: MergePlan, index: int, flat: Mapping[str, torch.Tensor], dtype: torch.dtype, point: Point
    ) -> Pieces:
        tensor, method = found.tensors[index], found.method
        kind = method.sparsification_method
        weights = [tensor.inputs[role]["weight"] for role in tensor.others]
        # A method that draws goes on to `sparse` even where it drops nothing: its generator moves tensor by tensor.
        drops = kind is not None and (kind in DRAWN or any(tensor.inputs[r]["density"] < 1 for r in tensor.others))
        if drops and kind in BANDS and not tensor.shared["rescale"]:
            chosen = self._reuse.select(tensor, flat, dtype, BANDS[kind])
            vectors = [TaskVector(flat[r], w, chosen[r]) for r, w in zip(tensor.others, weights, strict=True)]
        elif drops:
            sparse = self._reuse.sparse(found, index, dtype, point)
            vectors = [TaskVector(None, w, sparse=s) for w, s in zip(weights, sparse, strict=True)]
        else:
            vectors = [TaskVector(flat[r], w) for r, w in zip(tensor.others, weights, strict=True)]
        elect = method.consensus_method is not None
        shared = tensor.shared
        return kernels.task_vectors(flat[tensor.base], vectors, elect, shared["normalize"], shared["lambda"], dtype)
