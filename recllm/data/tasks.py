"""Which rows the chat data sets of alignment and recommendation have: tasks, targets, weights, dropped items, order.

Six tasks (OneRec-Think's and TwiSTAR's itemic alignment, LC-Rec's and MiniOneRec's index-language tasks). Three read
the catalogue, one row an item; three read the fitting fold, one row a target. There is no `categories_to_sid`: many
items share their categories, so one sid would be a guess and the others punished as wrong.

A row is a handful of numbers here; `tasks_text.py` turns them into messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from recllm.data import prompts
from recllm.data.interactions import Sequences

WINDOW = prompts.RECOMMEND_HISTORY + 1
TARGETS = ("all", "last")
# Only these rows are copied with dropped items.
AUGMENTED = "sequence_to_sid"
NONE = -1


@dataclass(frozen=True)
class Task:
    """A kind of row: an instruction, what it shows of its items, and what it answers with of the last one.

    `shows` is "sid" or "title", `answers` "sid", "title" or "categories". A row of a task with `history` shows the
    items before its target, any other row the target itself.
    """

    instruction: str
    shows: str
    answers: str
    history: bool


TASKS = {
    "sid_to_title": Task(prompts.TITLE_OF_INSTRUCTION, "sid", "title", history=False),
    "title_to_sid": Task(prompts.SID_OF_INSTRUCTION, "title", "sid", history=False),
    "sid_to_categories": Task(prompts.CATEGORIES_OF_INSTRUCTION, "sid", "categories", history=False),
    "sequence_to_sid": Task(prompts.RECOMMEND_INSTRUCTION, "sid", "sid", history=True),
    "titles_to_sid": Task(prompts.TITLES_INSTRUCTION, "title", "sid", history=True),
    "sequence_to_title": Task(prompts.NEXT_TITLE_INSTRUCTION, "sid", "title", history=True),
}


@dataclass(frozen=True)
class RowOptions:
    """Which events become targets, and what else is drawn.

    `targets` "all" makes every event of a user from the second on a target; "last" makes every 21st one, counted from
    the last, so that histories of 20 items with their targets tile the sequence. `stride` is the number of events
    between two targets where it is to be neither 1 nor 21. Each sequence_to_sid row gets `copies` further copies in
    which every item of the history is dropped with probability `drop_items`; the newest one stays where all would go.
    `seed` decides which rows a weight picks, what is dropped, and the order.

    Raises:
        ValueError: unknown targets, a negative stride, or `copies` and `drop_items` that do not go together.
    """

    targets: str = "all"
    stride: int = 0
    drop_items: float = 0.0
    copies: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}; got {self.targets!r}")
        if self.stride < 0:
            raise ValueError(f"stride must not be negative, got {self.stride}")
        if self.copies < 0 or not 0 <= self.drop_items < 1 or (self.copies > 0) != (self.drop_items > 0):
            raise ValueError(
                f"copies ({self.copies}) and drop_items ({self.drop_items}, below 1) go together: copies with nothing "
                "dropped are repetitions, which a weight of 2 gives"
            )

    @property
    def step(self) -> int:
        """Events between two targets of a user."""
        return self.stride or (1 if self.targets == "all" else WINDOW)


@dataclass(frozen=True)
class Rows:
    """Rows of a chat data set.

    `task_R` int8 counts TASKS, `user_R` and `position_R` int32 are the user's id and the target's place in the user's
    sequence (-1 for a row about the catalogue), `item_R` int32 is the item asked about. The items shown are
    `start_R:stop_R` of the fold's events followed by the catalogue (see `shown_items`). `draw_R` is where the row's
    draws start in `dropped_D`, which is true where the item shown is dropped; the first 20 draws drop nothing.
    """

    task_R: np.ndarray
    user_R: np.ndarray
    position_R: np.ndarray
    item_R: np.ndarray
    start_R: np.ndarray
    stop_R: np.ndarray
    draw_R: np.ndarray
    dropped_D: np.ndarray

    def __len__(self) -> int:
        return len(self.task_R)

    def subset(self, index: np.ndarray | slice) -> Rows:
        """The rows that an index, a boolean array or a slice picks, in its order."""
        picked = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name.endswith("_R")}
        return Rows(**picked, dropped_D=self.dropped_D)


def parse_mixture(text: str) -> dict[str, float]:
    """The weight of each task: `text` is a JSON object, or the name of a single task, which gets the weight 1.

    Raises:
        ValueError: neither, an unknown task, or a weight that is not a positive finite number.
    """
    if text in TASKS:
        return {text: 1.0}
    try:
        weights = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"tasks {text!r} is neither a task ({', '.join(TASKS)}) nor a mapping of tasks") from error
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"tasks must map tasks to weights, for example sequence_to_sid: 1.0; got {text!r}")
    for name, weight in weights.items():
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < np.inf:
            raise ValueError(f"task {name}: the weight must be a positive number, got {weight!r}; leave out what is 0")
    return {name: float(weight) for name, weight in weights.items()}


def shown_items(fold: Sequences, items: int) -> np.ndarray:
    """What the rows' `start_R:stop_R` count: the items of all events of the fold, then every item of the catalogue."""
    return np.concatenate([fold.items_M, np.arange(items, dtype=np.int32)])


