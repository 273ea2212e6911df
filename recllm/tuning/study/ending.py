"""The end of a study: its readable files, what memory learns of it, and the one reading of the test."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recllm.disk import claimed
from recllm.provenance import read_json, write_text
from recllm.tuning.memory.cognition import markdown, summarise
from recllm.tuning.memory.memory import Memory
from recllm.tuning.study.export import SUMMARY_FILE, study_metrics, write_reflections, write_trials
from recllm.tuning.study.journal import CLAIMS_FOLDER
from recllm.tuning.study.study import STUDY_FILE, Study
from recllm.tuning.study.trial import History
from recllm.tuning.trials.finalize import SEAL_FILE, finalize
from recllm.tuning.trials.runner import OBJECTIVE, TrialRunner

logger = logging.getLogger(__name__)
# What memory knew when the study began, so that a study that goes on is told what it was told before.
REMEMBERED = "memory"
DEFAULT_FOLDER = "default"
_TEST = OBJECTIVE.replace("validation/", "test/")
_TOLD = tuple(f"test/{name}{part}" for name in ("ndcg@10", "recall@10") for part in ("", "_std"))
# A budget may grow, and what the study was made with may change, without its being another.
_NOT_NAME = ("budget", "made_with")


def remembered(memory: str | Path, study: str | Path) -> Memory:
    """The memory as it is when the study begins, copied into the study's folder; later the copy as it is there.

    Workers that begin at once copy it once.

    Raises:
        ValueError: the memory cannot be read.
    """
    source, target = Path(memory), Path(study) / REMEMBERED
    with claimed(Path(study) / CLAIMS_FOLDER / REMEMBERED, wait=True):
        if not target.exists():
            staging = target.with_name(f".{REMEMBERED}.staging")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            if source.exists():
                # Read before it is copied: what cannot be read is to be mended there, not in a study's copy.
                known = Memory(source)
                known.lines(), known.studies()
                shutil.copytree(source, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            staging.replace(target)
    return Memory(target)


def name_of(study: Study) -> str:
    """The study's id: its space, its data set, and a digest of all that study.json says.

    The same study in another folder has the same, so that memory counts it once.
    """
    known = read_json(study.folder / STUDY_FILE)
    told = json.dumps({key: value for key, value in known.items() if key not in _NOT_NAME}, sort_keys=True)
    dataset = "".join(
        char if (char.isascii() and char.isalnum()) or char in ".-_" else "-"
        for char in str(known.get("dataset", "data"))
    )
    return f"{known['space']}-{dataset[:60]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def deliver(
    study: Study, runner: TrialRunner, history: History, memory: str | Path | None, test_seeds: Sequence[int]
) -> dict[str, Any]:
    """End a study: `conclude`, and where there are `test_seeds`, `read_tests`. One worker at a time; returns numbers.

    Raises:
        ValueError: as these.
    """
    with claimed(study.folder / CLAIMS_FOLDER / "deliver", wait=True):
        metrics = conclude(study, history, memory)
        return metrics | (read_tests(study, runner, history, test_seeds) if test_seeds else {})


def conclude(study: Study, history: History, memory: str | Path | None = None) -> dict[str, Any]:
    """Write trials.tsv, reflections.jsonl and summary.md, let `memory` learn the study, and return its numbers."""
    known = read_json(study.folder / STUDY_FILE)
    metrics = study_metrics(history, study.noise())
    write_trials(study.folder, history, known["made_with"][-1]["git_sha"], str(known.get("dataset", "")))
    write_reflections(study.folder, history)
    if not metrics[f"default/{OBJECTIVE}"]:
        logger.warning("the default configuration has no score: there is no gain to tell and nothing to remember")
        return metrics
    summary = summarise(name_of(study), history, study.agent.data)
    write_text(study.folder / SUMMARY_FILE, markdown(summary))
    if memory is not None:
        Memory(memory).learn(summary)
    return metrics


def read_tests(study: Study, runner: TrialRunner, history: History, seeds: Sequence[int]) -> dict[str, Any]:
    """Read the test for the best configuration and for the default, each once; both were fixed before either is read.

    test_read.json is the best one's, default/test_read.json the default's. Returns the means and deviations of NDCG@10
    and Recall@10 over the seeds, and the gain of NDCG@10. What was read before is not read again.

    Raises:
        ValueError: no trial ended well; another reading was begun: as `recllm.tuning.trials.finalize.finalize`.
    """
    if history.best is None:
        raise ValueError(f"{study.folder}: no trial ended well, so there is nothing to read the test for")
    read = {
        "best": _read(study.folder, runner, history.best.config, seeds),
        "default": _read(study.folder / DEFAULT_FOLDER, runner, history.space.default, seeds),
    }
    metrics: dict[str, Any] = {"test_seeds": len(seeds)}
    for who, record in read.items():
        found = record["summary"]
        names = [name for name in _TOLD if math.isfinite(found.get(name, math.nan))]  # one seed has no deviation
        metrics |= {f"{who}/{name}": found[name] for name in names}
    best, default = metrics.get(f"best/{_TEST}"), metrics.get(f"default/{_TEST}")
    return metrics | {"test_gain": best / default - 1 if best is not None and default else None}


def _read(folder: Path, runner: TrialRunner, config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    path = folder / SEAL_FILE
    if path.exists():
        record = read_json(path)
        known = (record.get("key"), record.get("seeds"), record.get("inputs"))
        if record.get("finished") and known == (runner.space.key(config), list(seeds), dict(runner.fingerprints)):
            return record
    return finalize(folder, runner, config, seeds)
