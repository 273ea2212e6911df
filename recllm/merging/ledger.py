"""A sweep's folder: which points there are, and a ledger of JSON lines, one a finished point.

    sweep.json        the parents, the evaluator and the points, in the order of the grid
    ledger.jsonl      one line a finished point
    points/KEY.parquet  its samples, on disk before its line is
    claims/           which worker is at which point

A line is appended whole and brought to disk, under a lock that other processes and machines respect where the file
system has locks at all (local disks, NFS). A writer that is killed leaves at most a torn last line, which readers
ignore and the next writer cuts off. A point that has a line gets no second one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from recllm.disk import sync
from recllm.evaluation.samples import Samples
from recllm.merging.space import Point
from recllm.provenance import RUN_FILE, read_json, write_json

SWEEP_FILE, LEDGER_FILE, POINTS_FOLDER = "sweep.json", "ledger.jsonl", "points"
VERSION = 1
AGAIN = f"remove {RUN_FILE} if it is there (it says that the sweep is complete), and run the sweep again"
_START = b'{"key": "'  # of every line


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds.

    Attributes:
        folder: where it lies.
        parents: role -> {folder, address, fingerprint, hub_id or null}, and pickled: true where its weights were
            pickles.
        evaluator: its name and fingerprint.
        points: in the order of the grid; both parents are among them.
        records: key -> line of the ledger, of the finished points, in the same order.
    """

    folder: Path
    parents: dict[str, dict[str, Any]]
    evaluator: dict[str, str]
    points: list[Point]
    records: dict[str, dict[str, Any]]

    @property
    def complete(self) -> bool:
        """Whether every point is finished."""
        return len(self.records) == len(self.points)

    def samples(self, key: str) -> Samples:
        """The samples of a finished point.

        Raises:
            ValueError: the point is not finished, or its file is missing or damaged.
        """
        if key not in self.records:
            raise ValueError(f"{self.folder}: point {key} is not finished; run the sweep again to go on")
        path = samples_file(self.folder, key)
        if not path.is_file():
            raise ValueError(f"{path} is missing: take its line out of {LEDGER_FILE}, {AGAIN}")
        return Samples.load(path)


def ready_folder(folder: Path, fingerprint: str) -> Path:
    """Where a parent is made ready: by content, so that an earlier adapter of the same address is not taken for it."""
    return folder / "parents" / fingerprint[:16]


def samples_file(folder: Path, key: str) -> Path:
    """Where the samples of a point lie."""
    return folder / POINTS_FOLDER / f"{key}.parquet"


def read_sweep(folder: str | Path) -> Sweep:
    """Read a sweep's folder, a finished one or one that others are at work on.

    Raises:
        ValueError: a file is missing or damaged, or the ledger is not of this sweep; the message names file and line.
    """
    folder = Path(folder)
    path = folder / SWEEP_FILE
    # In this order: sweep.json never lacks a point that has a line, even while somebody lets the grid grow.
    lines = read_ledger(folder)
    content = read_json(path)
    try:
        if content["version"] != VERSION:
            raise ValueError(f"{path} has version {content['version']}, this is {VERSION}; sweep into another folder")
        points = [_point(entry) for entry in content["points"]]
        parents, evaluator = dict(content["parents"]), dict(content["evaluator"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a sweep ({type(error).__name__}: {error})") from error
    for key in lines.keys() - {point.key for point in points}:
        raise ValueError(f"{folder / LEDGER_FILE} has point {key}, which {SWEEP_FILE} lacks: two sweeps were mixed")
    records = {point.key: lines[point.key] for point in points if point.key in lines}
    return Sweep(folder, parents, evaluator, points, records)


def write_sweep(
    folder: Path, parents: Mapping[str, Any], evaluator: Mapping[str, str], points: Iterable[Point]
) -> None:
    """Write `sweep.json`, whole or not at all."""
    entries = [_entry(point) for point in points]
    content = {"version": VERSION, "parents": dict(parents), "evaluator": dict(evaluator), "points": entries}
    write_json(folder / SWEEP_FILE, content)
    sync(folder)


def _entry(point: Point) -> dict[str, Any]:
    return {
        "key": point.key,
        "method": point.method,
        "axes": point.axes,
        "label": point.label,
        "strength": point.strength,
    }


def _point(entry: Mapping[str, Any]) -> Point:
    point = Point.of(entry["method"], **entry["axes"])
    if point.key != entry["key"]:
        raise ValueError(f"{SWEEP_FILE}: point {entry['key']} is not what its axes say ({point.label})")
    return point


@contextlib.contextmanager
def _staged(folder: Path, key: str, samples: Samples) -> Iterator[Callable[[], None]]:
    """The samples on disk under another name; what puts them in their place. Gone at the end where nobody did."""
    path = samples_file(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")

    def place() -> None:
        staging.replace(path)
        sync(path.parent)

    try:
        samples.save(staging)
        sync(staging)
        yield place
    finally:
        staging.unlink(missing_ok=True)


def finish_point(folder: Path, point: Point, samples: Samples, values: Mapping[str, Any]) -> bool:
    """Save a point's samples and add its line. False, and nothing changes, where the point has a line already.

    Whose claim was taken over may come late: the samples of a line stay those that it was made of.

    Raises:
        ValueError: as `append`.
    """
    with _staged(folder, point.key, samples) as place:
        return append(folder, point, values, place)


def append(folder: Path, point: Point, values: Mapping[str, Any], before: Callable[[], None] | None = None) -> bool:
    """Add a finished point's line and bring it to disk. False where the point has a line already.

    Args:
        before: called once it is sure that the line will be added, while nobody else can add one.

    Raises:
        ValueError: a line is damaged, or the file is no ledger.
    """
    path = folder / LEDGER_FILE
    with locked(path) as stream:
        known = _known(stream, path)
        if point.key in known:
            return False
        if before:
            before()
        # ASCII and one write: no separator of a label can break a line.
        stream.write(json.dumps({**_entry(point), **values}).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return True


def read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> line, of every whole line; empty where there is no ledger yet."""
    path = folder / LEDGER_FILE
    if not path.is_file():
        return {}
    with path.open("rb") as stream:
        return _rows(stream, path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """The file, made where it is missing, open for reading and appending by this process alone. Waits for others."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if is_new:
            sync(path.parent)
        yield stream


def _known(stream: BinaryIO, path: Path) -> dict[str, dict[str, Any]]:
    """The lines by key; a torn last line is cut off the file."""
    stream.seek(0)
    known = _rows(stream, path)
    stream.seek(0)
    whole = sum(len(line) for line in stream if line.endswith(b"\n"))
    stream.seek(whole)
    if not _START.startswith(stream.read(len(_START))):  # not what a line begins with: do not destroy another file
        raise ValueError(f"{path}: the last line is no line of a ledger; remove it, or sweep into another folder")
    stream.truncate(whole)
    return known


def _rows(stream: BinaryIO, path: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            key = row["key"]
        except (ValueError, TypeError, LookupError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: line {number} is no line of a ledger ({cause}); remove that line") from error
        if key in rows:
            raise ValueError(f"{path}: line {number} repeats point {key}; remove that line")
        rows[key] = row
    return rows
