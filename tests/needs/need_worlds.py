"""A folder of patterns for a synthetic city, made from what was planted: the contract of data_prep/need_patterns.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.needs.patterns import Patterns


def write_patterns(folder: Path, dataset: Path) -> Path:
    """One pattern a (planted need, category) of the fold "fit"; accidental visits belong to none and are dropped."""
    visits, catalog = Visits.load(dataset), Catalog.load(dataset)
    told = json.loads((dataset / "dataset.json").read_text())["needs"]
    leaves = [names[-1] for names in catalog.categories]
    frame = visits.frame.with_columns(
        category=pl.Series([leaves[item] for item in visits.frame["item_id"]]), planted=pl.col("need") != ""
    )
    key = ["need", "category"]
    fitted = frame.filter((pl.col("fold") == "fit") & pl.col("planted"))
    patterns = fitted.group_by(key, maintain_order=True).agg(
        pl.col("hour").mean(),
        weekend=(pl.col("weekday") >= 5).mean().cast(pl.Float32),
        support=pl.len().cast(pl.Int64),
        users=pl.col("user_id").n_unique().cast(pl.Int64),
    )
    patterns = patterns.with_columns(pattern_id=pl.int_range(pl.len(), dtype=pl.Int32))
    events = frame.select(*key).join(
        patterns.select(*key, "pattern_id", "support"), on=key, how="left", maintain_order="left"
    )
    known = events["pattern_id"].is_not_null().to_numpy()
    need = np.where(known, np.array([told.get(name, "") for name in events["need"]]), "")
    noise = np.random.default_rng(0).random(len(known))
    columns = {
        "pattern_id": events["pattern_id"].fill_null(-1),
        "need": pl.Series(need.tolist(), dtype=pl.String),
        "need_type": pl.Series(np.where(known, events["need"].to_numpy(), "").tolist(), dtype=pl.String),
        "typicality": np.log1p(events["support"].fill_null(0).to_numpy()) + noise,
        "kept": known,
    }
    unknown = {"scene": pl.lit(""), "weather": pl.lit(""), "confidence": pl.lit(1.0), "lift": pl.lit(1.0)}
    need = pl.col("need").replace_strict(told, return_dtype=pl.String)
    found = Patterns(patterns.with_columns(need=need, need_type="need", **unknown), pl.DataFrame(columns), {})
    found.save(folder, visits)
    return folder
