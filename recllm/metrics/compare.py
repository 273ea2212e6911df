"""Ranks kept beside a run, so that two runs can be compared user by user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from recllm.metrics.bootstrap import Interval, paired_interval
from recllm.metrics.ranking import ndcg_at_k, recall_at_k

RANKS_FILE = "ranks.parquet"
_METRICS = {"ndcg": ndcg_at_k, "recall": recall_at_k}


def save_ranks(folder: str | Path, ranks: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write ranks.parquet: columns role, user_id and rank (from 0, inf where a target was not reached).

    `ranks` gives user ids and ranks of each role's examples, one example a user.
    """
    parts = [
        pl.DataFrame({"user_id": user_E, "rank": rank_E}, schema={"user_id": pl.Int64, "rank": pl.Float64}).select(
            pl.lit(role).alias("role"), "user_id", "rank"
        )
        for role, (user_E, rank_E) in ranks.items()
    ]
    pl.concat(parts).write_parquet(Path(folder) / RANKS_FILE)


def load_ranks(folder: str | Path, role: str) -> pl.DataFrame:
    """User ids and ranks of a role.

    Raises:
        FileNotFoundError: the run left no ranks.
        ValueError: it has none of that role.
    """
    path = Path(folder) / RANKS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run the recipe that made {folder} again, it keeps its ranks now")
    stored = pl.read_parquet(path)
    found = stored.filter(pl.col("role") == role).select("user_id", "rank")
    if not found.height:
        raise ValueError(f"{path} has no ranks of {role!r}; it has {', '.join(stored['role'].unique().sort())}")
    return found


def compare_ranks(
    folder: str | Path, base: str | Path, role: str = "test", ks: tuple[int, ...] = (5, 10)
) -> dict[str, tuple[float, Interval]]:
    """Metric -> the base's mean and the paired interval of `folder` minus `base`, over the same users.

    Raises:
        ValueError: the runs ranked other users, and as `load_ranks`.
    """
    one, other = (load_ranks(part, role).sort("user_id") for part in (folder, base))
    if not one["user_id"].equals(other["user_id"]):
        raise ValueError(
            f"{folder} ranked {one.height} users and {base} {other.height}, and they are not the same ones"
        )
    found = {}
    for k in ks:
        for name, metric in _METRICS.items():
            a_E, b_E = (metric(part["rank"].to_numpy(), k) for part in (one, other))
            found[f"{name}@{k}"] = float(b_E.mean()), paired_interval(a_E, b_E)
    return found
