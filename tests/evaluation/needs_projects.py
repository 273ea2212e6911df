"""A small city with patterns written from what was planted, and untrained models that speak its needs and services."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import torch

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.evaluation.needs import load_bench
from recllm.needs.patterns import Patterns
from recllm.needs.vocabulary import NeedsVocabulary
from recllm.needs.worlds import WorldOptions, make_world
from recllm.needs.worlds import write_world as write_files
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER, extend
from recllm.training.chat import set_chat_template
from recllm.training.tiny_lm import build_model, train_tokenizer

VENUES = 120


def write_world(folder: Path, seed: int = 0, city: str = "port", users: int = 24) -> Path:
    """A data set of a synthetic city."""
    folder.mkdir(parents=True)
    write_files(folder, make_world(WorldOptions(users=users, visits=14, venues=VENUES, seed=seed, city=city)))
    return folder


def write_patterns(folder: Path, dataset: Path) -> Path:
    """Patterns whose derived needs are the planted needs' descriptions, one a need and category."""
    folder.mkdir(parents=True)
    visits, catalog = Visits.load(dataset), Catalog.load(dataset)
    described = json.loads((dataset / "dataset.json").read_text())["needs"]
    frame = visits.frame.with_columns(
        category=pl.Series([catalog.categories[item][-1] for item in visits.frame["item_id"]]),
        derived=pl.col("need").replace_strict(described, default=""),
        need_type=pl.col("need").str.replace(" / ", "/", literal=True),
    )
    fitted = frame.filter((pl.col("fold") == "fit") & (pl.col("need") != ""))
    by = ["derived", "need_type", "category"]
    patterns = fitted.group_by(by, maintain_order=True).agg(
        pl.col("hour").mean().cast(pl.Float32),
        (pl.col("weekday") >= 5).mean().cast(pl.Float32).alias("weekend"),
        pl.col("scene").mode().min(),
        pl.col("weather").mode().min(),
        pl.len().cast(pl.Int64).alias("support"),
        pl.col("user_id").n_unique().cast(pl.Int64).alias("users"),
    )
    patterns = patterns.with_row_index("pattern_id").with_columns(
        pl.col("pattern_id").cast(pl.Int32),
        confidence=pl.lit(0.5, dtype=pl.Float32),
        lift=pl.lit(2.0, dtype=pl.Float32),
    )
    events = frame.join(patterns.select("pattern_id", *by), on=by, how="left", maintain_order="left").select(
        pl.col("pattern_id").fill_null(-1),
        pl.col("derived").alias("need"),
        pl.col("need_type"),
        pl.lit(1.0, dtype=pl.Float32).alias("typicality"),
        (pl.col("derived") != "").alias("kept"),
    )
    patterns.rename({"derived": "need"}).write_parquet(folder / "patterns.parquet")
    events.write_parquet(folder / "events.parquet")
    types = sorted(patterns["need_type"].unique())
    (folder / "patterns.json").write_text(json.dumps({"version": 1, "options": {}, "cut": 0.0, "need_types": types}))
    return folder


def write_model(folder: Path, dataset: Path, patterns: Path, seed: int = 0) -> Path:
    """An untrained needs model with a SID table, as training delivers it."""
    visits, catalog = Visits.load(dataset), Catalog.load(dataset)
    known = Patterns.load(patterns, visits)
    vocabulary = NeedsVocabulary.of(visits, catalog, known)
    table = SidTable(np.array([(item % 11, item // 11) for item in range(len(catalog))]), (11, 11))
    words = [*known.frame["need"], *vocabulary.types, *vocabulary.categories, "Now: Friday 8h, rain. Recent: none."]
    shape = {"need": "", "need_type": "", "category": "", "services": ["", ""]}
    tokenizer = train_tokenizer([json.dumps(shape | {"need": word, "category": word}) for word in words], 600)
    set_chat_template(tokenizer, "lean")
    model = build_model(tokenizer, 32, 1, 2, 1024, seed=seed).eval()
    extend(model, tokenizer, table, init="noise")
    with torch.no_grad():
        # So that the answers differ from request to request.
        for weight in model.parameters():
            weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table.save(folder / TABLE_FOLDER)
    vocabulary.save(folder)
    return folder


def write_project(root: Path) -> SimpleNamespace:
    """A city with its patterns, a model, and the bench that grades it."""
    dataset = write_world(root / "dataset")
    patterns = write_patterns(root / "patterns", dataset)
    model = write_model(root / "model", dataset, patterns)
    bench = load_bench(dataset, patterns, "tfidf")
    return SimpleNamespace(dataset=dataset, patterns=patterns, model=model, bench=bench)
