"""From a point's recipe to the numbers of every tensor, resolved by mergekit's own rules.

The order of the tensors is part of it: mergekit runs them by name, and the methods that draw take their numbers from
one generator in that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekit.config import ConfigReader, InputSliceDefinition, MergeConfiguration, OutputSliceDefinition
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import MergeMethod
from mergekit.parameter_resolver import resolve_parameters

import recllm.merging.own  # noqa: F401  registers the methods that mergekit lacks
from recllm.merging.layout import Layout


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of one merge.

    roles: the parents in mergekit's order, the base among them where there is one. shared: parameter -> value.
    inputs: role -> parameter -> value.
    """

    name: str
    base: str | None
    roles: tuple[str, ...]
    shared: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]

    @property
    def others(self) -> tuple[str, ...]:
        """The roles but the base."""
        return tuple(role for role in self.roles if role != self.base)


@dataclass(frozen=True)
class MergePlan:
    """A whole merge: the method, the dtypes by name or None for the parents' own, and every tensor in order."""

    method: MergeMethod
    dtype: str | None
    out_dtype: str | None
    tensors: tuple[TensorPlan, ...]

    @cached_property
    def drops(self) -> tuple[tuple[float | None, ...], ...]:
        """What decides how many random numbers each tensor takes, and which: densities and epsilons, in order."""
        found = (values for tensor in self.tensors for values in tensor.inputs.values())
        return tuple((values.get("density"), values.get("epsilon")) for values in found)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every parent that the merge reads."""
        return self.tensors[0].roles if self.tensors else ()


def plan(config: Mapping[str, Any], layout: Layout) -> MergePlan:
    """Resolve a configuration whose models are roles.

    Raises:
        ValueError: mergekit refuses the configuration; its words are in the message.
    """
    try:
        return _plan(MergeConfiguration.model_validate(dict(config)), layout)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{config.get('merge_method')}: mergekit refuses this merge: {error}") from error


def _plan(config: MergeConfiguration, layout: Layout) -> MergePlan:
    method = registry.get(config.merge_method)
    layers = max(layout.layers, 1)
    sources = [
        InputSliceDefinition(layer_range=(0, layers), model=model.model, parameters=model.parameters)
        for model in config.models or []
    ]
    if config.base_model and config.base_model not in [source.model for source in sources]:
        sources.append(InputSliceDefinition(layer_range=(0, layers), model=config.base_model))
    method.validate_inputs([source.model for source in sources], config.base_model)
    reader = ConfigReader(config=config, slice_out=OutputSliceDefinition(sources=sources), t=0)
    tensors = []
    for name in sorted(layout.places):
        layer = layout.places[name].layer
        # mergekit's gradients: 0 outside the layers, 1 where there is one layer only.
        t = 0.0 if layer is None else layer / (layers - 1) if layers > 1 else 1.0
        shared, inputs = resolve_parameters(
            method.spec,
            tensor_name=name,
            inputs={source.model: name for source in sources},
            sources=reader.with_t(t).parameter_sources,
            base_model=config.base_model,
            t=t,
        )
        roles = tuple(str(source.model) for source in sources)
        base = None if config.base_model is None else str(config.base_model)
        tensors.append(TensorPlan(name, base, roles, shared, {str(model): found for model, found in inputs.items()}))
    return MergePlan(method, config.dtype, config.out_dtype, tuple(tensors))
