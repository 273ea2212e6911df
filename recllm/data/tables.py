"""Read delimited text so that a malformed row is found, named and set aside instead of stopping the run."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recllm.data.prepare import QUARANTINE_SCHEMA

ARCHIVES = (".whl", ".zip")


@dataclass(frozen=True)
class Table:
    """Good rows as strings with `_line` (1-based line number), malformed ones as a quarantine, and the count of all."""

    frame: pl.DataFrame
    bad: pl.DataFrame
    rows: int
    file: str


def find(source: Path, suffix: str) -> tuple[str, bytes] | None:
    """Name and unpacked content of the one file in a folder, wheel or zip whose path ends in `suffix` (or + .gz).

    None where there is no such file.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: several files match, or a compressed file is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass a folder, a wheel or a zip that holds *{suffix}")
    endings = (suffix, f"{suffix}.gz")
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.is_file() and path.name.endswith(endings))
        _only_one(source, suffix, [path.name for path in found])
        return (found[0].name, _unpack(found[0].name, found[0].read_bytes())) if found else None
    if source.suffix not in ARCHIVES:
        raise ValueError(f"{source} is neither a folder nor one of {', '.join(ARCHIVES)}")
    try:
        with zipfile.ZipFile(source) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(endings))
            _only_one(source, suffix, names)
            return (Path(names[0]).name, _unpack(names[0], archive.read(names[0]))) if names else None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{source} is not a readable zip ({error}); download it again") from error


def _only_one(source: Path, suffix: str, names: list[str]) -> None:
    if len(names) > 1:
        raise ValueError(f"{source} holds several files ending in {suffix}: {', '.join(names)}; leave one")


def _unpack(name: str, content: bytes) -> bytes:
    if not name.endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file ({error}); download it again") from error


def read_table(file: str, content: bytes, separator: str = "\t", typed_header: bool = False) -> Table:
    """Split lines into the columns that the header names. Blank lines are skipped.

    A row with another number of fields than the header, or with bytes that are not UTF-8, is malformed.
    `typed_header` cuts `name:type` headers at the colon.

    Raises:
        ValueError: the file has no header or no row.
    """
    lines, undecodable = _lines(content)
    header, body = lines.head(1), lines.slice(1)
    if body.height == 0:
        raise ValueError(f"{file} holds no rows; it needs a header line and at least one row")
    names = header["_text"].item().split(separator)
    if typed_header:
        names = [name.split(":")[0] for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: the header names a column twice ({', '.join(names)}); rename one")
    body = body.with_columns(pl.col("_text").str.split(separator).alias("_fields"))
    reason = pl.when(pl.col("_fields").list.len() != len(names)).then(
        pl.format("{} fields, the header has {}", pl.col("_fields").list.len(), pl.lit(len(names)))
    )
    if undecodable:
        reason = pl.when(pl.col("_text").str.contains("�", literal=True)).then(pl.lit("not UTF-8")).otherwise(reason)
    body = body.with_columns(reason.alias("_reason"))
    good = body.filter(pl.col("_reason").is_null())
    columns = [pl.col("_fields").list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(names)]
    return Table(good.select("_line", *columns), as_quarantine(file, body), body.height, file)


def _lines(content: bytes) -> tuple[pl.DataFrame, bool]:
    try:
        text, undecodable = content.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, undecodable = content.decode("utf-8-sig", errors="replace"), True
    lines = pl.DataFrame({"_text": text.split("\n")}, schema={"_text": pl.String}).with_row_index("_line", offset=1)
    lines = lines.with_columns(pl.col("_line").cast(pl.Int64), pl.col("_text").str.strip_suffix("\r"))
    return lines.filter(pl.col("_text").str.strip_chars(" ") != ""), undecodable


def as_quarantine(file: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of `frame` that have a `_reason`, as a quarantine table."""
    bad = frame.filter(pl.col("_reason").is_not_null())
    named = bad.select(pl.lit(file).alias("file"), pl.col("_line").alias("row"), pl.col("_reason").alias("reason"))
    return named.cast(QUARANTINE_SCHEMA)


def set_aside(table: Table, reason: pl.Expr) -> Table:
    """Move the rows for which the string expression `reason` is not null to the quarantine."""
    frame = table.frame.with_columns(reason.alias("_reason"))
    bad = pl.concat([table.bad, as_quarantine(table.file, frame)]).sort("row", maintain_order=True)
    return Table(frame.filter(pl.col("_reason").is_null()).drop("_reason"), bad, table.rows, table.file)


def need(table: Table, *names: str) -> None:
    """Raises ValueError where the table lacks one of the columns."""
    missing = [name for name in names if name not in table.frame.columns]
    if missing:
        found = ", ".join(name for name in table.frame.columns if name != "_line")
        raise ValueError(f"{table.file} lacks the column(s) {', '.join(missing)}; its header has {found}")


def first_reason(*checks: tuple[pl.Expr, str]) -> pl.Expr:
    """The text of the first check whose boolean expression is true or null, else null."""
    reason = pl.lit(None, dtype=pl.String)
    for is_bad, text in reversed(checks):
        reason = pl.when(is_bad.fill_null(True)).then(pl.lit(text)).otherwise(reason)
    return reason
