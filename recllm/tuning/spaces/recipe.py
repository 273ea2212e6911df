"""What a training recipe can be told, read from the source of its `Arguments` without running it.

The recipe is the one place where an argument's type, choices, default and meaning are written down; a search space
names arguments and narrows them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Kind = str  # int, float, bool or str
_KINDS = ("int", "float", "bool", "str")


@dataclass(frozen=True)
class Argument:
    """One field of a recipe's `Arguments`: `choices` are those of a Literal, else empty; `optional` allows None."""

    name: str
    kind: Kind
    choices: tuple[str, ...]
    optional: bool
    default: Any
    help: str


def recipe_path(recipe: str) -> Path:
    """The script of a recipe of this checkout.

    Raises:
        FileNotFoundError: there is none, as in an installed wheel.
    """
    path = Path(__file__).resolve().parents[3] / "recipes" / f"{recipe}.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; tuning drives the recipes of a checkout of the project")
    return path


@cache
def recipe_arguments(recipe: str) -> dict[str, Argument]:
    """Name -> argument of a recipe, in its order. An argument without a default has the default None.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: it has no dataclass `Arguments`.
    """
    path = recipe_path(recipe)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Arguments":
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {argument.name: argument for argument in map(_argument, fields)}
    raise ValueError(f"{path} has no dataclass Arguments")


def _argument(node: ast.AnnAssign) -> Argument:
    given = {keyword.arg: keyword.value for keyword in node.value.keywords}
    default = ast.literal_eval(given["default"]) if "default" in given else None
    kind, choices, optional = _type(node.annotation)
    told = ast.literal_eval(given["metadata"])["help"]
    return Argument(node.target.id, kind, choices, optional, default, told)


def _type(node: ast.expr) -> tuple[Kind, tuple[str, ...], bool]:
    if isinstance(node, ast.BinOp):
        kind, choices, _ = _type(node.left)
        return kind, choices, True
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        choices = ast.literal_eval(node.slice)
        return "str", choices if isinstance(choices, tuple) else (choices,), False
    name = ast.unparse(node)
    return name if name in _KINDS else "other", (), False
