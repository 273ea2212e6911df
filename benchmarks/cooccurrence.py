"""How fast the item-item tables are counted, Swing over pairs of users above all.

Claim: all three tables of MovieLens-1M in under 60 s on two cores, no user or item capped; Swing >= 20x numpy's loop.
Run:   python benchmarks/cooccurrence.py --json cooccurrence.json
The peers are the textbook double loop over user pairs, in plain Python and with numpy's outer sums. They run on the
same few users as ours, where all three tables must be equal, and their time for a pair of users is scaled to all pairs.
Processor seconds stand beside wall seconds, since a busy machine disturbs them less.
Data: MovieLens-1M, which is fetched, else a made-up log of its size and skew; Amazon Beauty 2014 under RECLLM_DATA.
"""

import argparse
import json
import logging
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import psutil
import scipy
from threadpoolctl import threadpool_info

from recllm.assets import AssetError, fetch
from recllm.data.amazon import DATA_VARIABLE, locate, read_amazon
from recllm.data.interactions import Sequences
from recllm.data.movielens import read_movielens
from recllm.data.prepare import Prepared, prepare
from recllm.data.splits import make_split
from recllm.rationales.cooccurrence import CooccurrenceOptions, item_cf, item_sets, swing, transition

logger = logging.getLogger("cooccurrence")
BEAUTY = "amazon2014-beauty"
USERS, ITEMS, EVENTS = 6_040, 3_706, 1_000_000


def fold_of(prepared: Prepared) -> tuple[Sequences, int]:
    """The fitting fold of leave-one-out and the number of items."""
    events = (prepared.interactions[column].to_numpy() for column in ("user_id", "item_id", "timestamp"))
    return make_split(Sequences.from_arrays(*events), "leave_one_out").fitting, len(prepared.catalog)


def made_up(seed: int = 0) -> tuple[Sequences, int]:
    """A log of MovieLens-1M's size: log-normal users, exponentially fading items, no repeats."""
    rng = np.random.default_rng(seed)
    length_U = np.exp(rng.normal(4.6, 0.97, USERS))
    length_U = np.clip(length_U * EVENTS / length_U.sum(), 20, 2314).astype(int)
    popularity_N = np.exp(-np.arange(ITEMS) / 600.0)
    popularity_N /= popularity_N.sum()
    return Sequences.from_lists([rng.choice(ITEMS, n, replace=False, p=popularity_N).tolist() for n in length_U]), ITEMS


def folds() -> dict[str, tuple[Sequences, int]]:
    """The data sets within reach, by name; the first is the claim's."""
    try:
        found = {"ml-1m": fold_of(prepare(read_movielens(fetch("ml-1m"), "ml-1m"), k=0, dedup="first"))}
    except AssetError as error:
        logger.warning("MovieLens-1M is out of reach (%s): a made-up log of its size instead", error)
        found = {"made-up": made_up()}
    if os.environ.get(DATA_VARIABLE):
        found[BEAUTY] = fold_of(prepare(read_amazon(locate(BEAUTY)), k=0, dedup="first", keep_unseen=True))
    return found


def timed(build: Callable):
    """What `build` returns, its wall seconds and its processor seconds."""
    began, worked = time.perf_counter(), time.process_time()
    return build(), time.perf_counter() - began, time.process_time() - worked


