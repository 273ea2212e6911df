"""Measured tables (configuration -> validation and test metrics, seconds) on which tuners are compared in seconds.

Claim: none of its own: `recllm.tuning.trials.surface` reads what this measures. It lies here because it makes committed
    files, not a run's folder.
Run:   RECLLM_DATA=DIR python benchmarks/measure_surfaces.py --work outputs/surfaces
       python benchmarks/measure_surfaces.py --work outputs/surfaces --export benchmarks/surfaces
SASRec and HSTU on samples of 1,238 to 1,487 users of three Amazon sets (drawn before the 5-core; leave one out),
12 epochs at most, by the project's own runner, test metrics unsealed. A table's trials are the default, the others of a
scrambled Sobol sequence until its space of 216 configurations is used up, and two repeats of the default for the noise
of a seed. The tables grow in turn. Kill it and start it again at any time; start it several times at once for several
workers. `--export` writes what is measured as parquet with its provenance. No row of the data sets is in them.
Measured: 1,308 trials, 101 processor minutes (2.4 to 7.0 s a trial), one of them a time-out; see the provenance in each
    file. Of the commits named there da47533 is acd8032 with 216 configurations asked for in place of 200.
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from recllm.disk import claimed
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.spaces.space import Limits
from recllm.tuning.trials.launch import Forked
from recllm.tuning.trials.measure import Table, measure
from recllm.tuning.trials.runner import OBJECTIVE, TrialRunner

logger = logging.getLogger("measure_surfaces")
# Users drawn before the 5-core, which leaves 1,325, 1,238 and 1,487.
USERS = {"amazon2018-scientific": 4588, "amazon2014-beauty": 6257, "amazon2014-toy": 6650}
BACKBONES = ("sasrec", "hstu")
LIMITS = Limits(parameters=2_000_000, cpu_seconds=30.0, wall_seconds=900.0, memory_gib=2.0)


def make_dataset(name: str, folder: Path) -> None:
    """The sample of a data set; nothing happens where it is there. Workers that start at once make it once."""
    script = Path(__file__).resolve().parent.parent / "data_prep" / "amazon.py"
    options = {"name": name, "split": "leave_one_out", "sample_users": USERS[name], "output_dir": folder}
    words = [f"--{key}={value}" for key, value in options.items()]
    with claimed(folder.parent / f".{name}.lock", wait=True):
        subprocess.run([sys.executable, str(script), *words], check=True)


def main(
    work: Annotated[Path, typer.Option(help="Where data sets and rows are kept.")],
    export: Annotated[Path | None, typer.Option(help="Measure nothing; write the parquet files here.")] = None,
    spread: Annotated[int, typer.Option(min=1, help="Evenly spread configurations a table.")] = 216,
    seed: Annotated[int, typer.Option(help="Of the sequence and of the trials.")] = 0,
    tables: Annotated[str, typer.Option(help="Only tables whose name holds this text.")] = "",
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Where trials work; memory is best.")] = None,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pairs = {f"{backbone}-{dataset}": (backbone, dataset) for dataset in USERS for backbone in BACKBONES}
    chosen = {name: pair for name, pair in pairs.items() if tables in name}
    if not chosen:
        raise typer.BadParameter(
            f"no table's name holds {tables!r}; they are {', '.join(pairs)}", param_hint="--tables"
        )
    launcher, made = Forked(), []
    for name, (backbone, dataset) in chosen.items():
        if export is None:
            make_dataset(dataset, work / "data" / dataset)
        inputs = {"dataset": work / "data" / dataset}
        runner = TrialRunner(surface_space(backbone, LIMITS), inputs, scratch, launcher)
        made.append(Table(name, work / name, runner, dataset, spread, seed))
    if export is not None:
        for table in made:
            logger.info("%s: %d trials", table.export(export), len(table.rows()))
        return
    for table, row in measure(made, seconds):
        told = f"{row['status']} {row[OBJECTIVE] or 0:.4f} {row['cpu_seconds']:.1f} s ({row['wall_seconds']:.0f} s)"
        logger.info("%s %s %d: %s %s", table.name, row["origin"], len(table.rows()), told, row["words"])
    launcher.close()


if __name__ == "__main__":
    typer.run(main)
