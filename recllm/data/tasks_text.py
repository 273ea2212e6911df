"""The messages of chat rows, written by Arrow: every message is a list of pieces, gathered and joined at once.

The pieces are the instructions, the items' sid texts, titles and categories; a row is a few piece numbers. No Python
loop runs over rows, which is what makes a data set of millions of rows a matter of seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.prompts import CATEGORY_SEPARATOR, TITLE_SEPARATOR
from recllm.data.tasks import NONE, TASKS, RowOptions, Rows, select_rows, shown_items

if TYPE_CHECKING:
    from datasets import Dataset

# Arrow counts the bytes of a block's text in 32 bits: 65,536 rows of 20 titles of 200 characters stay below.
BLOCK_ROWS = 65536


@dataclass(frozen=True)
class Pieces:
    """All texts that messages are put together from, and where each kind starts.

    `texts_P` is a string array: one instruction a task, then N sid texts, N titles, N titles behind a separator and N
    joined categories. `items` is N, and `has_text` tells for each kind which items have one.
    """

    texts_P: pa.StringArray
    items: int
    has_text: dict[str, np.ndarray]

    @classmethod
    def of(cls, catalog: Catalog, sid_texts: Sequence[str]) -> Pieces:
        """Pieces of a catalogue. An item without title or categories has the empty text there.

        Raises:
            ValueError: not one sid text an item.
        """
        if len(sid_texts) != len(catalog):
            raise ValueError(
                f"{len(sid_texts)} sid texts for {len(catalog)} items: the SID table is of another data set"
            )
        sids, titles = pa.array(sid_texts, pa.string()), _strings(catalog.frame["title"])
        categories = _strings(catalog.frame["categories"].list.join(CATEGORY_SEPARATOR))
        behind = pc.binary_join_element_wise(TITLE_SEPARATOR, titles, "")
        instructions = pa.array([task.instruction for task in TASKS.values()], pa.string())
        kinds = {"sid": sids, "title": titles, "categories": categories}
        has_text = {name: pc.greater(pc.binary_length(texts), 0).to_numpy(False) for name, texts in kinds.items()}
        return cls(pa.concat_arrays([instructions, sids, titles, behind, categories]), len(catalog), has_text)

    def first(self, kind: str, behind: bool = False) -> int:
        """Number of item 0's piece of a kind; `behind` asks for the one that follows another of its kind."""
        kinds = ("sid", "title", "behind", "categories")
        return len(TASKS) + kinds.index("behind" if behind and kind == "title" else kind) * self.items


def _strings(texts_N: pl.Series) -> pa.StringArray:
    return texts_N.fill_null("").to_arrow().cast(pa.string())


