"""A study whose trials train: from the words of a command line to a `Study` on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from recllm.data.splits import DATASET_FILE
from recllm.provenance import content_fingerprint, read_json
from recllm.tuning.memory.descriptors import describe
from recllm.tuning.spaces.backbones import backbone_space, surface_space
from recllm.tuning.spaces.space import Limits, Space
from recllm.tuning.study.agent import Agent
from recllm.tuning.study.build import load_chooser
from recllm.tuning.study.ending import remembered
from recllm.tuning.study.study import Study
from recllm.tuning.trials.launch import Launcher
from recllm.tuning.trials.runner import TrialRunner


class Settings(Protocol):
    """What `live_study` reads of a recipe's arguments."""

    dataset: str
    sid_table: str | None
    output_dir: str
    backbone: str
    space: str
    proposer: str
    record: str | None
    trials: int
    memory: str | None
    reflect: bool
    coverage: bool
    noise_seeds: int
    most_parameters: int | None
    cpu_seconds: float | None
    wall_seconds: float | None
    memory_gib: float | None
    seed: int


def inputs_of(args: Settings) -> dict[str, str]:
    """The folders that a trial reads, by the recipe's argument."""
    folders = {"dataset": args.dataset, "sid_table": args.sid_table}
    return {name: folder for name, folder in folders.items() if folder}


def space_of(args: Settings) -> Space:
    """The search space, with the limits of a trial."""
    limits = Limits(args.most_parameters, args.cpu_seconds, args.wall_seconds, args.memory_gib)
    return surface_space(args.backbone, limits) if args.space == "surface" else backbone_space(args.backbone, limits)


def live_study(args: Settings, launcher: Launcher) -> tuple[Study, TrialRunner]:
    """The study in `output_dir`, begun or gone on with, and what runs its trials.

    Raises:
        ValueError: an input that cannot be read, or an unknown backbone or proposer.
    """
    folder = Path(args.output_dir)
    runner = TrialRunner(space_of(args), inputs_of(args), launcher=launcher)
    described = read_json(Path(args.dataset) / DATASET_FILE)
    facts: dict[str, Any] = {"dataset": described["name"], "inputs": dict(runner.fingerprints)}
    memory = None
    if args.memory:
        memory = remembered(args.memory, folder)
        facts["remembered"] = content_fingerprint(memory.folder)
    data = describe(args.dataset)
    agent = Agent(runner.space, data, args.trials, args.seed, memory, args.reflect, args.coverage)
    chooser = load_chooser(args.proposer, args.seed, args.record)
    return Study(folder, agent, chooser, runner.run, args.seed, args.noise_seeds, facts=facts), runner
