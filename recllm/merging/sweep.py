"""A sweep as one job that any number of workers share and that may be killed at any moment: merge, evaluate, record.

Every worker holds one live model. A point's tensors are written into it in place, the evaluator asks it, its samples
are saved, and its line enters the ledger: only then the point is done. Before any of it the parents are compared by
their headers, and nothing is written where they do not belong together or to what lies in the folder.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.evaluation.samples import Evaluator
from recllm.merging.claims import Claims, worker_name
from recllm.merging.ledger import (
    LEDGER_FILE,
    SWEEP_FILE,
    Sweep,
    finish_point,
    read_ledger,
    read_sweep,
    ready_folder,
    write_sweep,
)
from recllm.merging.live import Bench
from recllm.merging.parents import Parent, describe, make_ready, source_fingerprint
from recllm.merging.preflight import Preflight, preflight
from recllm.merging.progress import SweepProgress, is_first_rank
from recllm.merging.space import ENDS, Point, Space, engine_order
from recllm.provenance import METRICS_FILE, RunRecord, load_run, read_json

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that may start.

    Attributes:
        parents: role -> what was found there. fingerprints: role -> identity of what the parent is made of.
        points: in the order of the grid, both parents among them.
        found: what the preflight found.
    """

    folder: Path
    parents: Mapping[str, Parent]
    fingerprints: Mapping[str, str]
    points: tuple[Point, ...]
    evaluator: Evaluator
    found: Preflight

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this sweep another one than one with the same settings, for a run's record."""
        keys = hashlib.sha256(" ".join(point.key for point in self.points).encode()).hexdigest()
        marks = {"points_fingerprint": keys, "evaluator_fingerprint": self.evaluator.fingerprint}
        return marks | {"parent_fingerprints": dict(self.fingerprints)}

    @property
    def inputs(self) -> dict[str, str]:
        """Role -> folder, of the parents that are folders."""
        addresses = {role: parent.address for role, parent in self.parents.items()}
        return {role: address for role, address in addresses.items() if Path(address).is_dir()}


def plan_sweep(
    folder: str | Path,
    addresses: Mapping[str, str],
    space: Space,
    evaluator: Evaluator,
    pickle_weights: bool = False,
) -> SweepPlan:
    """Look at the parents and at what lies in the folder; writes nothing.

    Args:
        addresses: role (direct, thinking, base) -> local folder, Hub id or adapter.
        space: the grid's points. The parents are added in front where they are missing.

    Raises:
        ValueError: parents that cannot be merged, a lack of disk or memory, or a folder with another sweep: other
            parents, another evaluator, or points that the grid lacks. A folder whose grid grew is taken.
    """
    folder = Path(folder)
    missing = [point for point in ENDS.values() if point not in space.points]
    points = Space.of([*missing, *space.points]).points
    parents = {role: describe(address, pickle_weights) for role, address in addresses.items()}
    found = preflight(parents, points, folder, checkpoints=0)
    for warning in found.warnings:
        logger.warning("%s", warning)
    marks = {role: source_fingerprint(parent) for role, parent in parents.items()}
    plan = SweepPlan(folder, parents, marks, points, evaluator, found)
    if (folder / SWEEP_FILE).exists():
        _check_same(read_sweep(folder), plan)
    return plan


def _check_same(there: Sweep, plan: SweepPlan) -> None:
    elsewhere = f"sweep into another folder, or remove {there.folder}"
    for role, known in there.parents.items():
        if role not in plan.parents:
            raise ValueError(
                f"{there.folder} was swept with a parent {role!r} ({known['folder']}): give it, or {elsewhere}"
            )
        if plan.fingerprints[role] != known["fingerprint"]:
            raise ValueError(
                f"{plan.parents[role].address} ({role}) is not the parent that {there.folder} was swept with "
                f"({known['folder']}, fingerprint {known['fingerprint'][:12]}, now {plan.fingerprints[role][:12]}): "
                f"{elsewhere}"
            )
    mine = {"name": plan.evaluator.name, "fingerprint": plan.evaluator.fingerprint}
    if there.evaluator != mine:
        raise ValueError(
            f"{there.folder} was swept with evaluator {there.evaluator['name']} "
            f"{there.evaluator['fingerprint'][:12]}, this is {mine['name']} {mine['fingerprint'][:12]}: its questions "
            f"or settings differ, so the points could not be compared; {elsewhere}"
        )
    wanted = {point.key for point in plan.points}
    if gone := [point for point in there.points if point.key not in wanted]:
        raise ValueError(
            f"{there.folder} has {len(gone)} points that the grid lacks, {gone[0].label} for one: a grid may only "
            f"grow; put them back, or {elsewhere}"
        )


