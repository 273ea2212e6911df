"""Reading a data set's own tables: the columns that a room relies on are there, of their type, and without holes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl


def read_frame(path: Path, schema: Mapping[str, pl.DataType], nullable: Collection[str] = ()) -> pl.DataFrame:
    """Read a parquet file whose columns of `schema` have their types and, those of `nullable` aside, no nulls.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a column is missing, of another type, or has nulls.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make the data set with a data_prep script first")
    frame = pl.read_parquet(path)
    for name, dtype in schema.items():
        if (found := frame.schema.get(name)) != dtype:
            raise ValueError(f"{path}: column {name} must be {dtype}, is {found}; run the data_prep script again")
        if name not in nullable and frame[name].null_count():
            raise ValueError(f"{path}: column {name} has nulls; run the data_prep script again")
    return frame
