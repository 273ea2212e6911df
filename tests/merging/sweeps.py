"""Sweeps made in code: real folders with real ledgers, samples by a rule instead of a model."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from recllm.evaluation.samples import Samples
from recllm.merging.ledger import finish_point, write_sweep
from recllm.merging.parents import describe, source_fingerprint
from recllm.merging.space import ENDS as PARENTS
from recllm.merging.space import Point, Space

ENDS = tuple(PARENTS.values())


def write(
    folder: Path,
    points: Iterable[Point],
    ask: Callable[[Point], Samples],
    parents: Mapping[str, Path] | None = None,
    unfinished: Iterable[Point] = (),
) -> Path:
    """A sweep's folder in which every point but the unfinished ones was asked; both parents are points of it."""
    space = Space.of([*ENDS, *points, *unfinished])
    told = {
        role: {
            "folder": str(path.resolve()),
            "address": str(path),
            "fingerprint": source_fingerprint(describe(str(path))),
        }
        for role, path in (parents or {}).items()
    }
    write_sweep(folder, told, {"name": "toy", "fingerprint": "f"}, space.points)
    left = {point.key for point in unfinished}
    for point in space.points:
        if point.key not in left:
            samples = ask(point)
            spent = {"merge_seconds": 0.0, "evaluate_seconds": 0.0, "worker": "w"}
            finish_point(folder, point, samples, {**samples.summary(), **spent})
    return folder


def constant(accuracy: Mapping[Point, float], tokens: Mapping[Point, float], questions: int = 10) -> Callable:
    """Samples of exactly these means: the first questions are right, all completions are of one length."""

    def ask(point: Point) -> Samples:
        right = np.arange(questions)[:, None] < round(accuracy[point] * questions)
        length = np.full((questions, 1), tokens[point], np.int32)
        return Samples(right.astype(np.float32), length, length > 10)

    return ask


def spectrum(questions: int = 60, samples: int = 2) -> Callable:
    """Samples of merges that begin to think around strength .5, and answer better where they think."""

    def ask(point: Point) -> Samples:
        rng = np.random.default_rng(int(point.key, 16))
        strength = 0.5 if point.strength is None else point.strength
        thinks = rng.random((questions, samples)) < 1 / (1 + np.exp(-20 * (strength - 0.5)))
        right = rng.random((questions, samples)) < np.where(thinks, 0.85, 0.4)
        tokens = np.where(thinks, rng.integers(40, 50 + int(80 * strength), thinks.shape), 5)
        return Samples(right.astype(np.float32), tokens.astype(np.int32), thinks)

    return ask