def run_sweep(plan: SweepPlan) -> Sweep:
    """Do every point that is not done and that no other worker is at, then wait for the others'.

    Raises:
        ValueError: as `plan_sweep`, where somebody else put another sweep into the folder meanwhile.
        RuntimeError: a point failed. Those before it stay done, and a new start goes on with that point.
    """
    claims = Claims(plan.folder)
    folders = _open(plan, claims)
    bench = Bench(folders, plan.points, plan.evaluator, plan.found.workers, plan.found.streams)
    order = engine_order(plan.points)
    done = read_ledger(plan.folder)
    with SweepProgress(len(order), len(done)) as progress:
        while left := [point for point in order if point.key not in done]:
            results = [_point(plan, bench, claims, point, progress) for point in left]
            done = read_ledger(plan.folder)
            if not any(results) and len(done) < len(order):
                progress.waits(len(done))
                time.sleep(_POLL_SECONDS)
    claims.discard(point.key for point in order)
    return read_sweep(plan.folder)


def _open(plan: SweepPlan, claims: Claims) -> dict[str, Path]:
    """Make the parents ready and write what is swept, once for all workers; role -> local folder."""
    with claims.alone():
        there = read_sweep(plan.folder) if (plan.folder / SWEEP_FILE).exists() else None
        if there:
            _check_same(there, plan)
        folders = {
            role: make_ready(parent, ready_folder(plan.folder, mark), mark)
            for role, parent in plan.parents.items()
            for mark in [plan.fingerprints[role]]
        }
        if not there or list(plan.points) != there.points or folders.keys() != there.parents.keys():
            told = {
                role: {
                    "folder": str(path.resolve()),
                    "address": plan.parents[role].address,
                    "hub_id": None if role in plan.inputs else plan.parents[role].address,
                    "fingerprint": plan.fingerprints[role],
                    **({"pickled": True} if plan.parents[role].pickled else {}),
                }
                for role, path in folders.items()
            }
            evaluator = {"name": plan.evaluator.name, "fingerprint": plan.evaluator.fingerprint}
            write_sweep(plan.folder, told, evaluator, plan.points)
        return folders


def _point(plan: SweepPlan, bench: Bench, claims: Claims, point: Point, progress: SweepProgress) -> bool:
    """Whether this worker did the point."""
    with claims.held(point.key) as mine:
        if not mine or point.key in read_ledger(plan.folder):
            return False
        try:
            samples, seconds = bench.ask(point)
        except Exception as error:
            done = len(read_ledger(plan.folder))
            raise RuntimeError(
                f"point {point.label} ({point.key}) failed: {type(error).__name__}: {error}. {done} of "
                f"{len(plan.points)} points are in {plan.folder / LEDGER_FILE} and stay there; once the cause is gone, "
                "the same command goes on with this point"
            ) from error
        record = {**samples.summary(), **seconds, "worker": worker_name()}
        if not finish_point(plan.folder, point, samples, record):
            return False
    progress.finished(len(read_ledger(plan.folder)), {"label": point.label, **record})
    return True


def sweep_metrics(sweep: Sweep) -> dict[str, Any]:
    """Number of points, the parents' and the best point's accuracy and tokens, and which point that is.

    The best has the highest accuracy, among equals the fewest tokens.
    """
    best = max(sweep.records.values(), key=lambda record: (record["accuracy"], -record["tokens"]))
    told = {role: sweep.records[point.key] for role, point in ENDS.items()} | {"best": best}
    metrics: dict[str, Any] = {"points": len(sweep.records), "n": best["questions"], "samples": best["samples"]}
    fields = [f"{name}{end}" for name in ("accuracy", "tokens") for end in ("", "_lo", "_hi")] + ["think_share"]
    for name, record in told.items():
        metrics |= {f"{name}/{field}": record[field] for field in fields}
    metrics |= {f"best/{field}": best[field] for field in ("key", "label", "strength")}
    for field in ("merge_seconds", "evaluate_seconds"):
        metrics[field] = round(sum(record[field] for record in sweep.records.values()), 3)
    return metrics


def finish_sweep(record: RunRecord, sweep: Sweep) -> dict[str, Any]:
    """End the run, once for all workers: the first writes metrics and record, the others read them."""
    with Claims(sweep.folder).alone():
        known, same = load_run(sweep.folder), "points_fingerprint"
        if known and known["config"].get(same) == record.config[same]:
            return read_json(sweep.folder / METRICS_FILE)
        metrics = sweep_metrics(sweep)
        record.finish(metrics)
    return metrics


def print_sweep(metrics: Mapping[str, Any]) -> None:
    """The parents and the best point, one line each; by the first rank of a launch only."""
    if not is_first_rank():
        return
    print(f"{metrics['points']} points, {metrics['n']} questions x {metrics['samples']} samples, 95% intervals")
    for name in (*ENDS, "best"):
        accuracy, tokens = (
            f"{metrics[f'{name}/{key}']:{form}} [{metrics[f'{name}/{key}_lo']:{form}}, "
            f"{metrics[f'{name}/{key}_hi']:{form}}]"
            for key, form in (("accuracy", ".4f"), ("tokens", ".1f"))
        )
        which = f" ({metrics['best/label']})" if name == "best" else ""
        share = metrics[f"{name}/think_share"]
        print(f"{name:9} accuracy {accuracy}, tokens {tokens}, thinks {share:.0%}{which}", flush=True)
