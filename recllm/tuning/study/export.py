"""What a person reads of a study: the trials as a table, the reflections as lines, and the summary.

All of it is made of the journal and may be made again; nothing is resumed from it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recllm.provenance import write_text
from recllm.tuning.language.telling import shown
from recllm.tuning.study.plain import line
from recllm.tuning.study.reflection import change_of
from recllm.tuning.study.trial import SOURCES, History, Trial
from recllm.tuning.trials.runner import OBJECTIVE

TRIALS_FILE, REFLECTIONS_FILE, SUMMARY_FILE = "trials.tsv", "reflections.jsonl", "summary.md"
_SHOWN_METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
# VirtualMLE's own columns (methods 1.1), then what they leave open.
COLUMNS = (
    *("run_id", "commit", "model", "domain", "hypothesis", "changed_dimension", "model_params_m"),
    *(f"val_{name}" for name in _SHOWN_METRICS),
    *("status", "failure_dimension", "reflection", "generalized_rule", "next_action"),
    *("source", "parent", "cpu_seconds", "config"),
)
_MOST = 400  # characters of a cell of words


def write_trials(folder: Path, history: History, commit: str | None, domain: str) -> None:
    """trials.tsv: one line a trial in the order of ending. status: keep, discard, or how it failed."""
    lines = ["\t".join(COLUMNS)]
    for trial in history.trials:
        row = {"commit": commit or "", "model": history.space.name, "domain": domain, **_cells(history, trial)}
        # `line` leaves no tab and no line break in a cell.
        lines.append("\t".join(line(row[name], _MOST * 4 if name == "config" else _MOST) for name in COLUMNS))
    write_text(folder / TRIALS_FILE, "\n".join(lines) + "\n")


def _cells(history: History, trial: Trial) -> dict[str, Any]:
    outcome, said, looked = trial.outcome, trial.proposal, trial.reflection
    change = change_of(history, trial)
    rule = looked.rule if looked else None
    metrics = {f"val_{name}": _figure(outcome.metrics.get(f"validation/{name}")) for name in _SHOWN_METRICS}
    status = ("keep" if trial.kept else "discard") if outcome.ok else outcome.status
    return metrics | {
        "run_id": trial.number,
        "hypothesis": said.hypothesis if said else "",
        "changed_dimension": f"{change[0]} {shown(change[1])} to {shown(change[2])}" if change else "",
        "model_params_m": "" if outcome.parameters is None else f"{outcome.parameters / 1e6:.3f}",
        "status": status,
        "failure_dimension": (looked.failure_dimension or "") if looked else "",
        "reflection": f"{looked.verdict}: {looked.causal_attribution}" if looked else "",
        "generalized_rule": f"{rule.when}: {rule.dimension} {shown(rule.value)} {rule.effect}" if rule else "",
        "next_action": looked.next_action if looked else "",
        "source": trial.source,
        "parent": "" if trial.parent is None else trial.parent,
        "cpu_seconds": f"{outcome.cpu_seconds:.1f}",
        "config": json.dumps(dict(trial.config)),
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def write_reflections(folder: Path, history: History) -> None:
    """reflections.jsonl: what was said before each trial, what came of it, and the reflection."""
    rows = []
    for trial in history.trials:
        row = trial.row()
        kept = {
            name: row[name] for name in ("number", "source", "parent", "proposal", "refusals", "reflection", "kept")
        }
        rows.append(kept | {"status": trial.outcome.status, "score": trial.outcome.metrics.get(OBJECTIVE)})
    write_text(folder / REFLECTIONS_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def study_metrics(history: History, noise: Sequence[Trial]) -> dict[str, Any]:
    """Plain numbers of a study: of the default and the best, and who chose.

    `gain` is relative to the default's score in this study, whose noise
    `epsilon` tells.
    """
    sources, trials = Counter(trial.source for trial in history.trials), history.trials
    default, best = _score(trials[0]), history.best
    found = _score(best) if best else None
    return {
        "trials": len(trials),
        "ok": sum(trial.outcome.ok for trial in trials),
        "kept": sum(trial.kept for trial in trials),
        **{f"from/{source}": sources[source] for source in SOURCES if sources[source]},
        "model_share": model_share(sources),
        "epsilon": history.epsilon,
        f"default/{OBJECTIVE}": default,
        f"best/{OBJECTIVE}": found,
        "best/number": best.number if best else None,
        "gain": found / default - 1 if default and found is not None else None,
        "noise_runs": len(noise),
        "cpu_seconds": round(math.fsum(trial.outcome.cpu_seconds for trial in (*trials, *noise)), 1),
    }


def model_share(sources: Mapping[str, int]) -> float | None:
    """Share of the changes that a model itself proposed, at its first or second try; None where it made none.

    A random one counts against it whether the model was asked in vain or, with every single change tried, not at all.
    """
    own = sources["model"] + sources["repaired"]
    asked = own + sources["random"]
    return own / asked if asked else None


def _score(trial: Trial) -> float | None:
    return trial.outcome.score if trial.outcome.ok else None
