"""Which item has which semantic id, and how a semantic id is written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from recllm.provenance import read_json, write_json
from recllm.sid.quantizer import LEVEL_LETTERS, row_ids

TABLE_FILE = "sid_table.json"
CODES_FILE = "sid_codes.safetensors"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class SidTable:
    """Each item's semantic id (sid): a tuple of codes, one a level, that no other item has unless `shared`.

    `codes_NL` is int32 (items, levels), row i the sid of item i; `level_sizes` the number of codes of each level
    (1 to 8 levels). The text of a sid names the level by letter: `<a_12><b_7><c_3>`. `shared` allows several items
    behind one sid, as in published indexes (MiniOneRec's): `items` reads those, `item` refuses to choose.

    Raises:
        ValueError: two items share a sid of a table that is not `shared` (both are named), a code outside its level,
            or a wrong shape.
    """

    codes_NL: np.ndarray
    level_sizes: tuple[int, ...]
    shared: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        sizes = tuple(int(size) for size in self.level_sizes)
        codes_NL = np.array(self.codes_NL)
        if not 1 <= len(sizes) <= len(LEVEL_LETTERS) or min(sizes) < 1:
            raise ValueError(f"a SID table has 1 to {len(LEVEL_LETTERS)} levels of at least one code, got {sizes}")
        if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes) or not np.issubdtype(codes_NL.dtype, np.integer):
            raise ValueError(
                f"codes must be integers of shape (items, {len(sizes)}), got {codes_NL.dtype} {codes_NL.shape}"
            )
        outside_NL = (codes_NL < 0) | (codes_NL >= np.array(sizes))
        if outside_NL.any():
            item, level = np.argwhere(outside_NL)[0]
            raise ValueError(
                f"item {item} has code {codes_NL[item, level]} on level {LEVEL_LETTERS[level]}, which holds "
                f"0 to {sizes[level] - 1}"
            )
        codes_NL = np.ascontiguousarray(codes_NL, dtype=np.int32)
        if not self.shared:
            _refuse_shared(codes_NL)
        codes_NL.setflags(write=False)
        object.__setattr__(self, "codes_NL", codes_NL)
        object.__setattr__(self, "level_sizes", sizes)

    def __len__(self) -> int:
        return len(self.codes_NL)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SidTable) and self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    @property
    def levels(self) -> int:
        """Number of codes in a sid."""
        return len(self.level_sizes)

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of the level sizes and all codes: what a checkpoint remembers of the table it was built on.

        A shared table's differs from that of an equal one that is not shared.
        """
        kind = " shared" if self.shared else ""
        digest = hashlib.sha256(f"sid-table-{_FORMAT} {self.level_sizes} {len(self)}{kind}\n".encode())
        digest.update(self.codes_NL.astype("<i4").tobytes())
        return digest.hexdigest()

    def sid(self, item: int) -> tuple[int, ...]:
        """The code tuple of an item; raises IndexError for a number that is no item."""
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} is not in the SID table, which holds items 0 to {len(self) - 1}")
        return tuple(self.codes_NL[item].tolist())

    def item(self, sid: Sequence[int] | None) -> int | None:
        """The item behind a sid, or None where no item has it (None in, None out: `item(parse(text))` is safe).

        Raises:
            ValueError: the table is shared, where a sid does not name one item.
        """
        if self.shared:
            raise ValueError("items of this SID table may share a sid: ask `items` for all of those behind one")
        return next(iter(self.items(sid)), None)

    def items(self, sid: Sequence[int] | None) -> tuple[int, ...]:
        """The items behind a sid, rising; none where no item has it, one at most unless the table is shared."""
        return () if sid is None else self._items_of.get(tuple(sid), ())

    def text(self, item: int) -> str:
        """The sid text of an item, `<a_12><b_7><c_3>`; raises IndexError for a number that is no item."""
        return "".join(token_text(level, code) for level, code in enumerate(self.sid(item)))

    def tokens(self) -> list[str]:
        """Every sid token, used or not, in level order: `<a_0>`, `<a_1>`, ..., `<b_0>`, ..."""
        return [token_text(level, code) for level, size in enumerate(self.level_sizes) for code in range(size)]

    def parse(self, text: str) -> tuple[int, ...] | None:
        """The code tuple that `text` spells, or None where it is anything but exactly one sid of this table's shape.

        For text of unknown origin: never raises. A well-formed sid that no item has is returned; `item` tells.
        """
        match = self._pattern.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            return None
        sid = tuple(int(code) for code in match.groups())
        return sid if all(code < size for code, size in zip(sid, self.level_sizes, strict=True)) else None

    def save(self, folder: str | Path) -> None:
        """Write the codes (safetensors) and then the description (JSON) into `folder`."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"codes": self.codes_NL}, folder / CODES_FILE)
        description = {"format": _FORMAT, "items": len(self), "level_sizes": list(self.level_sizes), "hash": self.hash}
        # Only where true: files of tables that are not shared stay what they were.
        description |= {"shared": True} if self.shared else {}
        write_json(folder / TABLE_FILE, description)

    @classmethod
    def load(cls, folder: str | Path) -> SidTable:
        """Read a saved table; the sids and the hash are checked again.

        Raises:
            FileNotFoundError: the folder holds no SID table.
            ValueError: a damaged or altered file, or two items with one sid in a table that is not shared.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        for name in (TABLE_FILE, CODES_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: make the table with train_sid_tokenizer.py")
        known = read_json(folder / TABLE_FILE)
        sizes = known.get("level_sizes") if isinstance(known, dict) and known.get("format") == _FORMAT else None
        shared = known.get("shared", False) if sizes else False
        if not isinstance(sizes, list) or not all(type(size) is int for size in sizes) or type(shared) is not bool:
            raise ValueError(f"{folder / TABLE_FILE} is not a SID table of format {_FORMAT}; make it again")
        try:
            codes_NL = load_file(folder / CODES_FILE)["codes"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{folder / CODES_FILE} is damaged ({error}); make the table again") from error
        table = cls(codes_NL, tuple(sizes), shared=shared)
        if table.hash != known.get("hash"):
            raise ValueError(f"{folder}: codes and {TABLE_FILE} do not belong together (hash differs)")
        return table

    @cached_property
    def _items_of(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        behind: dict[tuple[int, ...], tuple[int, ...]] = {}
        for item, codes in enumerate(self.codes_NL.tolist()):
            behind[tuple(codes)] = (*behind.get(tuple(codes), ()), item)
        return behind

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # ASCII digits without leading zeros: one text for one sid. Nine digits keep int() cheap on hostile text.
        return re.compile("".join(rf"<{letter}_(0|[1-9][0-9]{{0,8}})>" for letter in LEVEL_LETTERS[: self.levels]))


def token_text(level: int, code: int) -> str:
    """How one code is written, `<b_7>` for code 7 of level 1."""
    return f"<{LEVEL_LETTERS[level]}_{code}>"


def _refuse_shared(codes_NL: np.ndarray) -> None:
    ids_N = row_ids(codes_NL)
    order_N = np.argsort(ids_N, kind="stable")
    twins = np.flatnonzero(np.diff(ids_N[order_N]) == 0)
    if len(twins):
        first, second = order_N[twins[0]], order_N[twins[0] + 1]
        raise ValueError(
            f"items {first} and {second} share the sid {tuple(codes_NL[first].tolist())}: apply a collision policy, "
            "or make the table with shared=True"
        )