def select_rows(
    fold: Sequences, has_text: Mapping[str, np.ndarray], weights: Mapping[str, float], options: RowOptions
) -> tuple[Rows, dict[str, int]]:
    """The rows of every task in `weights`, shuffled, and how many of each task were left out for want of text.

    `fold` holds the events that rows may be made of, in practice `split.fitting`. `has_text` tells for "sid", "title"
    and "categories" which of the N items have one. A weight of 1 takes all rows of its task once, 0.5 a random half,
    2.5 all twice and a random half of them again.
    """
    rng, items = np.random.default_rng(options.seed), len(has_text["sid"])
    parts, left_out, dropped_D = [], {}, np.zeros(prompts.RECOMMEND_HISTORY, dtype=bool)
    for name, weight in weights.items():
        rows = _history_rows(fold, options.step) if TASKS[name].history else _catalog_rows(fold, items)
        told_R = _told(TASKS[name], rows, shown_items(fold, items), has_text)
        left_out[name] = int((~told_R).sum())
        rows = _weighted(rows if told_R.all() else rows.subset(told_R), weight, rng)
        rows.task_R[:] = list(TASKS).index(name)
        if name == AUGMENTED and options.copies:
            rows, dropped_D = _with_copies(rows, options, rng)
        parts.append(rows)
    arrays = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Rows)[:-1]}
    rows = Rows(**arrays, dropped_D=dropped_D)
    return rows.subset(rng.permutation(len(rows))), left_out


def _history_rows(fold: Sequences, step: int) -> Rows:
    lengths_U, events = fold.lengths_U, len(fold.items_M)
    position_M = np.arange(events, dtype=np.int64) - np.repeat(fold.offsets_U1[:-1], lengths_U)
    target_M = position_M > 0
    if step > 1:
        target_M &= (np.repeat(lengths_U - 1, lengths_U) - position_M) % step == 0
    stop_R, position_R = np.flatnonzero(target_M), position_M[target_M]
    return Rows(
        task_R=np.zeros(len(stop_R), dtype=np.int8),
        user_R=np.repeat(fold.user_ids_U, lengths_U)[target_M],
        position_R=position_R.astype(np.int32),
        item_R=fold.items_M[target_M],
        start_R=stop_R - np.minimum(position_R, prompts.RECOMMEND_HISTORY),
        stop_R=stop_R,
        draw_R=np.zeros_like(stop_R),
        dropped_D=np.zeros(0, dtype=bool),
    )


def _catalog_rows(fold: Sequences, items: int) -> Rows:
    start_R = np.arange(items, dtype=np.int64) + len(fold.items_M)
    nobody_R = np.full(items, NONE, dtype=np.int32)
    return Rows(
        task_R=np.zeros(items, dtype=np.int8),
        user_R=nobody_R,
        position_R=nobody_R,
        item_R=np.arange(items, dtype=np.int32),
        start_R=start_R,
        stop_R=start_R + 1,
        draw_R=np.zeros_like(start_R),
        dropped_D=np.zeros(0, dtype=bool),
    )


def _told(task: Task, rows: Rows, items_X: np.ndarray, has_text: Mapping[str, np.ndarray]) -> np.ndarray:
    # Rows whose answer has a text and of whose shown items at least one has.
    answered_R, shown_N = has_text[task.answers][rows.item_R], has_text[task.shows]
    if shown_N.all():
        return answered_R
    so_far_X1 = np.concatenate([[0], np.cumsum(shown_N[items_X])])
    return answered_R & (so_far_X1[rows.stop_R] > so_far_X1[rows.start_R])


def _weighted(rows: Rows, weight: float, rng: np.random.Generator) -> Rows:
    # The nearest count to weight times rows: whole rounds, and a sample without replacement for the rest.
    wanted = int(weight * len(rows) + 0.5)
    rounds, rest = divmod(wanted, max(len(rows), 1))
    if (rounds, rest) == (1, 0):
        return rows
    sample = np.sort(rng.choice(len(rows), rest, replace=False)) if rest else np.zeros(0, dtype=np.int64)
    return rows.subset(np.concatenate([np.tile(np.arange(len(rows)), rounds), sample]))


def _with_copies(rows: Rows, options: RowOptions, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
    # The rows, then their copies with draws of their own, and all draws.
    index = np.concatenate([np.arange(len(rows)), np.tile(np.arange(len(rows)), options.copies)])
    both = rows.subset(index)
    length_C = (both.stop_R - both.start_R)[len(rows) :]
    end_C = np.cumsum(length_C)
    dropped_D = rng.random(int(end_C[-1]) if len(end_C) else 0) < options.drop_items
    # Draws go oldest item first, so a row's last draw is about its newest item.
    lost_C = np.diff(np.concatenate([[0], np.cumsum(dropped_D)])[np.concatenate([[0], end_C])]) == length_C
    dropped_D[(end_C - 1)[lost_C]] = False
    quiet = prompts.RECOMMEND_HISTORY
    both.draw_R[len(rows) :] = quiet + end_C - length_C
    return both, np.concatenate([np.zeros(quiet, dtype=bool), dropped_D])
