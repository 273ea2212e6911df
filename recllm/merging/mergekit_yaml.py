"""Points as mergekit YAML, and mergekit YAML as points.

A point exports the configuration that `mergekit-yaml` runs, with absolute paths: mergekit takes a relative path of two
parts for a Hub id. recllm's own methods export too; mergekit knows them once `recllm.merging.own` is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recllm.merging.axes import unknown_name
from recllm.merging.layout import Layout
from recllm.merging.methods import BASE, DEFAULTS, DIRECT, METHODS, NO_BASE, THINKING
from recllm.merging.space import Point

_KEYS = {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}


def to_mergekit(point: Point, layout: Layout, parents: Mapping[str, str | Path], stored: str | None = None) -> str:
    """The point as mergekit YAML.

    Args:
        parents: role -> folder or Hub id. An existing folder becomes an absolute path.
        stored: the parents' dtype by name, kept where the point computes in another one.

    Raises:
        ValueError: the point needs a parent that is not given.
    """
    config = _with_names(point.recipe(layout, stored), {role: _address(path) for role, path in parents.items()})
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)
    seed = "" if point.seed is None else f"# mergekit-yaml --random-seed {point.seed}\n"
    own = "# needs recllm.merging.own, which registers the method\n" if METHODS[point.method].is_own else ""
    return f"# {point.label} ({point.key})\n{seed}{own}{text}"


def rename_models(text: str, names: Mapping[str, str]) -> str:
    """mergekit YAML with models renamed, comments kept: a configuration without this machine's paths."""
    config = yaml.safe_load(text)
    for model in config["models"]:
        model["model"] = names.get(model["model"], model["model"])
    if "base_model" in config:
        config["base_model"] = names.get(config["base_model"], config["base_model"])
    comments = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
    return comments + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)


def _address(path: str | Path) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def _with_names(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    def name(role: str) -> str:
        if role not in names:
            raise ValueError(f"{config['merge_method']} needs the parent {role!r}: give it, or a method without it")
        return names[role]

    renamed = dict(config)
    renamed["models"] = [{**model, "model": name(model["model"])} for model in config["models"]]
    if "base_model" in config:
        renamed["base_model"] = name(config["base_model"])
    return renamed


def read_mergekit(path: str | Path) -> tuple[Point, dict[str, str]]:
    """A mergekit configuration file as (point, role -> model)."""
    path = Path(path)
    return from_mergekit(path.read_text(encoding="utf-8"), str(path))


def from_mergekit(text: str, where: str = "mergekit configuration") -> tuple[Point, dict[str, str]]:
    """Read mergekit YAML.

    The base model is the parent `base`, and the models in their order are `direct` and `thinking`; where the base is
    itself one of two models, it is `direct`. A configuration that the axes express becomes such a point; any other
    (filters, unequal weights) keeps its parameters as they are. A sweep stores in the parents' dtype, so `out_dtype` is
    not taken over.

    Returns:
        The point, and role -> model as written there.

    Raises:
        ValueError: not mergekit YAML, or a merge of layers out of place, of more than two models, or by modules.
    """
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("merge_method"), str):
        raise ValueError(f"{where}: no merge_method")
    if extra := set(config) - _KEYS:
        raise ValueError(
            f"{where}: {', '.join(sorted(map(str, extra)))} cannot be taken over; a sweep keeps the tokenizer"
        )
    method = config["merge_method"]
    if method not in METHODS:
        raise ValueError(f"{where}: merge_method {method!r} cannot be swept{unknown_name(method, METHODS)}")
    models, base = _models(config, where), config.get("base_model")
    roles = _roles([str(model["model"]) for model in models], None if base is None else str(base), where)
    plain: dict[str, Any] = {"merge_method": method, "models": []}
    for model in models:
        if str(model["model"]) != str(base) or model.get("parameters") or roles[str(base)] == DIRECT:
            plain["models"].append({**model, "model": roles[str(model["model"])]})
    if base is not None:
        plain["base_model"] = roles[str(base)]
    plain |= {key: config[key] for key in ("parameters", "dtype") if config.get(key)}
    return _point(plain), {role: model for model, role in roles.items()}


def _models(config: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if "models" in config:
        found = config["models"]
    else:
        slices = config.get("slices") or []
        if len(slices) != 1 or set(slices[0]) != {"sources"}:
            raise ValueError(f"{where}: only whole models are swept, not slices put together")
        found = slices[0]["sources"]
        ranges = {tuple(source.get("layer_range", ())) for source in found}
        if len(ranges) != 1 or next(iter(ranges))[:1] != (0,):
            raise ValueError(
                f"{where}: the slices' layer ranges differ or do not begin at 0; only whole models are swept"
            )
        found = [{key: value for key, value in source.items() if key != "layer_range"} for source in found]
    if not isinstance(found, list) or not all(isinstance(model, dict) and "model" in model for model in found):
        raise ValueError(f"{where}: models must be a list of entries with a model")
    return found


def _roles(models: list[str], base: str | None, where: str) -> dict[str, str]:
    others = [model for model in models if model != base]
    if base is not None and len(others) == 1:
        return {base: DIRECT, others[0]: THINKING}
    if len(others) != 2 or len(set(others)) != 2:
        raise ValueError(f"{where}: {len(set(others))} models beside the base; a sweep merges two parents")
    return {others[0]: DIRECT, others[1]: THINKING} | ({} if base is None else {base: BASE})


def _point(config: dict[str, Any]) -> Point:
    """As axes where a one-tensor layout gives the same configuration back, else as it is."""
    method = METHODS[config["merge_method"]]
    axes = _axes(config)
    layout = Layout(["weight"])
    try:
        point = Point.of(method.name, **axes)
        if point.method != method.name or _normal(point.recipe(layout)) == _normal(config):
            return point
    except (ValueError, TypeError, KeyError):
        axes = {}  # its parameters are not one number each: kept as they stand
    seed = {"seed": 0} if method.is_random else {}
    return Point.of(method.name, config=config, **seed)


def _axes(config: Mapping[str, Any]) -> dict[str, Any]:
    parameters = dict(config.get("parameters", {}))
    per_model = {model["model"]: model.get("parameters", {}) for model in config["models"]}
    method = METHODS[config["merge_method"]]
    axes: dict[str, Any] = {"base": config.get("base_model", NO_BASE)}
    if "dtype" in config:
        axes["dtype"] = config["dtype"]
    if method.kind in ("weight", "task") and DIRECT in per_model:
        axes["strength"] = per_model[THINKING].get("weight")
    elif method.kind == "task":
        axes["strength"] = parameters.pop("lambda", 1.0)
    elif method.kind == "t":
        axes["strength"] = parameters.pop("t", None)
    elif method.name == "nearswap":
        axes["threshold"] = parameters.pop("t", None)
    renamed = {"lambda": "scale", "select_topk": "density"}
    shared = {key: value for model in per_model.values() for key, value in model.items() if key != "weight"}
    return axes | {renamed.get(key, key): value for key, value in (parameters | shared).items()}


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of each model as mergekit resolves them: the shared ones below the model's own; defaults dropped."""
    shared = dict(config.get("parameters", {}))
    defaults = {"lambda" if name == "scale" else name: value for name, value in DEFAULTS.items() if name != "seed"}
    resolved = {}
    for model in config["models"]:
        merged = {**shared, **model.get("parameters", {})}
        resolved[model["model"]] = {
            key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for key, value in merged.items()
            if value != defaults.get(key)
        }
    return {"method": config["merge_method"], "base": config.get("base_model"), "models": resolved}
