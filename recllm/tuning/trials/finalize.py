"""The one reading of the test targets, at the end of a study.

Until then no test metric exists: trials do not compute any. Before the first one is read, the study's folder gets
test_read.json, which says what is being read and when; after that nothing else can be read in this study. A reading
that was interrupted goes on with the same configuration and seeds.

This is for studies that train. One on a measured surface has nothing to train and reads `Surface.test_metrics` itself.
"""

from __future__ import annotations

import contextlib
import errno
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recllm.disk import claimed
from recllm.provenance import read_json, write_json
from recllm.tuning.trials.runner import TrialRunner

SEAL_FILE = "test_read.json"
_LOCK_FILE = ".test_read.lock"


def finalize(study: str | Path, runner: TrialRunner, config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Train the chosen configuration with each seed and read its test metrics, once in the life of a study.

    Returns what test_read.json then holds: `outcomes`, one a seed, and `summary`, the mean and the standard deviation
    over the seeds that ended well of every metric.

    Raises:
        ValueError: the configuration is not legal, the seeds are none or repeat, the study's test was read before, or
            another configuration's reading was begun; an input changed.
        BlockingIOError: another process is reading.
    """
    study, checked, seeds = Path(study), runner.space.check(config), [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more and differ, got {seeds}")
    key = runner.space.key(checked)
    asked = {"key": key, "config": checked, "seeds": seeds, "inputs": dict(runner.fingerprints)}
    with _alone(study):
        record = _opened(study / SEAL_FILE, asked)
        for seed in seeds[len(record["outcomes"]) :]:
            record["outcomes"].append(runner.run_unsealed(checked, seed).row())
            write_json(study / SEAL_FILE, record)
        record |= {"summary": _summary(record["outcomes"]), "finished": _now()}
        write_json(study / SEAL_FILE, record)
    return record


def is_sealed(study: str | Path) -> bool:
    """Whether nobody has begun to read the study's test targets."""
    return not (Path(study) / SEAL_FILE).exists()


def _opened(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The record of this reading, begun now or earlier; it is on disk before a test metric exists."""
    if not path.exists():
        record = {"opened": _now(), **asked, "outcomes": []}
        write_json(path, record)
        return record
    record = read_json(path)
    if record.get("finished"):
        raise ValueError(
            f"{path} says that the test was read on {record['finished']} with {record['config']}: a study reads it "
            "once; start another study, and say so where its number is reported"
        )
    if differing := [name for name, value in asked.items() if record.get(name) != value]:
        raise ValueError(
            f"{path} says that a reading with {differing[0]} {record.get(differing[0])} was begun on "
            f"{record['opened']}; only that one may be finished, not {asked[differing[0]]}"
        )
    return record


def _summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row["metrics"] for row in outcomes if row["status"] == "ok"]
    summary: dict[str, Any] = {"seeds": len(outcomes), "ok": len(good)}
    for name in good[0] if good else ():
        values = [metrics[name] for metrics in good]
        summary[name] = statistics.fmean(values)
        summary[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else math.nan
    return summary


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _alone(study: Path) -> Iterator[None]:
    with claimed(study / _LOCK_FILE) as mine:
        if not mine:
            raise BlockingIOError(errno.EAGAIN, "another process is reading this study's test", str(study))
        yield
