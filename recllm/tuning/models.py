"""How large the model of a configuration is, told without making it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recllm.provenance import read_json
from recllm.tuning.recipe import recipe_arguments


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


def _sequential(args: SimpleNamespace, inputs: Mapping[str, Path]) -> Any:
    from recllm.backbones.train import build_sequential
    from recllm.data.catalog import Catalog
    from recllm.data.splits import DATASET_FILE

    dataset = inputs["dataset"]
    return build_sequential(len(Catalog.load(dataset)), read_json(dataset / DATASET_FILE)["time"], args)


def _generative(args: SimpleNamespace, inputs: Mapping[str, Path]) -> Any:
    from recllm.backbones.generative import build_empty
    from recllm.sid.table import SidTable

    return build_empty(args.backbone, SidTable.load(inputs["sid_table"]), args)


_BUILDERS: dict[str, Callable[[SimpleNamespace, Mapping[str, Path]], Any]] = {
    "train_backbone": _sequential,
    "train_generative": _generative,
}
