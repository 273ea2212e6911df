"""Which event of a user's sequence plays which role.

`roles` is for whatever feeds a planner, reasoner or ranker, so that nothing is graded on what it was fitted on. In
a sequence of n items the test target is item n-1, the validation target n-2, the routing targets are the
`routing_items` items before that, and the fitting fold is what comes before them. Users are hashed in two halves:
half A's routing targets fit the ranker and mine hard samples, half B's give planner labels and prompts.

`leave_one_out` (fit on 0..n-3, validation n-2, test n-1) is for tables beside published figures.

`last_event` is for logs where a user's last event alone is of the kind that is asked for, as a click on an ad after a
history of other clicks: it is half A's validation target and half B's test target, and everything before it is fitted.

`folds` is for visits (`recllm.data.checkins`), whose folds are written down event by event: they follow the calendar,
and leave out events that nobody asks for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from recllm.data.interactions import Sequences

SplitKind = Literal["roles", "leave_one_out", "last_event"]
KINDS = ("roles", "leave_one_out", "last_event")
DATASET_FILE = "dataset.json"
# A user with fewer events goes whole to the fitting fold.
MIN_ROLES_LENGTH = 5
MIN_LEAVE_ONE_OUT_LENGTH = 3
MIN_LAST_EVENT_LENGTH = 2
MIN_FIT_LENGTH = 2


@dataclass(frozen=True)
class Examples:
    """Prediction examples: item `position_E[e]` of row `user_E[e]` is the target, all items before it the history.

    Both arrays are int64; `user_E` counts rows of `sequences`, which is not the user id where ids have gaps.
    """

    user_E: np.ndarray
    position_E: np.ndarray
    sequences: Sequences

    def __len__(self) -> int:
        return len(self.user_E)

    @property
    def targets_E(self) -> np.ndarray:
        """Target items, int32."""
        return self.sequences.items_M[self.sequences.offsets_U1[self.user_E] + self.position_E]

    @property
    def user_ids_E(self) -> np.ndarray:
        """Ids of the users, int32, which are not `user_E` where ids have gaps."""
        return self.sequences.user_ids_U[self.user_E]

    @property
    def lengths_E(self) -> np.ndarray:
        """Number of items in each full history, int64."""
        return self.position_E

    def history(self, e: int) -> np.ndarray:
        """All items before the target of example `e`, oldest first, an int32 view."""
        return self.sequences.items(self.user_E[e])[: self.position_E[e]]

    def seen(self, e: int) -> set[int]:
        """The set of items in the full history of example `e`."""
        return set(self.history(e).tolist())

    def padded_histories(self, max_len: int) -> np.ndarray:
        """The last `max_len` items of every history: int64 of shape (E, max_len), right-aligned.

        Items are shifted by one so that 0 is padding: the value is item + 1.

        Raises:
            ValueError: `max_len` is below 1.
        """
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        back_T = np.arange(max_len, 0, -1)
        rows_ET = (self.sequences.offsets_U1[self.user_E] + self.position_E)[:, None] - back_T
        real_ET = back_T <= self.position_E[:, None]
        items_ET = self.sequences.items_M[np.where(real_ET, rows_ET, 0)].astype(np.int64)
        return np.where(real_ET, items_ET + 1, 0)

    def subset(self, index: np.ndarray) -> Examples:
        """The examples that an index or boolean array picks, in its order."""
        return Examples(self.user_E[index], self.position_E[index], self.sequences)


def _fitting(split: Split) -> Sequences:
    """The fitting fold: every user's leading events, and nothing that is ever a target."""
    return split.sequences.leading(split.fit_length_U)


def _split_users(split: Split) -> np.ndarray:
    """Rows of the users who have targets."""
    return np.flatnonzero(split.fit_length_U < split.sequences.lengths_U)


@dataclass(frozen=True)
class RolesSplit:
    """Fit, routing, validation and test; see the module. `fit_length_U` counts each user's leading fitting events.

    `half_U` is 0 for half A and 1 for half B.
    """

    sequences: Sequences
    fit_length_U: np.ndarray
    half_U: np.ndarray
    routing_items: int
    seed: int = 0
    kind: ClassVar[str] = "roles"

    fitting = cached_property(_fitting)
    _split_users_U = property(_split_users)

    def routing(self, half: Literal["A", "B"]) -> Examples:
        """Routing targets of one half of the users, by user and then position.

        Raises:
            ValueError: `half` is neither "A" nor "B".
        """
        if half not in ("A", "B"):
            raise ValueError(f'half must be "A" or "B", got {half!r}')
        users = self._split_users_U
        users = users[self.half_U[users] == "AB".index(half)]
        user_E = np.repeat(users, self.routing_items)
        step_E = np.tile(np.arange(self.routing_items), len(users))
        return Examples(user_E, self.fit_length_U[user_E] + step_E, self.sequences)

    @property
    def validation(self) -> Examples:
        """One example per split user, the target being the last but one item."""
        return _from_end(self.sequences, self._split_users_U, 2)

    @property
    def test(self) -> Examples:
        """One example per split user, the target being the last item."""
        return _from_end(self.sequences, self._split_users_U, 1)


@dataclass(frozen=True)
class LeaveOneOutSplit:
    """Fit on 0..n-3, validation n-2, test n-1. `fit_length_U` counts each user's leading fitting events."""

    sequences: Sequences
    fit_length_U: np.ndarray
    kind: ClassVar[str] = "leave_one_out"

    fitting = cached_property(_fitting)
    _split_users_U = property(_split_users)

    @property
    def validation(self) -> Examples:
        """One example per split user, the target being the last but one item."""
        return _from_end(self.sequences, self._split_users_U, 2)

    @property
    def test(self) -> Examples:
        """One example per split user, the target being the last item."""
        return _from_end(self.sequences, self._split_users_U, 1)


