"""Histories as slices of one array, and the stream of training examples that never holds a whole data set.

`write_histories` copies the fitting fold of a data set into an Arrow file, a block of users a record batch, in one
pass over the parquet file. `HistoryBlocks` maps that file: a block is a view into the page cache, so what an epoch
needs in memory is a few blocks, whatever the size of the data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recllm.data import interactions
from recllm.data.interactions import Sequences
from recllm.data.splits import DATASET_FILE, Examples, make_split

BLOCK_EVENTS = 1 << 16
# Blocks whose examples are shuffled together.
WINDOW = 8


@dataclass(frozen=True)
class Prefixes:
    """B histories: the `length_B` events from `start_B` on in `items_M`, oldest first; all int64 but `items_M`.

    `user_B` are user ids. The event after a history is its target, where the array holds one.
    """

    items_M: np.ndarray
    start_B: np.ndarray
    length_B: np.ndarray
    user_B: np.ndarray

    @classmethod
    def of_examples(cls, examples: Examples) -> Prefixes:
        """The full histories of some examples."""
        sequences = examples.sequences
        start_B = sequences.offsets_U1[examples.user_E]
        return cls(sequences.items_M, start_B, examples.position_E, examples.user_ids_E.astype("i8"))

    @classmethod
    def of_lists(cls, histories: list[np.ndarray]) -> Prefixes:
        """Histories given one by one; users are numbered from 0."""
        length_B = np.array([len(history) for history in histories], dtype=np.int64)
        items_M = np.concatenate([*histories, np.zeros(0, np.int32)]).astype(np.int32)
        return cls(items_M, np.cumsum(length_B) - length_B, length_B, np.arange(len(length_B)))

    def __len__(self) -> int:
        return len(self.start_B)

    @property
    def targets_B(self) -> np.ndarray:
        """The event after each history, int64."""
        return self.items_M[self.start_B + self.length_B].astype(np.int64)

    def subset(self, index: np.ndarray) -> Prefixes:
        """The histories that an index or boolean array picks, in its order."""
        return Prefixes(self.items_M, self.start_B[index], self.length_B[index], self.user_B[index])

    def last(self, n: int) -> Prefixes:
        """The last n events of each history."""
        kept_B = np.minimum(self.length_B, n)
        return Prefixes(self.items_M, self.start_B + self.length_B - kept_B, kept_B, self.user_B)

    def before_last(self, n: int) -> Prefixes:
        """All but the last n events of each history."""
        return Prefixes(self.items_M, self.start_B, np.maximum(self.length_B - n, 0), self.user_B)

    def padded(self) -> np.ndarray:
        """item + 1, int64 of shape (B, longest), left-aligned; 0 is padding. At least one column."""
        place_BT = np.arange(max(int(self.length_B.max(initial=0)), 1))[None]
        real_BT = place_BT < self.length_B[:, None]
        shifted_BT = np.zeros(real_BT.shape, dtype=np.int64)
        shifted_BT[real_BT] = self.items_M[(self.start_B[:, None] + place_BT)[real_BT]] + 1
        return shifted_BT

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All events end to end and the row each belongs to: `items_F` int32, `row_F` int64."""
        row_F = np.repeat(np.arange(len(self)), self.length_B)
        first_B = np.cumsum(self.length_B) - self.length_B
        return self.items_M[(self.start_B - first_B)[row_F] + np.arange(len(row_F))], row_F


