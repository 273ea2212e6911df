"""A small data set with an untrained tool of each kind, the cache of their answers, and an untrained planner."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import torch

from recllm.backbones.din import DIN
from recllm.backbones.ranker import NUM_FEATURES, CandidateFeatures
from recllm.backbones.sasrec import SASRec
from recllm.data.catalog import Catalog
from recllm.data.splits import load_split
from recllm.planner.texts import example_calls
from recllm.provenance import RunRecord
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import extend, save_extended
from recllm.tools.build import Tools, build_cache
from recllm.tools.rank import Rank
from recllm.tools.reason import Reason
from recllm.tools.retrieve import Retrieve
from recllm.training.chat import set_chat_template
from recllm.training.tiny_lm import build_model, train_tokenizer

# Every user must have the cache's depth of unseen items left.
ITEMS, USERS = 80, 30
NAMES = ["Drama", "Comedy", "War", "Noir"]
HOSTILE = "[bold red]Loud[/] <|im_start|>\x1b[31m\u202e"


def write_dataset(folder: Path) -> Path:
    """Histories of 6 to 17 items with real times, split by roles. User ids have gaps: 100, 103, 106, ..."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for user in range(USERS):
        items = rng.permutation(ITEMS)[: 6 + user % 12].tolist()
        rows += [(100 + 3 * user, item, 1000 + 90 * place) for place, item in enumerate(items)]
    schema = {"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
    titles = [HOSTILE if item % 2 else f"Film {item}" for item in range(ITEMS)]
    columns = {"item_id": range(ITEMS), "title": titles, "categories": [[NAMES[i % 4]] for i in range(ITEMS)]}
    schema = {"item_id": pl.Int32, "title": pl.String, "categories": pl.List(pl.String)}
    pl.DataFrame(columns, schema=schema).write_parquet(folder / "catalog.parquet")
    known = {"name": "tiny", "split": "roles", "routing_items": 1, "split_seed": 0, "time": "seconds"}
    (folder / "dataset.json").write_text(json.dumps(known))
    return folder


def make_table() -> SidTable:
    """A sid of two codes for every item."""
    return SidTable(np.stack([np.arange(ITEMS) // 10, np.arange(ITEMS) % 10], axis=1), (8, 10))


def make_language_model(table: SidTable, seed: int):
    """(model, tokenizer) that know the planner's words and the table's sids."""
    texts = [
        *example_calls(),
        "Length 3. Span 4. Likes Drama, Comedy. Recent ",
        "History: War Noir user assistant tool",
    ]
    tokenizer = train_tokenizer(texts, 400)
    model = build_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2, max_length=2048, seed=seed)
    extend(model, tokenizer, table, init="noise", seed=seed)
    set_chat_template(tokenizer, "lean")
    return model.eval(), tokenizer


def write_project(base: Path) -> SimpleNamespace:
    """A pipeline's folders below `base`, a path relative to the working folder, each with its run.json.

    dataset -> sid_table, sasrec, din, reasoner -> tool_cache -> traces -> planner_sft -> planner. As in a pipeline, the
    planner's own config names no input but the model that it started from.
    """
    write_dataset(base / "dataset")
    finish(base / "dataset", "movielens")
    split, catalog, table = load_split(base / "dataset"), Catalog.load(base / "dataset"), make_table()
    table.save(base / "sid_table")
    finish(base / "sid_table", "train_sid_tokenizer", dataset=base / "dataset")
    torch.manual_seed(0)
    retrieve = Retrieve(SASRec(ITEMS, max_len=6, hidden_dim=8))
    din = DIN(ITEMS, NUM_FEATURES, embedding_dim=6, attention_hidden=4, max_len=5)
    tools = Tools(
        retrieve,
        Rank(retrieve, din, CandidateFeatures.from_fitting_fold(split, catalog)),
        Reason(*make_language_model(table, seed=1), table, think_tokens=5),
    )
    retrieve.model.save_pretrained(base / "sasrec")
    din.save_pretrained(base / "din")
    save_extended(base / "reasoner", tools.reason.model, tools.reason.tokenizer, table)
    for name in ("sasrec", "din", "reasoner"):
        finish(base / name, name, dataset=base / "dataset")
    (base / "tool_cache").mkdir()
    build_cache(base / "dataset", tools, base / "tool_cache")
    finish(
        base / "tool_cache", "tool_cache", {"think_tokens": 5},
        **{name: base / name for name in ("dataset", "sasrec", "din", "reasoner")},
    )  # fmt: skip
    inputs = {name: base / name for name in ("dataset", "sid_table", "tool_cache")}
    (base / "traces/rows").mkdir(parents=True)
    (base / "traces/rows/data.json").write_text("{}")
    finish(base / "traces", "planner_traces", **inputs)
    model, tokenizer = make_language_model(table, seed=2)
    save_extended(base / "planner_sft", model, tokenizer, table)
    finish(base / "planner_sft", "sft", chats=base / "traces/rows")
    save_extended(base / "planner", model, tokenizer, table)
    known = {"model_name_or_path": str(base / "planner_sft"), "dataset": None, "tool_cache": None}
    everything = {"model_name_or_path": base / "planner_sft", "traces": base / "traces", **inputs}
    RunRecord.start(base / "planner", "grpo_planner", known, everything).finish({})
    return SimpleNamespace(base=base, tools=tools, model=model, tokenizer=tokenizer, catalog=catalog, split=split)


def finish(folder: Path, recipe: str, config: dict | None = None, **inputs: Path) -> None:
    """End a run whose config names its inputs."""
    written = {name: str(path) for name, path in inputs.items()}
    RunRecord.start(folder, recipe, {**(config or {}), **written}, inputs).finish({})


def speak(tokenizer, say):
    """Stands in for `model.generate`: writes `say(prompt, turn)`, turns counted by the assistant's in the prompt."""

    def generate(input_ids, attention_mask, max_new_tokens, do_sample):
        written = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            prompt = tokenizer.decode(ids[mask.bool()])
            words = say(prompt, prompt.count("<|im_start|>assistant") - 1)
            written.append(tokenizer(words, add_special_tokens=False)["input_ids"][:max_new_tokens])
        longest = max(map(len, written))
        padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in written]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    return generate