def watched(build: Callable):
    """What `build` returns and the most memory that the process held meanwhile, in MiB, sampled every 10 ms."""
    seen, stop, process = [], threading.Event(), psutil.Process()

    def look() -> None:
        while not stop.wait(0.01):
            seen.append(process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        return build(), max(seen, default=0.0)
    finally:
        stop.set()
        watcher.join()


def tables(fold: Sequences, items: int) -> dict[str, float]:
    """Wall and processor seconds of each table."""
    found = {"users": len(fold), "items": items, "events": len(fold.items_M)}
    owned_UN, pair, user = item_sets(fold, items), CooccurrenceOptions(), CooccurrenceOptions(swing="user")
    builders = {
        "swing": lambda: swing(owned_UN, pair),
        "item_cf": lambda: item_cf(owned_UN, pair.topk),
        "transition": lambda: transition(fold, items, pair.topk),
        "swing_user": lambda: swing(owned_UN, user),
    }
    for name, build in builders.items():
        _, found[f"{name}_s"], found[f"{name}_cpu_s"] = timed(build)
    for unit in ("s", "cpu_s"):
        found[f"three_tables_{unit}"] = sum(found[f"{name}_{unit}"] for name in ("swing", "item_cf", "transition"))
    return found


def loop_in_python(sets: list[np.ndarray], items: int) -> np.ndarray:
    """Swing by a double loop over user pairs and the pairs of items that they share."""
    sums, owned = defaultdict(float), [set(items_I.tolist()) for items_I in sets]
    for u, v in combinations(range(len(owned)), 2):
        common = sorted(owned[u] & owned[v])
        weight = 1.0 / math.sqrt(len(owned[u]) * len(owned[v])) / (1.0 + len(common))
        for pair in combinations(common, 2):
            sums[pair] += weight
    table_NN = np.zeros((items, items))
    for (i, j), total in sums.items():
        table_NN[i, j] = table_NN[j, i] = total
    return table_NN


def loop_with_numpy(sets: list[np.ndarray], items: int) -> np.ndarray:
    """The same with an intersection and a square of the table for each pair of users."""
    table_NN = np.zeros((items, items))
    for u, v in combinations(range(len(sets)), 2):
        common_C = np.intersect1d(sets[u], sets[v], assume_unique=True)
        weight = 1.0 / math.sqrt(len(sets[u]) * len(sets[v])) / (1.0 + len(common_C))
        table_NN[np.ix_(common_C, common_C)] += weight
    np.fill_diagonal(table_NN, 0.0)
    return table_NN


def peers(fold: Sequences, items: int, users: int) -> dict[str, float]:
    """Seconds of both loops and ours on a few users, the loops' for all pairs, and the largest relative difference."""
    chosen = np.random.default_rng(0).choice(len(fold), users, replace=False)
    few = Sequences.from_lists([np.unique(fold.items(u)).tolist() for u in chosen])
    sets, owned_UN = [few.items(u) for u in range(users)], item_sets(few, items)
    found = {"users": users}
    ours_NN, found["ours_s"], found["ours_cpu_s"] = timed(lambda: swing(owned_UN, CooccurrenceOptions(topk=0)))
    ours = ours_NN.toarray()
    for name, loop in (("python", loop_in_python), ("numpy", loop_with_numpy)):
        table_NN, found[f"{name}_s"], found[f"{name}_cpu_s"] = timed(lambda loop=loop: loop(sets, items))
        assert np.array_equal(table_NN > 0, ours > 0), f"{name}: the pairs differ"
        found[f"{name}_difference"] = float((np.abs(table_NN - ours) / np.maximum(table_NN, 1e-12)).max())
        assert found[f"{name}_difference"] < 1e-6, f"{name}: the scores differ"
        found[f"{name}_all_pairs_cpu_s"] = found[f"{name}_cpu_s"] * math.comb(len(fold), 2) / math.comb(users, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--users", type=int, default=200, help="users that the peers are run on")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    found = {"threads": max((pool["num_threads"] for pool in threadpool_info()), default=1)}
    found |= {"numpy": np.__version__, "scipy": scipy.__version__}
    sets = folds()
    for name, fold_and_items in sets.items():
        before = psutil.Process().memory_info().rss / 2**20
        found[name], peak = watched(lambda given=fold_and_items: tables(*given))
        found[name] |= {"before_mib": before, "peak_mib": peak}
    name = next(iter(sets))
    found["peers"] = {"dataset": name, **peers(*sets[name], args.users)}
    for loop in ("python", "numpy"):
        found[f"speedup_{loop}"] = found["peers"][f"{loop}_all_pairs_cpu_s"] / found[name]["swing_cpu_s"]
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
