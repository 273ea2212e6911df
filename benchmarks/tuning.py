"""The tuning agent beside random, grid, TPE, CMA-ES and OPRO on measured surfaces, at one budget over many seeds.

Claim: with memory, the post-trained proposer reaches the best 2% of configurations of a data set that it never saw in
    at most 1/3 of cold TPE's median trials and ahead of warm TPE, and no ablation of it is better.
Run:   python benchmarks/tuning.py --json out.json --tuner "outputs/tuner/{dataset}"
A study has `--budget` trials and begins with the default. It is told by the number of the trial at which its validation
NDCG@10 reaches what the best 2% of the evenly spread configurations of its surface have; a miss counts budget + 1.
`NAME_median_trials` is the median over seeds, meaned over surfaces, `_lo` and `_hi` its interval by bootstrap over
seeds; `NAME_best10_trials` and `NAME_best5_trials` are likewise; `NAME_misses` is the share of studies that never reach
the best 2%, `NAME_lacks` the mean share of the surface's best score that they lack at their end, `NAME_test_gain` the
mean gain of test NDCG@10 over the default's, `NAME_by_memory` the share of the studies that reached the best 2% by a
trial that memory began with, before anything was proposed; `NAME_share` is the share of the changes that the model
itself proposed: below 0.9 a row is not the model's.
Names: `random`; `grid`, every cell of the surface in an order by seed; `sweep`, one axis at a time; `climb`, random
changes of the best; `tpe`; `cmaes`; `tpe_warm` tries the three best of each other data set's surface after the default,
and `tpe_warm_studies` those of TPE's own studies there. `agent` is the tuner trained without the surface's data set,
`dice` the same machinery with a proposer that says nothing, so that every change is a random one; `--proposers
NAME=SPEC` adds others, `--opro SPEC` the OPRO-like sampler. `X_memory` has memory of X's own studies of the other data
sets, `X_memory_surfaces` of their whole surfaces; `X_no_reflection` and `X_memory_no_reflection` reflect on no trial.
Measured: 2 cores, 20 seeds, six surfaces: agent_median_trials 10.1, agent_memory 5.3, tpe 15.9, tpe_warm 10.3,
    random 23.8, model_share 1.0; agent_memory over tpe .335 [.284, .409], which misses the third by .002, over
    tpe_warm .52 [.44, .63], over agent .53 [.44, .66], over itself without reflection .91 [.75, 1.15]; dice_memory has
    5.0. Another training of the same config: 8.3, 5.7 and .36 [.30, .41] (docs/EXPERIMENTS.md).
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from recllm.machine import git, versions
from recllm.metrics.bootstrap import flat
from recllm.provenance import content_fingerprint, read_json, write_json
from recllm.tuning.baselines.opro import Opro
from recllm.tuning.language.language import load_language_model
from recllm.tuning.reports.contest import Contest, Dice, counted, share_of_model
from recllm.tuning.reports.curves import SHARES, mean_of_medians, ratio_of_medians, trials_to
from recllm.tuning.study.choosers import ModelChooser
from recllm.tuning.trials.surface import Surface

logger = logging.getLogger("tuning")
SURFACES = Path(__file__).resolve().parent / "surfaces"
SAMPLERS = {name: (name, "none") for name in ("random", "grid", "sweep", "climb", "tpe", "cmaes")}
SAMPLERS |= {"tpe_warm": ("tpe", "surfaces"), "tpe_warm_studies": ("tpe", "studies")}
# Suffix -> past, and whether a trial is looked back on.
VARIANTS = {
    "": ("none", True),
    "_memory": ("studies", True),
    "_memory_surfaces": ("surfaces", True),
    "_no_reflection": ("none", False),
    "_memory_no_reflection": ("studies", False),
}
HEADLINES = ("agent", "agent_memory", "tpe", "tpe_warm", "random")
Studies = Callable[[str], list]


def entries(contest: Contest, specs: Mapping[str, str], opro: str) -> dict[str, Studies]:
    """Name -> what makes the studies of a surface."""
    found = {name: partial(contest.sampled, method=method, past=past) for name, (method, past) in SAMPLERS.items()}
    if opro:
        found["opro"] = partial(contest.studies, choosers=[Opro(_model(opro))], reflect=False, coverage=False)
    for proposer, spec in specs.items():
        for suffix, (past, reflect) in VARIANTS.items():
            found[proposer + suffix] = partial(_proposed, contest, spec, past, reflect)
    return found


def _proposed(contest: Contest, spec: str, past: str, reflect: bool, name: str) -> list:
    model = _model(spec.format(dataset=contest.surfaces[name].provenance["dataset"]))
    return contest.proposed(name, ModelChooser(model), past, reflect)


@cache
def _model(spec: str) -> Any:
    return Dice() if spec == "dice" else load_language_model(spec)


def models_of(contest: Contest, entry: str, specs: Mapping[str, str], opro: str) -> list[str]:
    """Names of the models that an entry asks, which hold their weights' fingerprints; none for a sampler."""
    variants = {proposer + suffix: spec for proposer, spec in specs.items() for suffix in VARIANTS}
    spec = opro if entry == "opro" else variants.get(entry, "")
    datasets = sorted({surface.provenance["dataset"] for surface in contest.surfaces.values()})
    return sorted({_model(spec.format(dataset=dataset)).name for dataset in datasets}) if spec else []


