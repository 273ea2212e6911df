"""mergekit, with recllm's own methods registered: `python -m recllm.merging.write CONFIG FOLDER [SEED]`.

The configuration is what `mergekit-yaml` takes; so is the seed (`--random-seed`). No card is written: mergekit's asks
the Hub about paths.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

import recllm.merging.own  # noqa: F401  registers the methods that mergekit lacks


def write(config: Path, folder: Path, seed: int | None = None) -> None:
    """Run one merge. `seed` seeds torch's, numpy's and Python's global generators, as mergekit does."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    options = MergeOptions(random_seed=seed, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(content), str(folder), options)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
