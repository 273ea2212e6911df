"""Recommendations for a history that a person types: titles to items, items to a ranked table.

Titles come from outside on both sides. What was typed is neutralised as the catalogue was, nothing of it reaches a
prompt (prompts hold SIDs only), and what is printed is plain text.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.data.catalog import FILE as CATALOG_FILE
from recllm.data.catalog import Catalog
from recllm.data.splits import load_split
from recllm.data.text import neutralise
from recllm.provenance import fingerprint, load_run, several

if TYPE_CHECKING:
    from rich.table import Table

SEPARATOR = ";"
_ITEM = re.compile(r"#([0-9]{1,9})")
_NEAREST = 3
# Data sets stand few stages before a model; a longer chain is a circle.
STAGES = 12


@dataclass(frozen=True)
class Recommendation:
    """One row of the answer. `score` is the probability of the item's sid among the codes that each level uses.

    Items that share a sid have it in common.
    """

    place: int
    item: int
    title: str
    categories: list[str]
    sid: str
    score: float


@dataclass(frozen=True)
class Answer:
    """The items that the history was read as (oldest first), what there is to say about them, and what comes next."""

    history: list[int]
    notes: list[str]
    rows: list[Recommendation]

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def recommend_titles(
    model: str | Path, history: str, dataset: str | Path | None = None, k: int = 10, beams: int = 50
) -> Answer:
    """The `k` best items after a history of titles, as an `Answer`; items of the history are left out.

    `history` holds titles or `#123` item ids, oldest first, separated by semicolons. The data set is `dataset`, or the
    one that the model's `run.json` leads to.

    Raises:
        ValueError: a title that the catalogue lacks (the nearest ones are named), a data set that cannot be found or
            does not belong to the model, or `k` below 1.
    """
    if k < 1:
        raise ValueError(f"-k must be at least 1, got {k}")
    folder = _model_folder(model)
    dataset = find_dataset(folder) if dataset is None else Path(dataset)
    catalog, split = Catalog.load(dataset), load_split(dataset)
    events_N = np.bincount(split.fitting.items_M, minlength=len(catalog))
    items, notes = find_items(history, catalog, events_N)

    from recllm.evaluation.recommender import Recommender
    from recllm.sid.table import SidTable
    from recllm.sid.vocabulary import TABLE_FOLDER

    table = SidTable.load(folder / TABLE_FOLDER)
    if len(table) != len(catalog):
        raise ValueError(
            f"{model} knows {len(table)} items, the catalogue of {dataset} has {len(catalog)}: give the data set that "
            "the model was trained on with --dataset"
        )
    recommender = Recommender.load(folder, table, events_N)
    seen = np.array(items)
    items_1K, scores_1K = recommender.recommend([seen], k, max(beams, k), [seen])
    rows = []
    for item, score in zip(items_1K[0].tolist(), scores_1K[0].tolist(), strict=True):
        if item >= 0:
            title, names = neutralise(catalog.titles[item]), [neutralise(name) for name in catalog.categories[item]]
            rows.append(Recommendation(len(rows) + 1, item, title, names, table.text(item), math.exp(score)))
    return Answer(items, notes, rows)


def _model_folder(model: str | Path) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from recllm.sid.vocabulary import locate_model

    return locate_model(str(model))


def find_items(history: str, catalog: Catalog, events_N: np.ndarray) -> tuple[list[int], list[str]]:
    """Item ids of the titles (and `#123` ids) in `history`, and a note for each title that several items have.

    Case does not matter. A title that holds a semicolon is found, too. Of several items the one with the most events
    is taken.

    Raises:
        ValueError: nothing was given, a title that no item has, or an id outside the catalogue.
    """
    parts = [part.strip() for part in history.split(SEPARATOR)]
    known = _items_of(catalog)
    items, notes, at = [], [], 0
    while at < len(parts):
        if not parts[at]:
            at += 1
            continue
        if match := _ITEM.fullmatch(parts[at]):
            items.append(_checked(int(match[1]), catalog))
            at += 1
            continue
        # The longest run of parts that is a title, so that a semicolon inside one does no harm.
        ends = range(len(parts), at, -1)
        end = next((end for end in ends if _key(f"{SEPARATOR} ".join(parts[at:end])) in known), None)
        if end is None:
            raise ValueError(_unknown(parts[at], known, catalog))
        item, note = _most_popular(known[_key(f"{SEPARATOR} ".join(parts[at:end]))], catalog, events_N)
        items.append(item)
        notes += [note] if note else []
        at = end
    if not items:
        raise ValueError('the history is empty: give titles, oldest first, as in --history "Toy Story; Babe"')
    return items, notes


def _items_of(catalog: Catalog) -> dict[str, list[int]]:
    known: dict[str, list[int]] = {}
    for item, title in enumerate(catalog.titles):
        if key := _key(title):
            known.setdefault(key, []).append(item)
    return known


def _key(title: str) -> str:
    return re.sub(rf"\s*{SEPARATOR}\s*", f"{SEPARATOR} ", neutralise(title)).casefold().strip()


def _checked(item: int, catalog: Catalog) -> int:
    if item >= len(catalog):
        raise ValueError(f"#{item} is no item: the catalogue holds #0 to #{len(catalog) - 1}")
    return item


def _most_popular(items: list[int], catalog: Catalog, events_N: np.ndarray) -> tuple[int, str | None]:
    best = max(items, key=lambda item: (events_N[item], -item))
    if len(items) == 1:
        return best, None
    others = ", ".join(f"#{item}" for item in items if item != best)
    title = neutralise(catalog.titles[best])
    return best, f"{len(items)} items are called {title}; took #{best}, the most popular, and not {others}"


def _unknown(title: str, known: Mapping[str, list[int]], catalog: Catalog) -> str:
    key = _key(title)
    near = difflib.get_close_matches(key, known, n=_NEAREST, cutoff=0.4)
    near += [name for name in known if key in name and name not in near][: _NEAREST - len(near)]
    named = ", ".join(f"{neutralise(catalog.titles[known[name][0]])} (#{known[name][0]})" for name in near)
    hint = f"the nearest are {named}" if named else "none is near"
    return f"no item is called {neutralise(title)!r}; {hint}. Titles are separated by semicolons; #123 is an item id"


def find_dataset(folder: str | Path) -> Path:
    """The data set that a run's folder was made from: the inputs in its `run.json`, and theirs, until one is found.

    A path is looked for from here and from the folders above the run, and counts where its content is the one that the
    run read.

    Raises:
        ValueError: the chain ends before a data set.
    """
    waiting, visited = [Path(folder)], set()
    for _ in range(STAGES):
        upstream = [path for run in waiting for path in inputs_of(run) if path.resolve() not in visited]
        for path in upstream:
            if (path / CATALOG_FILE).is_file():
                return path
        visited |= {path.resolve() for path in upstream}
        waiting = upstream
    raise ValueError(f"{folder} does not lead to the data set it was trained on: name its folder with --dataset")


def inputs_of(folder: Path) -> list[Path]:
    """Folders that a run read, as far as they are still what they were."""
    # An input may be a subfolder of a run's output.
    known = load_run(folder) or load_run(folder.parent) or {}
    found = []
    for written, mark in _written(known):
        places = [written] if written.is_absolute() else [Path(), *folder.resolve().parents]
        candidates = (place / written for place in places)
        found += [path for path in candidates if written.name and path.is_dir() and fingerprint(path) == mark][:1]
    return found


def _written(known: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Each input folder of a run record as it was written, with its fingerprint."""
    for name, marks in known.get("inputs", {}).items():
        written = several(known["config"].get(name, ""))
        yield from zip((Path(str(path)) for path in written), several(marks), strict=False)


def answer_table(answer: Answer) -> Table:
    """Place, title, categories, sid and probability."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "title", "categories", "sid", title="what comes next", title_justify="left")
    table.add_column("probability", justify="right")
    for row in answer.rows:
        # Text, not markup: a title is not to colour the terminal.
        cells = (str(row.place), row.title or f"#{row.item}", ", ".join(row.categories), row.sid, f"{row.score:.3g}")
        table.add_row(*map(Text, cells))
    return table


def print_answer(answer: Answer) -> None:
    """The table, with the notes above it on stderr."""
    from rich.console import Console

    errors = Console(stderr=True, soft_wrap=True)
    for note in answer.notes:
        errors.print(f"note: {note}", markup=False, highlight=False)
    Console(width=None if Console().is_terminal else 150).print(answer_table(answer))
