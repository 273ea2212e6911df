"""What a data set is like, in a few numbers: by them a rule learned on one is carried to another.

All are of the fitting events: nothing that is ever a target is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# By what two data sets are compared (methods 1.3), and whether on a logarithmic scale.
COMPARED = {"avg_len": True, "p90_len": True, "items_per_user": True, "density": True, "gini": False}
# Two data sets that differ by this in one descriptor are one length of the kernel apart in it.
LENGTHS = {"avg_len": 0.7, "p90_len": 0.7, "items_per_user": 0.7, "density": 1.5, "gini": 0.15}


def describe(dataset: str | Path) -> dict[str, float]:
    """Descriptors of a data set folder, rounded to four figures.

    `users` with at least one fitting event, `items` of the catalogue, `avg_len`, `p50_len` and `p90_len` of the fitting
    histories, `items_per_user`, `density` (events a cell of the user-item matrix) and `gini` (of the items' events).

    Raises:
        FileNotFoundError, ValueError: the data set cannot be read.
    """
    from recllm.data.catalog import Catalog
    from recllm.data.splits import load_split

    fitting = load_split(dataset).fitting
    return describe_events(fitting.lengths_U, fitting.items_M, len(Catalog.load(dataset)))


def describe_events(lengths_U: np.ndarray, items_M: np.ndarray, items: int) -> dict[str, float]:
    """As `describe`, of the users' numbers of events, the events' items and the size of the catalogue.

    Raises:
        ValueError: no event, or no item.
    """
    from recllm.metrics.catalogue import gini

    lengths_U = np.asarray(lengths_U)
    lengths_U = lengths_U[lengths_U > 0]
    users, events = len(lengths_U), len(items_M)
    if not events or not items:
        raise ValueError("a data set without fitting events or items cannot be described")
    middle, high = np.percentile(lengths_U, [50, 90])
    told = {
        "users": users,
        "items": items,
        "avg_len": events / users,
        "p50_len": middle,
        "p90_len": high,
        "items_per_user": items / users,
        "density": events / (users * items),
        "gini": gini(np.bincount(items_M, minlength=items)),
    }
    return {name: float(f"{value:.4g}") for name, value in told.items()}


def likeness(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How alike two data sets are, in (0, 1]: a Gaussian kernel over the descriptors that both have (methods 1.3).

    `exp(-d^2 / 2)`, where `d^2` is the mean over the compared descriptors of the squared difference (of the logarithm,
    for all but `gini`) in units of LENGTHS. 1 where they have none in common: nothing speaks against.
    """
    squared = []
    for name, logarithmic in COMPARED.items():
        if name not in one or name not in other:
            continue
        here, there = float(one[name]), float(other[name])
        if logarithmic:
            here, there = math.log(max(here, 1e-12)), math.log(max(there, 1e-12))
        squared.append(((here - there) / LENGTHS[name]) ** 2)
    return math.exp(-sum(squared) / len(squared) / 2) if squared else 1.0
