"""GRPO of one recommender with three ways to draw a group, at equal steps, prompts and seed, in one table.

Draws: without replacement, the same with inclusion weights, and independently under the trie.
Run:   python benchmarks/grpo_draws.py --model outputs/beauty2014/sidlm --dataset outputs/beauty2014/dataset
       --config recipes/configs/grpo_recommender/beauty2014_sidlm.yaml --outputs outputs/draws --json out.json
       -- --max_steps 100 --seed 1
What stands behind `--` goes to recipes/grpo_recommender.py. A finished run is read, not made again. All three runs see
the same prompts in the same order and are graded on the same validation users, so the differences of NDCG@10 between
runs can be read beside each run's paired interval of its own gain.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "grpo_recommender.py"
DRAWS = {
    "without_replacement": [],
    "inclusion_weights": ["--inclusion_weights", "true"],
    "independent": ["--draw", "independent"],
}
GAIN = "validation/gain_ndcg@10"
COLUMNS = {
    "NDCG@10 before": "validation/before_ndcg@10",
    "after": "validation/after_ndcg@10",
    "reward first": "reward/first",
    "last": "reward/last",
    "hits first": "group_hit_rate/first",
    "hits last": "group_hit_rate/last",
    "no hit": "groups_without_hit/last",
    "repeats": "group_duplicates/last",
    "mass": "allowed_mass/last",
    "seconds": "train_seconds",
}


def run(name: str, folder: Path, settings: list[str]) -> dict[str, float]:
    """Metrics of one run; raises where the recipe fails."""
    command = [sys.executable, str(RECIPE), *settings, *DRAWS[name], "--output_dir", str(folder)]
    subprocess.run(command, check=True)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def table(found: dict[str, dict[str, float]]) -> Table:
    """One row a draw; the gain with its paired 95% interval."""
    users, steps = ({metrics[name] for metrics in found.values()} for name in ("validation/graded_users", "steps"))
    shown = Table(title=f"validation, n = {sorted(users)}, steps = {sorted(steps)}")
    for column in ("draw", *COLUMNS, "gain"):
        shown.add_column(column, justify="left" if column == "draw" else "right")
    for name, metrics in found.items():
        low, mean, high = (metrics[GAIN + end] for end in ("_lo", "", "_hi"))
        values = (f"{metrics[key]:.4g}" for key in COLUMNS.values())
        shown.add_row(name, *values, f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    return shown


def main(
    model: Annotated[Path, typer.Option(help="Folder of the recommender to start from.")],
    dataset: Annotated[Path, typer.Option(help="Folder of the data set.")],
    config: Annotated[Path, typer.Option(help="YAML of recipes/grpo_recommender.py.")],
    outputs: Annotated[Path, typer.Option(help="Folder of the three runs.")],
    settings: Annotated[list[str] | None, typer.Argument(help="More keys for the recipe, behind --.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
) -> None:
    given = ["--config", str(config), "--model_name_or_path", str(model), "--dataset", str(dataset), *(settings or [])]
    found = {name: run(name, outputs / name, given) for name in DRAWS}
    Console(width=200).print(table(found))
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