def rows_of(contest: Contest, entry: str, studies: Studies, work: Path | None, told: Mapping[str, Any]) -> dict:
    """Surface -> rows of its studies; what `work` has of the same surfaces, models, commit, seeds and budget is not run
    again."""
    found = {}
    for name, surface in contest.surfaces.items():
        path = work / f"{entry}-{name}.json" if work else None
        known = read_json(path) if path and path.exists() else {}
        if known.get("told") != told:
            began = time.process_time()
            known = {"told": told, "rows": counted(surface, studies(name), SHARES)}
            logger.info("%s on %s: %.1f s", entry, name, time.process_time() - began)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, known)
        found[name] = known["rows"]
    return found


def figures_of(entry: str, rows: Mapping[str, list[dict]], budget: int) -> dict[str, Any]:
    """The flat figures of an entry."""
    flat_rows = [row for surface_rows in rows.values() for row in surface_rows]
    found: dict[str, Any] = {}
    for place, label in enumerate(("best10", "best5", "median")):
        found |= flat(f"{entry}_{label}_trials", mean_of_medians(list(trials(rows, place, budget).values())))
    found[f"{entry}_misses"] = float(np.mean(np.concatenate(list(trials(rows, -1, budget).values())) > budget))
    for name in ("lacks", "test_gain"):
        found[f"{entry}_{name}"] = float(np.mean([row[name] for row in flat_rows]))
    if entry.partition("_")[2].startswith("memory"):
        found[f"{entry}_by_memory"] = float(np.mean([_reached_by_memory(row, budget) for row in flat_rows]))
    share = share_of_model(flat_rows)
    return found if share is None else found | {f"{entry}_share": share}


def _reached_by_memory(row: Mapping[str, Any], budget: int) -> bool:
    number = trials_to(row["scores"], row["targets"][-1], budget)
    return number <= budget and row["sources"][number - 1] == "memory"


def trials(rows: Mapping[str, list[dict]], place: int, budget: int) -> dict[str, np.ndarray]:
    """Surface -> trials of its studies to the target at that place of SHARES."""
    return {
        name: np.array([trials_to(row["scores"], row["targets"][place], budget) for row in surface_rows])
        for name, surface_rows in rows.items()
    }


def compared(rows: Mapping[str, Mapping[str, list[dict]]], budget: int) -> dict[str, Any]:
    """Ratios of median trials with intervals: of every entry to cold and to warm TPE, of what has a past to what has
    none, of what reflects to what does not, and of a model to dice in its place."""
    found: dict[str, Any] = {}
    pairs = [(entry, tpe) for tpe in ("tpe", "tpe_warm", "tpe_warm_studies") for entry in rows if entry != tpe]
    pairs += [(entry, entry.split("_memory")[0]) for entry in rows if "_memory" in entry]
    pairs += [(entry, f"{entry}_no_reflection") for entry in rows]
    pairs += [(entry, entry.replace("agent", "dice", 1)) for entry in rows if entry.startswith("agent")]
    for one, other in pairs:
        if other in rows:
            sides = (list(trials(rows[entry], -1, budget).values()) for entry in (one, other))
            found |= flat(f"{one}_over_{other}", ratio_of_medians(*sides))
    return found


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    surfaces: Annotated[Path, typer.Option(help="Folder of the surfaces.")] = SURFACES,
    tuner: Annotated[str, typer.Option(help="Folder of the post-trained proposer; {dataset}: that it never saw.")] = "",
    proposers: Annotated[str, typer.Option(help="NAME=SPEC of further ones, with commas, as tune_backbone's.")] = "",
    opro: Annotated[str, typer.Option(help="SPEC of the model that the OPRO-like sampler asks.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Studies of a tuner on a surface.")] = 20,
    budget: Annotated[int, typer.Option(min=1, help="Trials of a study.")] = 60,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps finished rows, to go on after a stop.")] = None,
    only: Annotated[str, typer.Option(help="Only these entries, with commas.")] = "",
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    found = {path.stem: Surface.load(path) for path in sorted(surfaces.glob("*.parquet"))}
    if not found:
        raise typer.BadParameter(f"{surfaces} has no surface; measure_surfaces.py makes them", param_hint="--surfaces")
    contest = Contest(found, seeds, budget)
    specs = {"dice": "dice"} | ({"agent": f"tuner:{tuner}"} if tuner else {})
    specs |= dict(pair.split("=", 1) for pair in proposers.split(",") if pair)
    known = entries(contest, specs, opro)
    if unknown := [name for name in only.split(",") if name and name not in known]:
        raise typer.BadParameter(f"there is no {unknown[0]!r}; choose of {', '.join(known)}", param_hint="--only")
    told = {"surfaces": content_fingerprint(surfaces), "seeds": seeds, "budget": budget}
    told["git_sha"] = git("rev-parse", "HEAD")
    rows = {
        entry: rows_of(contest, entry, studies, work, told | {"models": models_of(contest, entry, specs, opro)})
        for entry, studies in known.items()
        if not only or entry in only.split(",")
    }
    figures = dict.fromkeys(f"{name}_median_trials" for name in HEADLINES) | {"model_share": None}
    for entry in rows:
        figures |= figures_of(entry, rows[entry], budget)
    figures |= compared(rows, budget) | {"model_share": figures.get("agent_memory_share", figures.get("agent_share"))}
    by_surface = {
        name: {entry: float(np.median(trials(rows[entry], -1, budget)[name])) for entry in rows} for name in found
    }
    figures |= {"by_surface": by_surface, "seeds": seeds, "budget": budget, "versions": versions()}
    text = json.dumps(figures, indent=2)
    logger.info("%s", text)
    if json_path:
        json_path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
