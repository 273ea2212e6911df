"""A study's folder as it lies on disk, read without a data set or a proposer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.provenance import read_json
from recllm.tuning.spaces.backbones import backbone_space, surface_space
from recllm.tuning.spaces.space import Limits, Space
from recllm.tuning.study.ending import DEFAULT_FOLDER
from recllm.tuning.study.journal import JOURNAL_FILE, Journal
from recllm.tuning.study.noise import epsilon_of
from recllm.tuning.study.study import STUDY_FILE
from recllm.tuning.study.trial import History
from recllm.tuning.trials.finalize import SEAL_FILE

# What studies must have in common to be held against each other.
_ONE = ("space", "schema", "fixed", "inputs")


@dataclass(frozen=True)
class Stored:
    """A study of a folder.

    Args:
        told: what study.json says. tests: `best` and `default` -> what the one reading of the test found, where it was.
    """

    folder: Path
    told: Mapping[str, Any]
    history: History
    tests: Mapping[str, Mapping[str, Any]]

    @property
    def label(self) -> str:
        """Who tuned, and with which parts of the agent."""
        proposer, switches = str(self.told["proposer"]), []
        if self.told["memory"]:
            switches.append("with memory")
        if not self.told["reflect"]:
            switches.append("no reflection")
        return ", ".join([proposer, *switches])


def is_study(folder: str | Path) -> bool:
    """Whether a folder is a study's."""
    return (Path(folder) / STUDY_FILE).is_file()


def load_study(folder: str | Path) -> Stored:
    """Read a study, also one that still runs.

    Raises:
        ValueError: no study, one without a finished trial, or one of a space that the code does not have any more.
    """
    folder = Path(folder)
    if not is_study(folder) or not (folder / JOURNAL_FILE).is_file():
        raise ValueError(
            f"{folder} is no study: {STUDY_FILE} or {JOURNAL_FILE} is missing; recipes/tune_backbone.py makes them"
        )
    told = read_json(folder / STUDY_FILE)
    space = _space(told, folder)
    trials = Journal(folder, space).ended()
    if not trials:
        raise ValueError(f"{folder} has no finished trial yet: there is nothing to report")
    noise = Journal(folder, space, "noise").ended() if told["repeats"] else []
    epsilon = told["epsilon"]
    if epsilon is None:
        epsilon = epsilon_of([trial.outcome.score for trial in (trials[0], *noise)])
    places = {"best": folder / SEAL_FILE, "default": folder / DEFAULT_FOLDER / SEAL_FILE}
    tests = {who: read_json(path) for who, path in places.items() if path.is_file()}
    return Stored(folder, told, History(space, tuple(trials), epsilon), tests)


def check_alike(studies: Iterable[Stored]) -> None:
    """Raise ValueError where studies are not of one space and one data set."""
    first, *others = studies
    for other in others:
        for name in _ONE:
            if other.told.get(name) != first.told.get(name):
                raise ValueError(
                    f"{other.folder} and {first.folder} differ in {name}: their scores cannot be compared; report them "
                    "one at a time"
                )


def _space(told: Mapping[str, Any], folder: Path) -> Space:
    limits = Limits(**told["limits"])
    for make in (backbone_space, surface_space):
        try:
            space = make(told["space"], limits)
        except ValueError:
            continue  # a space without surfaces, or an unknown one, which is told below
        if _plain(space.schema(described=False)) == told["schema"] and _plain(dict(space.fixed)) == told["fixed"]:
            return space
    raise ValueError(f"{folder}: this version has another space {told['space']}; read it with the one that made it")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
