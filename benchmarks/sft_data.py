"""How fast chat data sets are built: Arrow gathers against row-by-row pandas loops that make the same rows.

The peers do what public code does (MiniOneRec's SidSFTDataset and its kin, without their eval of CSV cells, which is
slower still): a data frame with one row a target and the history as a list in a cell, walked row by row, the prompt put
together by string joins, one dict a row. `iterrows` is what that code writes; `itertuples` is the fastest loop that is
still one. Both sides start from the events of the fitting fold and end in a `datasets.Dataset`, and every message must
be equal. The runs of both sides alternate, and the best of each counts.

Run: python benchmarks/sft_data.py --json sft_data.json
Data: Amazon Beauty 2014 under RECLLM_DATA; without it MovieLens-1M, or 100K, which are fetched.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recllm.assets import AssetError, fetch
from recllm.data import prompts
from recllm.data.amazon import DATA_VARIABLE, locate, read_amazon
from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.movielens import read_movielens
from recllm.data.prepare import Prepared, prepare
from recllm.data.splits import make_split
from recllm.data.tasks import RowOptions
from recllm.data.tasks_text import chat_rows

logger = logging.getLogger("sft_data")
BEAUTY = "amazon2014-beauty"
COLUMNS = ["user", "position", "item", "history"]
TASKS = ("sequence_to_sid", "titles_to_sid", "sid_to_title")


def load() -> tuple[str, Sequences, Catalog]:
    """Name, fitting fold and catalogue of the first data set within reach."""
    name, prepared = _beauty() or _movielens()
    events = (prepared.interactions[column].to_numpy() for column in ("user_id", "item_id", "timestamp"))
    fold = make_split(Sequences.from_arrays(*events), "leave_one_out").fitting
    return name, fold, Catalog(prepared.catalog)


def _beauty() -> tuple[str, Prepared] | None:
    if not os.environ.get(DATA_VARIABLE):
        logger.warning("RECLLM_DATA is not set: falling back from Amazon Beauty to MovieLens")
        return None
    return BEAUTY, prepare(read_amazon(locate(BEAUTY)), k=0, dedup="first", keep_unseen=True)


def _movielens() -> tuple[str, Prepared]:
    try:
        return "ml-1m", prepare(read_movielens(fetch("ml-1m"), "ml-1m"), k=5, dedup="first")
    except AssetError as error:
        logger.warning("MovieLens-1M is out of reach (%s): MovieLens-100K instead", error)
        return "ml-100k", prepare(read_movielens(fetch("ml-100k"), "ml-100k"), k=5, dedup="first")


def sid_texts(items: int) -> list[str]:
    """A sid text of three levels of 256 codes for each item; which codes does not matter here."""
    codes_NL = np.random.default_rng(0).integers(0, 256, (items, 3))
    return [f"<a_{a}><b_{b}><c_{c}>" for a, b, c in codes_NL.tolist()]


def frame_of_targets(fold: Sequences):
    """A pandas frame with one row a target: user, position, item and the list of the last 20 items before it."""
    import pandas as pd

    events = pd.DataFrame({"user": np.repeat(fold.user_ids_U, fold.lengths_U), "item": fold.items_M})
    rows = []
    for user, group in events.groupby("user", sort=False):
        items = group["item"].tolist()
        for place in range(1, len(items)):
            rows.append((user, place, items[place], items[max(0, place - prompts.RECOMMEND_HISTORY) : place]))
    return pd.DataFrame(rows, columns=COLUMNS)


def peer_chat(task: str, item: int, history: list[int] | None, titles: list[str], sids: list[str]) -> list[dict] | None:
    """One row's chat, or None where a text is missing."""
    if task == "sequence_to_sid":
        return [*prompts.recommend_prompt([sids[i] for i in history]), prompts.assistant(sids[item])]
    if task == "titles_to_sid":
        shown = [titles[i] for i in history if titles[i]]
        return [*prompts.titles_prompt(shown), prompts.assistant(sids[item])] if shown else None
    return [*prompts.title_of_prompt(sids[item]), prompts.assistant(titles[item])] if titles[item] else None


def peer_rows(task: str, walk: str, fold: Sequences, catalog: Catalog, sids: list[str]):
    """The chat data set by a loop over the rows of a pandas frame, with `iterrows` or `itertuples`."""
    import pandas as pd
    from datasets import Dataset

    titles, rows = catalog.titles, []
    if task == "sid_to_title":
        frame = pd.DataFrame([(None, None, item, None) for item in range(len(catalog))], columns=COLUMNS)
    else:
        frame = frame_of_targets(fold)
    if walk == "iterrows":
        cells = ([row[name] for name in COLUMNS] for _, row in frame.iterrows())
    else:
        cells = frame.itertuples(index=False, name=None)
    for user, position, item, history in cells:
        chat = peer_chat(task, item, history, titles, sids)
        if chat is not None:
            rows.append({"messages": chat, "task": task, "user": user, "position": position, "item": item})
    return Dataset.from_list(rows)


def timed(build: Callable):
    """What `build` returns, its wall seconds, and the processor seconds, which a busy machine disturbs less."""
    began, worked = time.perf_counter(), time.process_time()
    built = build()
    return built, time.perf_counter() - began, time.process_time() - worked


def by_content(rows) -> list[str]:
    """Rows as text in one order, since ours come shuffled."""
    names = ("messages", "task", "user", "position", "item")
    return sorted(json.dumps([row[name] for name in names]) for row in rows)


def measure(task: str, fold: Sequences, catalog: Catalog, sids: list[str], repeats: int) -> dict[str, float]:
    """Rows, rows a second of ours and both peers, and speedups by wall and by processor time, for one task."""
    builders = {
        "ours": lambda: chat_rows(fold, catalog, sids, {task: 1.0}, RowOptions())[0],
        "peer": lambda: peer_rows(task, "iterrows", fold, catalog, sids),
        "itertuples": lambda: peer_rows(task, "itertuples", fold, catalog, sids),
    }
    wall: dict[str, list[float]] = {name: [] for name in builders}
    cpu: dict[str, list[float]] = {name: [] for name in builders}
    contents = {}
    for lap in range(repeats):
        for name, build in builders.items():
            rows, seconds, worked = timed(build)
            wall[name].append(seconds)
            cpu[name].append(worked)
            if lap == 0:
                contents[name] = by_content(rows)
    assert contents["ours"] == contents["peer"] == contents["itertuples"], f"{task}: the rows differ"
    count = len(contents["ours"])
    found = {"rows": count} | {f"{name}_rows_per_s": round(count / min(laps)) for name, laps in wall.items()}
    found["speedup"] = round(min(wall["peer"]) / min(wall["ours"]), 1)
    found["cpu_speedup"] = round(min(cpu["peer"]) / min(cpu["ours"]), 1)
    return found | {"itertuples_speedup": round(min(wall["itertuples"]) / min(wall["ours"]), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    name, fold, catalog = load()
    sids = sid_texts(len(catalog))
    results = {task: measure(task, fold, catalog, sids, args.repeats) for task in TASKS}
    # The headline is the data set that recommenders are trained on; the other tasks stand beside it.
    numbers = {"dataset": name, **results[TASKS[0]]}
    numbers |= {f"{task}/{key}": value for task in TASKS[1:] for key, value in results[task].items()}
    print(json.dumps(numbers, indent=2))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
