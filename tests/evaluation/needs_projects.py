"""A small city with patterns written from what was planted, and untrained models that speak its needs and services."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
_NEEDS = Path(__file__).parents[1] / "needs" / "need_worlds.py"
write_patterns = runpy.run_path(str(_NEEDS), run_name="need_worlds")["write_patterns"]


def write_world(folder: Path, seed: int = 0, city: str = "port", users: int = 24) -> Path:
    """A data set of a synthetic city."""
    folder.mkdir(parents=True)
    write_files(folder, make_world(WorldOptions(users=users, visits=14, venues=VENUES, seed=seed, city=city)))
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
