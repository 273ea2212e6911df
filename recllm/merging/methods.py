"""The merge methods that a sweep may use, by mergekit's names, and recllm's own four; what each lets you vary.

Every method is described by its axes. `strength` runs from 0 (the direct parent) to 1 (the thinking parent) in all of
them; `recipe` says what it means in mergekit's parameters:

- weighted methods: the direct parent weighs 1 - strength, the thinking parent strength;
- slerp, lore and the selective ones: t = strength, from the direct parent;
- a task vector method with `base: direct`: the thinking parent's difference from the direct one, times strength.

`scale` is mergekit's lambda, alpha in the TIES paper. mergekit's passthrough merges nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recllm.merging.layout import MODULES, Layout, Place, compress

DIRECT, THINKING, BASE = "direct", "thinking", "base"
NO_BASE = "none"
# Axes that every method takes, then what lies outside a mask: values that give back the direct parent.
COMMON = ("modules", "depth", "dtype")
_OUTSIDE = {"strength": 0.0, "scale": 1.0, "penalty": 0.0, "threshold": 0.0}


@dataclass(frozen=True)
class Method:
    """One merge method.

    axes: what may vary beside COMMON; the first `required` of them must be given.
    bases: which parent plays mergekit's base, the default first ("none": no base).
    kind: how strength enters: "weight", "task" (weights on task vectors), "t", or "" (the method has none).
    outside_density: the density that, at strength 0, gives back the direct parent.
    """

    name: str
    axes: tuple[str, ...]
    kind: str
    bases: tuple[str, ...]
    required: int = 1
    is_random: bool = False
    is_own: bool = False
    outside_density: float = 1.0

    @property
    def maskable(self) -> bool:
        """Whether some setting gives back the direct parent, so that the merge can be kept to a part of the model."""
        return "strength" in self.axes or self.name in ("nearswap", "selective_surgical")


_TASK = ("strength", "scale", "normalize", "rescale")


def _task(name: str, *axes: str, is_random: bool = False) -> Method:
    needs = 2 if axes else 1
    options = ("strength", *axes, *_TASK[1:]) if axes else ("strength", "scale", "normalize")
    return Method(name, options + (("seed",) if is_random else ()), "task", (BASE, DIRECT), needs, is_random)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("linear", ("strength",), "weight", (NO_BASE,)),
        Method("slerp", ("strength",), "t", (DIRECT,)),
        Method("nuslerp", ("strength", "nuslerp_row_wise", "nuslerp_flatten"), "weight", (NO_BASE, BASE)),
        Method("multislerp", ("strength", "normalize_weights"), "weight", (NO_BASE, BASE)),
        Method("nearswap", ("threshold",), "", (DIRECT,)),
        Method("karcher", ("max_iter", "tol"), "", (NO_BASE,), 0),
        Method("model_stock", ("filter_wise",), "", (BASE,), 0),
        Method("sce", ("density",), "", (BASE,)),
        Method("ram", ("epsilon",), "", (BASE,), 0),
        Method("ramplus_tl", ("r", "alpha", "epsilon"), "", (BASE,), 0),
        Method("arcee_fusion", ("seed",), "", (DIRECT,), 0, is_random=True),
        _task("task_arithmetic"),
        _task("ties", "density"),
        _task("dare_linear", "density", is_random=True),
        _task("dare_ties", "density", is_random=True),
        _task("breadcrumbs", "density", "gamma"),
        _task("breadcrumbs_ties", "density", "gamma"),
        _task("della_linear", "density", "epsilon", is_random=True),
        _task("della", "density", "epsilon", is_random=True),
        Method("lore", ("strength", "penalty"), "t", (DIRECT,), is_own=True),
        Method("selective_overwrite", ("density", "strength"), "t", (DIRECT,), is_own=True, outside_density=0.0),
        Method("selective_average", ("density", "strength"), "t", (DIRECT,), is_own=True, outside_density=0.0),
        Method("selective_surgical", ("density",), "", (DIRECT,), is_own=True, outside_density=0.0),
    )
}
DEFAULTS: dict[str, Any] = {"gamma": 0.01, "epsilon": 0.15, "scale": 1.0, "seed": 0, "penalty": 0.1}
SELECTIVE_STRENGTH = 0.5  # the selective methods average by halves where nothing else is said


def place_values(axes: Mapping[str, Any], layout: Layout, key: str, outside: float) -> dict[str, float]:
    """The value of one axis for every tensor: masks, modules and gradients over the depth worked out."""
    modules, depth = axes.get("modules", MODULES), axes.get("depth", (0.0, 1.0))

    def value(place: Place) -> float:
        if place.module not in modules or not depth[0] <= place.depth <= depth[1]:
            return outside
        chosen = axes[key]
        if isinstance(chosen, Mapping):
            chosen = chosen.get(place.module, chosen.get("rest", 0.0))
        return gradient(chosen, place.depth) if isinstance(chosen, list | tuple) else float(chosen)

    return {name: value(place) for name, place in layout.places.items()}


def gradient(values: list[float] | tuple[float, ...], depth: float) -> float:
    """Linear interpolation in `values`, spread evenly from depth 0 to 1."""
    position = depth * (len(values) - 1)
    below = min(int(position + 1e-9), len(values) - 2)
    share = min(max(position - below, 0.0), 1.0)
    return round((1 - share) * values[below] + share * values[below + 1], 12)


def recipe(method: Method, axes: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The merge as a mergekit configuration in which the parents go by their roles.

    Args:
        axes: a point's axes, defaults filled in.
        layout: the parents' layout; masks become filters on its tensor names.
    """

    def setting(key: str, outside: float, change: Callable[[float], float] = float) -> Any:
        values = place_values(axes, layout, key, outside)
        return compress({name: round(change(value), 12) for name, value in values.items()})

    parameters: dict[str, Any] = {}
    base = axes["base"]
    models: list[dict[str, Any]] = [{"model": DIRECT}, {"model": THINKING}]
    if method.kind == "task" and base == DIRECT:
        models = [{"model": THINKING, "parameters": {"weight": 1.0}}]
        scale = axes["scale"]
        parameters["lambda"] = setting("strength", 0.0, lambda value: value * scale)
    elif method.kind in ("weight", "task"):
        models[0]["parameters"] = {"weight": setting("strength", 0.0, lambda value: 1 - value)}
        models[1]["parameters"] = {"weight": setting("strength", 0.0)}
        if axes.get("scale", 1.0) != 1.0:
            parameters["lambda"] = setting("scale", 1.0)
    elif method.kind == "t":
        parameters["t"] = setting("strength", 0.0)
    if "density" in axes:
        key = "select_topk" if method.name == "sce" else "density"
        parameters[key] = setting("density", method.outside_density)
    if "threshold" in axes:
        parameters["t"] = setting("threshold", 0.0)
    if "penalty" in axes:
        parameters["penalty"] = setting("penalty", _OUTSIDE["penalty"])
    done = {"strength", "scale", "density", "threshold", "penalty", "seed", "base", *COMMON}
    parameters |= {key: value for key, value in axes.items() if key not in done}
    config: dict[str, Any] = {"merge_method": method.name, "models": models}
    if base != NO_BASE:
        config["base_model"] = base
    if parameters:
        config["parameters"] = parameters
    if "dtype" in axes:  # compute in it, store as the parents do
        config |= {"dtype": axes["dtype"]}
    return config