def write_histories(
    dataset_dir: str | Path, path: str | Path, users: np.ndarray | None = None, block_events: int = BLOCK_EVENTS
) -> int:
    """Write the fitting fold of a data set folder as Arrow record batches of whole users; the number of blocks.

    Columns: user_id int32, items list<int32>. A block holds `block_events` events or a little more. Only the user ids
    in `users`, where given, are written; users with fewer than two fitting events have no target and are left out.

    Raises:
        FileNotFoundError: a file of the data set is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, known = Path(dataset_dir) / interactions.FILE, Path(dataset_dir) / DATASET_FILE
    for file in (source, known):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; make the data set with a data_prep script first")
    split = json.loads(known.read_text(encoding="utf-8"))
    if split["split"] == "folds":
        raise ValueError(f"{known}: histories are cut by their length, which the split folds does not go by")
    schema = pa.schema({"user_id": pa.int32(), "items": pa.list_(pa.int32())})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    blocks, held = 0, None
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for piece in _pieces(pq.ParquetFile(source), block_events, users):
            held = piece if held is None else tuple(np.concatenate(pair) for pair in zip(held, piece, strict=True))
            # The last user may go on in the next piece.
            whole = int(np.searchsorted(held[0], held[0][-1]))
            if whole >= block_events:
                writer.write_batch(_record_batch(tuple(part[:whole] for part in held), split, schema))
                held, blocks = tuple(part[whole:] for part in held), blocks + 1
        if held is not None:
            writer.write_batch(_record_batch(held, split, schema))
            blocks += 1
    return blocks


def _pieces(file, events: int, users: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in file.iter_batches(batch_size=events, columns=["user_id", "item_id"]):
        users_M, items_M = (batch.column(place).to_numpy() for place in range(2))
        kept_M = slice(None) if users is None else np.isin(users_M, users)
        if len(users_M[kept_M]):
            yield users_M[kept_M], items_M[kept_M]


def _record_batch(events: tuple[np.ndarray, np.ndarray], split: dict, schema):
    import pyarrow as pa

    users_M, items_M = events
    block = Sequences.from_arrays(users_M, items_M, np.zeros(len(users_M), dtype=np.int64))
    # How much of a sequence is fitted depends on its length and its user's id, so it can be told block by block.
    asked = (split["split"], split["routing_items"], split["split_seed"], split.get("role_share", 1.0))
    fit_length_U = make_split(block, *asked).fit_length_U
    kept = np.flatnonzero(fit_length_U >= 2)
    lead = block.leading(np.where(fit_length_U >= 2, fit_length_U, 0))
    offsets = np.append(lead.offsets_U1[kept], lead.offsets_U1[-1]).astype(np.int32)
    items = pa.ListArray.from_arrays(pa.array(offsets), pa.array(lead.items_M))
    return pa.record_batch([pa.array(block.user_ids_U[kept]), items], schema=schema)


class HistoryBlocks:
    """A file of `write_histories`, mapped into memory.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | Path):
        import pyarrow as pa

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing; write it with write_histories first")
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))

    def __len__(self) -> int:
        return self._reader.num_record_batches

    def block(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User ids, items and offsets (as in `Sequences`) of one block: views of the mapped file, nothing is copied."""
        batch = self._reader.get_batch(index)
        lists = batch.column(1)
        return batch.column(0).to_numpy(), lists.values.to_numpy(), lists.offsets.to_numpy()


def example_batches(
    blocks: HistoryBlocks,
    batch_size: int,
    rng: np.random.Generator,
    targets_per_user: int = 0,
    short: int = 50,
    recent: int = 0,
) -> Iterator[Prefixes]:
    """One epoch of training examples in batches of like length, each with its target behind it.

    Every event after a user's first is a target once; with `recent` only the last so many. With `targets_per_user` that
    number of them, drawn anew each epoch, the last one always among them. Blocks come in random order and `WINDOW` of
    them are shuffled together: an example is never further than that from where it lies in the file, and memory does
    not grow with the data set.
    """
    for group in np.split(rng.permutation(len(blocks)), np.arange(WINDOW, len(blocks), WINDOW)):
        window = _window([blocks.block(index) for index in group], rng, targets_per_user, recent)
        # A little noise in the length mixes neighbours; equal lengths would otherwise keep the order of users.
        order = np.argsort(np.minimum(window.length_B, short) + rng.random(len(window)), kind="stable")
        batches = np.split(order, np.arange(batch_size, len(order), batch_size))
        for index in rng.permutation(len(batches)):
            yield window.subset(batches[index])


def _window(
    parts: list[tuple[np.ndarray, ...]], rng: np.random.Generator, targets_per_user: int, recent: int
) -> Prefixes:
    items_M = np.concatenate([items for _, items, _ in parts])
    shift = np.cumsum([0] + [len(items) for _, items, _ in parts[:-1]])
    user_U = np.concatenate([users for users, _, _ in parts]).astype(np.int64)
    start_U = np.concatenate([offsets[:-1] + by for (_, _, offsets), by in zip(parts, shift, strict=True)])
    length_U = np.concatenate([np.diff(offsets) for _, _, offsets in parts]).astype(np.int64)
    # A target's place is its history's length: these many, the last one at length_U - 1.
    places_U = np.minimum(length_U - 1, recent) if recent else length_U - 1
    if not targets_per_user:
        row_E = np.repeat(np.arange(len(user_U)), places_U)
        back_E = np.arange(len(row_E)) - (np.cumsum(places_U) - places_U)[row_E]
    else:
        row_E = np.repeat(np.arange(len(user_U)), targets_per_user)
        back_E = (rng.random(len(row_E)) * places_U[row_E]).astype(np.int64)
        back_E[::targets_per_user] = 0
        # A short user would give one target many times.
        wide = int(places_U.max())
        row_E, back_E = np.divmod(np.unique(row_E * wide + back_E), wide)
    return Prefixes(items_M, start_U[row_E].astype(np.int64), length_U[row_E] - 1 - back_E, user_U[row_E])