def chat_rows(
    fold: Sequences,
    catalog: Catalog,
    sid_texts: Sequence[str],
    weights: Mapping[str, float],
    options: RowOptions | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """The chat data set of a mixture of tasks, and its counts.

    Columns: `messages` (user, assistant), `task`, `user` and `position` (the target's place in the user's sequence;
    both null for a row about the catalogue) and `item`, the one asked about. `weights` is what `parse_mixture` gives.
    The counts are `rows`, `users`, and for each task `rows/TASK` and `left_out/TASK`, rows that lack a text.

    Raises:
        ValueError: sid texts of another catalogue, or no row at all.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    pieces = Pieces.of(catalog, sid_texts)
    rows, left_out = select_rows(fold, pieces.has_text, weights, options or RowOptions())
    if not len(rows):
        raise ValueError(f"no row can be made of {', '.join(weights)}: the titles or sequences are missing")
    counts = {"rows": len(rows), "users": int(np.count_nonzero(np.bincount(rows.user_R[rows.user_R != NONE])))}
    for name in weights:
        counts[f"rows/{name}"] = int((rows.task_R == list(TASKS).index(name)).sum())
        counts[f"left_out/{name}"] = left_out[name]
    table = arrow_table(rows, shown_items(fold, len(catalog)), pieces)
    return Dataset(InMemoryTable(table), fingerprint=_mark(table, rows)), counts


def _mark(table: pa.Table, rows: Rows) -> str:
    # `datasets` would pickle the whole table to find a fingerprint of its content; reading the text is far cheaper.
    import xxhash  # what `datasets` hashes with

    digest = xxhash.xxh3_128()
    for block in table["messages"].chunks:
        for buffer in block.values.field("content").buffers()[1:]:
            digest.update(buffer)
    for column_R in (rows.task_R, rows.user_R, rows.position_R, rows.item_R):
        digest.update(np.ascontiguousarray(column_R))
    return digest.hexdigest()


def arrow_table(rows: Rows, items_X: np.ndarray, pieces: Pieces) -> pa.Table:
    """The rows as an Arrow table with the columns that `chat_rows` names."""
    blocks = [rows.subset(slice(start, start + BLOCK_ROWS)) for start in range(0, len(rows), BLOCK_ROWS)]
    messages = pa.chunked_array([_messages(block, items_X, pieces) for block in blocks])
    known = rows.user_R != NONE
    columns = {
        "messages": messages,
        "task": pa.array(list(TASKS), pa.string()).take(pa.array(rows.task_R)),
        "user": pa.array(rows.user_R, mask=~known),
        "position": pa.array(rows.position_R, mask=~known),
        "item": pa.array(rows.item_R),
    }
    return pa.table(columns)


def _messages(rows: Rows, items_X: np.ndarray, pieces: Pieces) -> pa.ListArray:
    # Two lists of pieces a row: instruction and shown items, then the answer alone.
    item_K, length_R = _kept_items(rows, items_X, pieces)
    tasks = list(TASKS.values())
    starts_R1 = np.concatenate([[0], np.cumsum(length_R + 2)])
    first_R = starts_R1[:-1] + 1
    later_T = np.array([pieces.first(task.shows, behind=True) for task in tasks], dtype=np.int32)
    oldest_T = np.array([pieces.first(task.shows) for task in tasks], dtype=np.int32)
    answer_T = np.array([pieces.first(task.answers) for task in tasks], dtype=np.int32)
    piece_Q = np.empty(starts_R1[-1], dtype=np.int32)
    piece_Q[starts_R1[:-1]] = rows.task_R
    piece_Q[_ragged(first_R, length_R)] = np.repeat(later_T[rows.task_R], length_R) + item_K
    piece_Q[first_R] += (oldest_T - later_T)[rows.task_R]
    piece_Q[starts_R1[1:] - 1] = answer_T[rows.task_R] + rows.item_R
    ends = np.stack([starts_R1[1:] - 1, starts_R1[1:]], axis=1).ravel()
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    contents = pc.binary_join(pa.ListArray.from_arrays(offsets, pieces.texts_P.take(pa.array(piece_Q))), "")
    roles = pa.array(["user", "assistant"]).take(pa.array(np.tile(np.arange(2, dtype=np.int8), len(rows))))
    pairs = pa.array(np.arange(0, 2 * len(rows) + 1, 2, dtype=np.int32))
    return pa.ListArray.from_arrays(pairs, pa.StructArray.from_arrays([roles, contents], ["role", "content"]))


def _kept_items(rows: Rows, items_X: np.ndarray, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    # Shown items of all rows end to end, without dropped ones and those that lack the text, and how many each row has.
    length_R = rows.stop_R - rows.start_R
    item_K = items_X[_ragged(rows.start_R, length_R)]
    has_text_TN = np.stack([pieces.has_text[task.shows] for task in TASKS.values()])
    if has_text_TN[np.unique(rows.task_R)].all() and not rows.draw_R.any():
        return item_K, length_R
    kept_K = has_text_TN[np.repeat(rows.task_R, length_R), item_K]
    kept_K &= ~rows.dropped_D[_ragged(rows.draw_R, length_R)]
    owner_K = np.repeat(np.arange(len(rows)), length_R)
    return item_K[kept_K], np.bincount(owner_K[kept_K], minlength=len(rows))


def _ragged(start_R: np.ndarray, length_R: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + length - 1 of every row, end to end."""
    before_R = np.cumsum(length_R) - length_R
    return np.arange(length_R.sum(), dtype=np.int64) + np.repeat(start_R - before_R, length_R)
