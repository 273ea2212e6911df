"""Descriptors of a data set against a table by hand, and how alike two data sets are."""

import math

import numpy as np
import polars as pl
import pytest

from recllm.tuning.memory.descriptors import COMPARED, LENGTHS, describe, describe_events, likeness


def test_a_table_by_hand():
    # Users with 1, 2 and 5 events and one with none; 4 items seen 4, 3, 1 and 0 times.
    told = describe_events(np.array([1, 2, 5, 0]), np.array([0, 0, 1, 0, 1, 0, 1, 2]), 4)
    assert told == {
        **{"users": 3, "items": 4, "avg_len": 2.667, "p50_len": 2.0, "p90_len": 4.4},
        **{"items_per_user": 1.333, "density": 0.6667},
        # sum_i (2 i - 5) x_i / (4 * 8) over 0, 1, 3, 4: (-3*0 - 1 + 3 + 12) / 32
        "gini": 0.4375,
    }


def test_targets_are_not_looked_at(dataset, tmp_path):
    before = describe(dataset)
    for name in ("catalog.parquet", "dataset.json"):
        (tmp_path / name).write_bytes((dataset / name).read_bytes())
    frame = pl.read_parquet(dataset / "interactions.parquet")
    # The last two events of everyone, who all have four or more, become one and the same item.
    back = pl.int_range(pl.len(), 0, -1).over("user_id")
    frame = frame.with_columns(pl.when(back <= 2).then(0).otherwise("item_id").cast(pl.Int32).alias("item_id"))
    frame.write_parquet(tmp_path / "interactions.parquet")
    assert describe(tmp_path) == before
    users = frame["user_id"].n_unique()
    assert before["users"] == users == 40
    assert before["avg_len"] == pytest.approx((frame.height - 2 * users) / users, rel=1e-3)


def test_nothing_to_describe():
    with pytest.raises(ValueError, match="without fitting events"):
        describe_events(np.array([0]), np.array([], dtype=int), 3)


def test_likeness_by_hand():
    here = {"avg_len": 8.0, "p90_len": 19.0, "items_per_user": 1.0, "density": 0.005, "gini": 0.3}
    assert likeness(here, here) == 1.0
    apart = {**here, "gini": 0.3 + 2 * LENGTHS["gini"], "avg_len": 8.0 * math.exp(LENGTHS["avg_len"])}
    assert likeness(here, apart) == pytest.approx(math.exp(-(4 + 1) / 5 / 2))
    assert likeness(apart, here) == likeness(here, apart)
    assert likeness(here, {}) == 1.0 and likeness({"gini": 0.3}, {"gini": 0.3, "users": 9}) == 1.0


@pytest.mark.parametrize("name", list(COMPARED))
def test_likeness_falls_with_every_descriptor(name):
    here = {"avg_len": 8.0, "p90_len": 19.0, "items_per_user": 1.0, "density": 0.005, "gini": 0.3}
    steps = [likeness(here, {**here, name: here[name] * factor}) for factor in (1.0, 1.5, 2.0, 2.5, 3.0)]
    assert steps == sorted(steps, reverse=True) and len(set(steps)) == 5
