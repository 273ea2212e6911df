"""What a tuner is trained on: the boards of every data set but the one that it is tested on, and memories of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recllm.tuning.memory.memory import Memory
from recllm.tuning.trials.surface import Surface
from recllm.tuning.tuner.board import Board
from recllm.tuning.tuner.traces import earlier_study, survey

MEMORIES_FOLDER = "memories"


def lesson_boards(folder: str | Path, leave_out: str) -> list[Board]:
    """The boards of the surfaces in a folder, but for those of one data set.

    Raises:
        ValueError: no surface is of that data set, which may be misspelt, or none is left.
    """
    found = [Surface.load(path) for path in sorted(Path(folder).glob("*.parquet"))]
    names = sorted({surface.provenance["dataset"] for surface in found})
    if leave_out not in names:
        raise ValueError(f"{folder} has no surface of {leave_out!r} to leave out; it has {', '.join(names) or 'none'}")
    boards = [Board.of(surface) for surface in found if surface.provenance["dataset"] != leave_out]
    if not boards:
        raise ValueError(f"{folder} has surfaces of {leave_out} alone: nothing is left to learn from")
    return boards


def lesson_memories(
    boards: Sequence[Board], count: int, bent: float, seed: int, folder: str | Path
) -> Mapping[int, list[Memory]]:
    """`count` memories for each board, each of one study on a bent board of every data set of that backbone, its own
    included, which is bent otherwise there: in turn a
    study that was played, and a survey of the board, which is what a whole surface tells.

    They stand in the folder, under `memories`, for a person to read.
    """
    known: dict[int, list[Memory]] = {}
    for place, board in enumerate(boards):
        alike = [other for other in boards if other.space.name == board.space.name]
        known[place] = []
        for number in range(count):
            rng = np.random.default_rng((seed, 2, place, number))
            memory = Memory(Path(folder) / MEMORIES_FOLDER / f"{place}-{number}")
            for which, other in enumerate(alike):
                study = other.bent(rng, None, bent * float(rng.random()))
                memory.learn((survey if number % 2 else earlier_study)(f"study-{which}", study, rng))
            known[place].append(memory)
    return known
