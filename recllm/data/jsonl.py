"""Read JSON lines block by block into typed columns; a line that does not parse is set aside, not fatal.

Polars parses a block at once. Only a block that it refuses is read line by line, to name the lines at fault.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recllm.data.prepare import QUARANTINE_SCHEMA, quarantine
from recllm.data.tables import Table

BLOCK_BYTES = 1 << 25
# What hostile or broken input makes the two parsers raise: bad syntax, bad values, nesting beyond the stack.
_PARSE_ERRORS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def read_json_lines(
    path: Path, fields: Mapping[str, pl.DataType], literal: bool = False, block_bytes: int = BLOCK_BYTES
) -> Table:
    """Read a .json, .jsonl or gzipped file of one object per line; blank lines are skipped.

    `fields` names the keys to keep with their types, among String, Int64, List(String) and List(List(String)); an
    absent key is null, other keys are ignored. With `literal` a line that is no JSON may be a Python literal, as in
    the Amazon metadata of 2014; it is parsed by `ast.literal_eval`, one line at a time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no row, or a compressed one is damaged.
    """
    frames, bad, start = [], [], 1
    for block in _blocks(path, block_bytes):
        lines = block.split(b"\n")
        numbered = [(start + i, line) for i, line in enumerate(lines) if line.strip()]
        start += len(lines)
        frame = None if literal else _parse_at_once(block, numbered, fields)
        if frame is None:
            frame, wrong = _parse_by_line(path.name, numbered, fields, literal)
            bad.extend(wrong)
        frames.append(frame)
    rows = sum(frame.height for frame in frames) + len(bad)
    if rows == 0:
        raise ValueError(f"{path} holds no rows; it needs one JSON object per line")
    return Table(pl.concat(frames), quarantine(bad).cast(QUARANTINE_SCHEMA), rows, path.name)


def _blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Pieces of whole lines, each without its last line break."""
    rest = b""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while piece := stream.read(block_bytes):
                head, found, tail = piece.rpartition(b"\n")
                if found:
                    yield rest + head
                    rest = tail
                else:
                    rest += piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); download it again") from error
    if rest:
        yield rest


def _parse_at_once(
    block: bytes, numbered: list[tuple[int, bytes]], fields: Mapping[str, pl.DataType]
) -> pl.DataFrame | None:
    if not numbered:
        return pl.DataFrame(schema={"_line": pl.Int64, **fields})
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict(fields))
    except (pl.exceptions.ComputeError, pl.exceptions.SchemaError):
        return None
    if frame.height != len(numbered):
        return None  # some line held more or less than one object
    return frame.select(pl.Series("_line", [line for line, _ in numbered], dtype=pl.Int64), pl.all())


def _parse_by_line(
    file: str, numbered: list[tuple[int, bytes]], fields: Mapping[str, pl.DataType], literal: bool
) -> tuple[pl.DataFrame, list[tuple[str, int, str]]]:
    good, bad = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in Python literals
        for line, content in numbered:
            try:
                found = _load(content, literal)
                good.append((line, *(_as(dtype, found.get(name), name) for name, dtype in fields.items())))
            except _PARSE_ERRORS as error:
                bad.append((file, line, _reason(error)))
    return pl.DataFrame(good, schema={"_line": pl.Int64, **fields}, orient="row"), bad


def _load(content: bytes, literal: bool) -> dict[str, Any]:
    text = content.decode("utf-8").strip()
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        if not literal:
            raise
        found = ast.literal_eval(text)
    if not isinstance(found, dict):
        raise ValueError(f"not an object but a {type(found).__name__}")
    return found


def _as(dtype: pl.DataType, value: Any, name: str) -> Any:
    if value is None:
        return None
    if dtype == pl.String and isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate cannot be stored
        return value
    if dtype == pl.String and isinstance(value, int):
        return str(value)
    if dtype == pl.Int64 and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    if isinstance(dtype, pl.List) and isinstance(value, list):
        return [_as(dtype.inner, inner, name) for inner in value]
    raise ValueError(f"{name} is a {type(value).__name__}, wanted {dtype}")


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:160]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}".rstrip(": ")
