"""A chain of scripts, each run in this process with its smoke config: importing TRL takes seconds."""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path

from recllm.training.arguments import parse

ROOT = Path(__file__).resolve().parents[2]


def run_stage(root: Path, stage: str, path: str, config: str, inputs: Mapping[str, str], *more: str) -> None:
    """Run a script's own parse and main. inputs: argument -> folder of `root`. It makes `root / stage`."""
    scope = runpy.run_path(str(ROOT / path))
    argv = ["--config", str(ROOT / "recipes" / "configs" / f"{config}.yaml"), f"--output_dir={root / stage}"]
    argv += [f"--{name}={root / folder}" for name, folder in inputs.items()]
    scope["main"](*parse(scope["Arguments"], *scope.get("TRL_CONFIGS", ()), argv=[*argv, *more]))


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())
