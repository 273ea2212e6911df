"""Which point of a sweep is to be delivered, and its parents made ready: the same ones that were swept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.merging.curve import front
from recllm.merging.improvement import Choice, choose
from recllm.merging.ledger import Sweep, ready_folder
from recllm.merging.methods import BASE, DIRECT, THINKING
from recllm.merging.parents import Parent, describe, holds, make_ready, source_fingerprint
from recllm.merging.preflight import preflight
from recllm.merging.results import Results, Row
from recllm.merging.space import Point


@dataclass(frozen=True, eq=False)
class Pick:
    """A point to deliver, what was measured of it, why it was taken, and the choice where its figures made it."""

    point: Point
    row: Row
    why: str
    choice: Choice | None = None


def pick(sweep: Sweep, results: Results, key: str | None, budget: float | None, best: bool, seed: int = 0) -> Pick:
    """The point with the key, the most accurate one within a budget of mean tokens, or the most accurate of all.

    Raises:
        ValueError: not exactly one of the three is asked for, no such point, or none within the budget.
    """
    if sum((bool(key), budget is not None, best)) != 1:
        raise ValueError("say which point: its key (key), the best within a token budget (budget), or best: true")
    if key:
        return picked(sweep, results.row(key), "asked for by its key")
    choice = choose(results, [] if best else [budget], seed=seed)[0 if best else 1]
    if choice.row is None:
        shortest = min(row.tokens for row in results.distinct)
        raise ValueError(f"{results.source}: no point has at most {budget:g} tokens; the shortest has {shortest:g}")
    wanted = "the highest accuracy" if best else f"the highest accuracy of at most {budget:g} mean tokens"
    how = "chosen on one half of the questions and read on the other" if choice.is_held_out else "on all questions"
    # The choice's row has the figures of half of the questions.
    return picked(sweep, results.row(choice.row.key), f"{wanted}, {how}", choice)


def picked(sweep: Sweep, row: Row, why: str, choice: Choice | None = None) -> Pick:
    """The row as a pick."""
    return Pick(next(point for point in sweep.points if point.key == row.key), row, why, choice)


def pick_front(sweep: Sweep, results: Results) -> list[Pick]:
    """The whole Pareto set, by tokens."""
    best = front(results.distinct)
    return [
        picked(sweep, row, f"number {place} of {len(best)} on the Pareto front") for place, row in enumerate(best, 1)
    ]


def roles_of(point: Point, sweep: Sweep) -> list[str]:
    """The parents that the point is made of."""
    text = f"{point.axes.get('base', '')} {point.axes.get('config', {}).get('base_model', '')}"
    return [
        role for role in (DIRECT, THINKING, BASE) if role in sweep.parents and (role != BASE or BASE in text.split())
    ]


def ready_parents(
    sweep: Sweep, points: list[Point], output: Path, checkpoints: int, elsewhere: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """Role -> local folder of every parent, checked to be what was swept.

    Args:
        output: where checkpoints will land. checkpoints: how many lie there at a time.
        elsewhere: role -> address, for parents that have moved since.

    Raises:
        ValueError: a parent is gone or is not the one that was swept, or disk or memory are short.
    """
    found = {}
    for role, entry in sweep.parents.items():
        given = (elsewhere or {}).get(role)
        found[role] = _swept(role, entry, [given] if given else [entry["address"], entry["folder"]])
    preflight(found, points, output, checkpoints)
    marks = {role: entry["fingerprint"] for role, entry in sweep.parents.items()}
    return {
        role: make_ready(parent, ready_folder(sweep.folder, marks[role]), marks[role]) for role, parent in found.items()
    }


def _swept(role: str, entry: Mapping[str, Any], addresses: list[str]) -> Parent:
    causes = []
    for address in dict.fromkeys(addresses):
        try:
            parent = describe(address, entry.get("pickled") is True)
        except ValueError as error:
            causes.append(str(error))
            continue
        mark = source_fingerprint(parent)
        if mark == entry["fingerprint"] or (address == entry["folder"] and holds(address, entry["fingerprint"])):
            return parent
        causes.append(f"{address} has the fingerprint {mark[:12]}, {entry['fingerprint'][:12]} was swept")
    raise ValueError(
        f"the {role} parent of the sweep is not there: {'; '.join(causes)}. Say where it is: --{role} PATH"
    )
