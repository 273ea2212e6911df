"""Small worlds for recommenders that speak SIDs, made in code: a data set, a table, a tiny Qwen3 with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import torch

import recllm.training
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import extend, save_extended
from recllm.training.tiny_lm import build_model, train_tokenizer

# Two steps of any of the GRPO trainers that draw sids, for their tests.
GRPO_SETTINGS = {
    **{"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 2, "learning_rate": 3e-3, "use_cpu": True},
    **{"bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
    "disable_tqdm": True,
}

ITEMS, USERS = 30, 24
SIZES = (3, 4, 5)


def make_table(shared: bool = False, items: int = ITEMS, seed: int = 0) -> SidTable:
    """Random SIDs; with `shared` the items 3 j, 3 j + 1 and 3 j + 2 have one SID for j < 4."""
    cells = np.random.default_rng(seed).permutation(int(np.prod(SIZES)))[:items]
    codes_NL = np.stack(np.unravel_index(cells, SIZES), axis=1)
    if shared:
        codes_NL[:12] = codes_NL[:12:3].repeat(3, axis=0)
    return SidTable(codes_NL, SIZES, **({"shared": True} if shared else {}))


def histories(items: int = ITEMS, users: int = USERS, seed: int = 0) -> list[list[int]]:
    """Walks on a ring, steps of 1 or 2: what comes next can be learnt. Lengths 6 to 11."""
    rng = np.random.default_rng(seed)
    return [
        ((rng.integers(items) + np.cumsum(rng.integers(1, 3, size=6 + user % 6))) % items).tolist()
        for user in range(users)
    ]


def titles(items: int = ITEMS) -> list[str]:
    """Distinct but for the last two, which are one title."""
    return [f"Film {chr(97 + item % 26)}{item}" for item in range(items - 2)] + ["Twins"] * 2


def write_dataset(folder: Path, walks: list[list[int]] | None = None, items: int = ITEMS, split: str = "leave_one_out"):
    """A data set folder of these histories."""
    walks = histories(items) if walks is None else walks
    folder.mkdir(parents=True, exist_ok=True)
    names = ["Drama", "Comedy", "War"]
    catalog = {"item_id": range(items), "title": titles(items), "categories": [[names[i % 3]] for i in range(items)]}
    schema = {"item_id": pl.Int32, "title": pl.String, "categories": pl.List(pl.String)}
    pl.DataFrame(catalog, schema=schema).write_parquet(folder / "catalog.parquet")
    rows = [(user, item, place) for user, walk in enumerate(walks) for place, item in enumerate(walk)]
    schema = {"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
    known = {"name": "ring", "split": split, "routing_items": 1, "split_seed": 0}
    (folder / "dataset.json").write_text(json.dumps(known))
    return folder


def make_model(table: SidTable, template: str = "lean", seed: int = 0, width: int = 16):
    """(model, tokenizer): a random Qwen3 that speaks the table, with weights wide enough to tell items apart."""
    tokenizer = train_tokenizer(["The user has bought the following items, oldest first. Next item after: "], 280)
    path = Path(recllm.training.__file__).with_name(f"{template}_chat.jinja")
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    model = build_model(tokenizer, hidden_size=width, num_layers=2, num_heads=2, max_length=512, seed=seed)
    extend(model, tokenizer, table, init="noise", seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.25)
    return model.eval(), tokenizer


def save_model(folder: Path, table: SidTable, **options) -> Path:
    """A delivered model folder."""
    model, tokenizer = make_model(table, **options)
    save_extended(folder, model, tokenizer, table)
    return folder