@dataclass(frozen=True)
class LastEventSplit:
    """Fit on 0..n-2; n-1 is the validation target of half A (`half_U` 0) and the test target of half B."""

    sequences: Sequences
    fit_length_U: np.ndarray
    half_U: np.ndarray
    kind: ClassVar[str] = "last_event"

    fitting = cached_property(_fitting)
    _split_users_U = property(_split_users)

    def _last_of(self, half: int) -> Examples:
        users = self._split_users_U
        return _from_end(self.sequences, users[self.half_U[users] == half], 1)

    @property
    def validation(self) -> Examples:
        """One example per split user of half A, the target being the last item."""
        return self._last_of(0)

    @property
    def test(self) -> Examples:
        """One example per split user of half B, the target being the last item."""
        return self._last_of(1)


@dataclass(frozen=True)
class FoldsSplit:
    """Folds of visits: a user has any number of targets, or none. `fit_length_U` counts leading fitting events."""

    sequences: Sequences
    fit_length_U: np.ndarray
    validation: Examples
    test: Examples
    kind: ClassVar[str] = "folds"

    fitting = cached_property(_fitting)


Split = RolesSplit | LeaveOneOutSplit | LastEventSplit | FoldsSplit


def sampled(examples: Examples, users: int | None, seed: int = 0) -> Examples:
    """At most `users` of the examples, in their order; the same ones for the same seed."""
    if users is None or users >= len(examples):
        return examples
    if users < 1:
        raise ValueError(f"users must be at least 1, got {users}")
    return examples.subset(np.sort(np.random.default_rng(seed).choice(len(examples), users, replace=False)))


def _from_end(sequences: Sequences, users: np.ndarray, back: int) -> Examples:
    return Examples(users, sequences.lengths_U[users] - back, sequences)


def user_halves(user_ids_U: np.ndarray, seed: int = 0) -> np.ndarray:
    """0 (half A) or 1 (half B) per user id, int8: a bit of blake2b over seed and id, the same on every machine."""
    return (_hashes(user_ids_U, seed)[:, 0] & 1).astype(np.int8)


def _hashes(user_ids_U: np.ndarray, seed: int) -> np.ndarray:
    """Eight bytes of blake2b over seed and user id, uint8 of shape (U, 8)."""
    digests = [hashlib.blake2b(f"{seed}:{user}".encode(), digest_size=8).digest() for user in user_ids_U.tolist()]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 8)


def make_split(
    sequences: Sequences, kind: SplitKind, routing_items: int = 1, seed: int = 0, role_share: float = 1.0
) -> Split:
    """Split every user's sequence by `kind`.

    Under `roles` a user with fewer than 5 events, or with fewer than 2 left before its routing targets, goes whole
    to the fitting fold; under `leave_one_out` one with fewer than 3, under `last_event` than 2. `routing_items` matters
    to `roles` only, `seed` (which user falls in which half) to it and `last_event`. Under `roles`, targets are only of
    a `role_share` (0 to 1) of the users, by a hash of seed and id, for tools that are too slow to answer for all; of
    the others the whole sequence is fitted on.

    Raises:
        ValueError: an unknown kind, `routing_items` below 1, or a `role_share` outside 0 to 1 or with another kind.
    """
    if not 0 < role_share <= 1 or (role_share < 1 and kind != "roles"):
        raise ValueError(f"role_share must be in (0, 1], below 1 with split roles only; got {role_share} with {kind}")
    lengths_U = sequences.lengths_U
    if kind == "leave_one_out":
        fit_length_U = np.where(lengths_U < MIN_LEAVE_ONE_OUT_LENGTH, lengths_U, lengths_U - 2)
        return LeaveOneOutSplit(sequences, fit_length_U)
    if kind == "last_event":
        fit_length_U = np.where(lengths_U < MIN_LAST_EVENT_LENGTH, lengths_U, lengths_U - 1)
        return LastEventSplit(sequences, fit_length_U, user_halves(sequences.user_ids_U, seed))
    if kind != "roles":
        raise ValueError(f"unknown split {kind!r}; choose one of {', '.join(KINDS)}")
    if routing_items < 1:
        raise ValueError(f"routing_items must be at least 1, got {routing_items}")
    held_out = routing_items + 2
    shortest = max(MIN_ROLES_LENGTH, held_out + MIN_FIT_LENGTH)
    long_U = lengths_U >= shortest
    if role_share < 1:
        long_U &= _hashes(sequences.user_ids_U, seed)[:, 1:5].copy().view("<u4")[:, 0] < role_share * 2**32
    fit_length_U = np.where(long_U, lengths_U - held_out, lengths_U)
    return RolesSplit(sequences, fit_length_U, user_halves(sequences.user_ids_U, seed), routing_items, seed)


def load_split(dataset_dir: str | Path) -> Split:
    """The split that the data set's `dataset.json` records, so that every stage works on the same one.

    Raises:
        FileNotFoundError: a file of the data set is missing.
        ValueError: `dataset.json` is torn or lacks a key.
    """
    path = Path(dataset_dir) / DATASET_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make the data set with a data_prep script first")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        kind = known["split"]
        asked = () if kind == "folds" else (known["routing_items"], known["split_seed"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not record a split ({error}); run the data_prep script again") from error
    if kind == "folds":
        from recllm.data.checkins import Visits, folds_split  # it builds on this module

        return folds_split(Visits.load(dataset_dir))
    return make_split(Sequences.load(dataset_dir), kind, *asked, known.get("role_share", 1.0))
