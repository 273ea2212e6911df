"""How large the model of a configuration is, told without making it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recllm.provenance import read_json
from recllm.tuning.spaces.recipe import recipe_arguments


def count_parameters(recipe: str, arguments: Mapping[str, Any], inputs: Mapping[str, Path]) -> int:
    """Parameters of the model that a recipe makes of these arguments and input folders, all its others at defaults.

    Raises:
        ValueError: the backbone refuses the arguments, or a recipe whose models cannot be counted.
    """
    import torch

    if recipe not in _BUILDERS:
        raise ValueError(f"models of {recipe} cannot be counted; choose one of {', '.join(_BUILDERS)}")
    usual = {name: argument.default for name, argument in recipe_arguments(recipe).items()}
    with torch.device("meta"):
        model = _BUILDERS[recipe](SimpleNamespace(**(usual | dict(arguments))), inputs)
    return sum(parameter.numel() for parameter in model.parameters())


def check_inputs(recipe: str, inputs: Mapping[str, Path]) -> None:
    """Read what the count takes from the input folders.

    Raises:
        ValueError: a folder that is not there, or a file that is missing or damaged; the message names it.
    """
    if missing := [f"{name} {folder}" for name, folder in inputs.items() if not folder.exists()]:
        raise ValueError(f"{missing[0]} is missing; make it first")
    if recipe in _READERS:
        _READERS[recipe](inputs)


def _dataset(inputs: Mapping[str, Path]) -> tuple[int, str]:
    from recllm.data.catalog import Catalog
    from recllm.data.splits import DATASET_FILE

    path = inputs["dataset"] / DATASET_FILE
    known = read_json(path)
    if not isinstance(known, dict) or "time" not in known:
        raise ValueError(f"{path} does not say what its times are; make the data set again")
    return len(Catalog.load(inputs["dataset"])), known["time"]


def _table(inputs: Mapping[str, Path]) -> Any:
    from recllm.sid.table import SidTable

    return SidTable.load(inputs["sid_table"])


def _sequential(args: SimpleNamespace, inputs: Mapping[str, Path]) -> Any:
    from recllm.backbones.train import build_sequential

    return build_sequential(*_dataset(inputs), args)


def _generative(args: SimpleNamespace, inputs: Mapping[str, Path]) -> Any:
    from recllm.backbones.generative import build_empty

    return build_empty(args.backbone, _table(inputs), args)


_READERS: dict[str, Callable[[Mapping[str, Path]], Any]] = {"train_backbone": _dataset, "train_generative": _table}
_BUILDERS: dict[str, Callable[[SimpleNamespace, Mapping[str, Path]], Any]] = {
    "train_backbone": _sequential,
    "train_generative": _generative,
}
