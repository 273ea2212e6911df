"""Surfaces written by hand: every score is a function of the configuration, a little different for each data set."""

import itertools
import json
import math
from pathlib import Path

from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.trials.runner import Outcome
from recllm.tuning.trials.surface import METRICS, surface_row, write_surface

DATASETS = ("one", "two", "three")
_LIMITS = {"parameters": None, "cpu_seconds": None, "wall_seconds": None, "memory_gib": None}


def score(config, place):
    """Best at lr 0.003 to 0.01, all negatives, item counts of weight 0.2; the best dropout depends on the data."""
    value = 0.1 - 0.02 * abs(math.log10(config["lr"]) + 2.2) - 0.01 * (config["num_negatives"] > 0)
    value -= 0.02 * abs(config["dropout"] - 0.2 * place) + 0.01 * abs(config["prior_item_cf"] - 0.2)
    return max(value, 0.001)


def write_made_surface(folder: Path, place: int, rows: int = 24, backbone: str = "sasrec") -> Path:
    """`rows` evenly spread configurations and what surrounds the default and the best of them; one fails."""
    space = surface_space(backbone)
    spread = itertools.islice((config for config in space.spread(0) if config != space.default), rows - 1)
    found = {space.key(config): (config, "spread") for config in spread}
    found[space.key(space.default)] = (space.default, "default")
    best = max(found.values(), key=lambda pair: score(pair[0], place))[0]
    for origin, centre in (("star", space.default), ("peak", best)):
        for config in space.neighbours(centre):
            found.setdefault(space.key(config), (config, origin))
    failed = next(key for key, (config, origin) in found.items() if origin == "spread" and config != best)
    made = []
    for key, (config, origin) in found.items():
        values = {f"{role}/{name}": score(config, place) for role in ("validation", "test") for name in METRICS}
        status, metrics = ("nan", {}) if key == failed else ("ok", values)
        made.append(surface_row(Outcome(status, key, config, 0, metrics, 1000 * config["hidden_dim"]), origin))
    default = score(space.default, place)
    told = {
        **{"backbone": backbone, "dataset": DATASETS[place], "limits": _LIMITS, "fixed": dict(space.fixed)},
        "descriptors": {"users": 1000 + place, "avg_len": 8.0 + place, "p90_len": 14.0, "gini": 0.5},
        "default_by_seed": {"0": default, "1": default * 1.001},
    }
    path = folder / f"{backbone}-{DATASETS[place]}.parquet"
    write_surface(path, made, json.loads(json.dumps(told)))
    return path
