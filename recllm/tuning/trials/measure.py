"""Measuring a surface: a plan of trials, a file of rows that survives any kill, and what is made of it.

`rows.jsonl` gets one line a trial, whole and on disk before the next begins; a line that a kill tore is no row, and
its trial runs again. Several workers, on one machine or on a shared disk with locks, share a table: a trial is run by
who holds the lock on its file in claims/, and a lock ends with its process. `table.json` says what the rows were
measured on; a worker with other data, limits, seed or fixed arguments does not add to them.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recllm.data.splits import DATASET_FILE
from recllm.disk import claimed
from recllm.machine import device_name, git, versions
from recllm.provenance import read_json, write_json
from recllm.tuning.memory.descriptors import describe
from recllm.tuning.trials.runner import OBJECTIVE, TrialRunner
from recllm.tuning.trials.surface import surface_row, write_surface

ROWS_FILE = "rows.jsonl"
TABLE_FILE = "table.json"
CLAIMS_FOLDER = "claims"
REPEATS = 3
_FIRST = 20  # evenly spread ones before the repeats
# What all rows of a table have in common.
_ONE = ("data_fingerprint", "limits", "seed", "fixed")


@dataclass(frozen=True)
class Planned:
    """A trial to measure. `origin`: `default`; `repeat` (of it, with another seed); `spread` (the even sequence)."""

    origin: str
    config: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Table:
    """The measuring of one surface in `folder`.

    Args:
        name: of the surface, and its file's.
        runner: with the surface's space and its data set.
        dataset: the data set's name.
        spread: evenly spread configurations, the default among them, as far as the space has so many.
        seed: of their sequence, and of the trials.

    Raises:
        ValueError: `spread` is less than 1.
    """

    name: str
    folder: Path
    runner: TrialRunner
    dataset: str
    spread: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.spread < 1:
            raise ValueError(f"spread must be at least 1, the default's configuration, got {self.spread}")

    def plan(self) -> Iterator[Planned]:
        """The trials in their order."""
        even = self._even()
        yield from itertools.islice(even, _FIRST)
        yield from (Planned("repeat", self.runner.space.default, self.seed + extra) for extra in range(1, REPEATS))
        yield from even

    def _even(self) -> Iterator[Planned]:
        space = self.runner.space
        yield Planned("default", space.default, self.seed)
        others = (config for config in space.spread(self.seed) if config != space.default)
        yield from (Planned("spread", config, self.seed) for config in itertools.islice(others, self.spread - 1))

    def _mark_of(self, planned: Planned) -> str:
        return f"{self.runner.space.key(planned.config)}-{planned.seed}"

    def rows(self) -> list[dict[str, Any]]:
        """Every finished trial, in the order of finishing."""
        return read_rows(self.folder / ROWS_FILE)

    def step(self, planned: Planned) -> dict[str, Any] | None:
        """Measure a trial and return its row, or None where it is done or another worker is at it.

        Raises:
            ValueError: the folder's rows were measured on other data, with other limits, seed or fixed arguments.
        """
        mark = self._mark_of(planned)
        if mark in self._done:
            return None
        with claimed(self.folder / CLAIMS_FOLDER / mark) as mine:
            if not mine:
                return None
            self._done.update(_mark(row) for row in self.rows())  # what others finished in the meantime
            if mark in self._done:
                return None
            row = surface_row(self.runner.run_unsealed(planned.config, planned.seed), planned.origin)
            append_row(self.folder / ROWS_FILE, row)
            self._done.add(mark)
            return row

    @cached_property
    def _done(self) -> set[str]:
        self._open()  # once, before the first step
        return {_mark(row) for row in self.rows()}

    def _open(self) -> None:
        """Write down what is measured on what, or see that it is what others wrote down."""
        path, here = self.folder / TABLE_FILE, self._description()
        with claimed(self.folder / CLAIMS_FOLDER / TABLE_FILE, wait=True):
            if not path.exists() and self.rows():
                raise ValueError(
                    f"{self.folder / ROWS_FILE} has rows, but {path} is missing and nothing says what they were "
                    "measured on; move the folder away and measure again"
                )
            known = read_json(path) if path.exists() else here | {"made_with": []}
            for name in _ONE:
                if known.get(name) != here[name]:
                    raise ValueError(
                        f"{path}: {name} was {known.get(name)} and is {here[name]} now, so new rows could not be "
                        "compared; measure as before, or in another folder"
                    )
            made = {"versions": versions(), "git_sha": git("rev-parse", "HEAD"), "device": device_name()}
            if made not in known["made_with"]:
                write_json(path, known | {"made_with": [*known["made_with"], made]})

    def _description(self) -> dict[str, Any]:
        space, described = self.runner.space, read_json(self.runner.inputs["dataset"] / DATASET_FILE)
        plain = {
            **{"backbone": space.name, "dataset": self.dataset, "limits": asdict(space.limits)},
            **{"seed": self.seed, "fixed": dict(space.fixed), "schema": space.schema()},
            "data": {name: described[name] for name in ("name", "split", "sample_users", "sample_seed", "counts")},
            "data_fingerprint": self.runner.fingerprints["dataset"],
        }
        return json.loads(json.dumps(plain))

    def export(self, folder: Path) -> Path:
        """Write what is measured as `folder`/NAME.parquet, one row a configuration.

        Raises:
            ValueError: nothing is measured yet.
        """
        rows = self.rows()
        if not rows:
            raise ValueError(f"{self.folder} has no measured row yet")
        once: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["origin"] != "repeat":
                once.setdefault(row["key"], row)
        path = folder / f"{self.name}.parquet"
        write_surface(path, list(once.values()), self._provenance(rows))
        return path

    def _provenance(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        default = self.runner.space.key(self.runner.space.default)
        noise = {str(row["seed"]): row[OBJECTIVE] for row in rows if row["key"] == default and row["status"] == "ok"}
        return {
            **read_json(self.folder / TABLE_FILE),
            "default_by_seed": noise,
            "descriptors": describe(self.runner.inputs["dataset"]),
            "columns": "origin: default, or spread (even sequence)",
        }


def measure(tables: list[Table], seconds: float | None = None) -> Iterator[tuple[Table, dict[str, Any]]]:
    """Work on the tables in turn, a trial each, until all plans are done or `seconds` are over; yields its own rows."""
    began = time.monotonic()
    plans = [(table, table.plan()) for table in tables]
    while plans:
        for table, plan in list(plans):
            if seconds is not None and time.monotonic() - began > seconds:
                return
            row = next((row for planned in plan if (row := table.step(planned))), None)
            if row is None:
                plans.remove((table, plan))
            else:
                yield table, row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of rows; torn ones are left out, and a file that is not there has none."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row at the end, on disk when this returns; a torn line before it stays torn and apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(end - 1, 0))
        start = b"" if stream.read(1) in (b"\n", b"") else b"\n"
        stream.write(start + json.dumps(dict(row)).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _mark(row: Mapping[str, Any]) -> str:
    return f"{row['key']}-{row['seed']}"
