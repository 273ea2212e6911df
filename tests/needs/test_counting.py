"""Counting baselines against tables computed by hand and a twin that looks at one visit at a time."""

import math

import numpy as np
import polars as pl
import pytest

from recllm.data.checkins import SCHEMA, Visits
from recllm.data.interactions import Sequences
from recllm.needs.counting import Cells, OwnHistory, PopularByContext


def visits_of(rows: list[tuple]) -> Visits:
    """Visits from (user, item, hour, weekday, scene, fold)."""
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "hour", "weekday", "scene", "fold"], orient="row")
    rest = {"weather": "", "target": True, "need": "", "accidental": None, "timestamp": 0}
    frame = frame.with_columns(pl.lit(value).alias(name) for name, value in rest.items())
    frame = frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    users, counts = np.unique(frame["user_id"].to_numpy(), return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    items = frame["item_id"].to_numpy().astype(np.int32)
    return Visits(frame, Sequences(users.astype(np.int32), items, np.arange(len(items)), offsets))


def test_a_rare_cell_leans_on_the_one_above():
    rows = [(0, 0, 8.0, 1, "s", "fit")] * 6 + [(0, 1, 20.0, 1, "s", "fit")] * 2 + [(0, 1, 9.5, 1, "s", "test")]
    rows += [(0, 0, 20.5, 6, "s", "test")]
    visits = visits_of(rows)
    table = PopularByContext(
        Cells.of(visits.frame), visits.sequences.items_M.astype(int), visits.rows("fit"), 2, lean=2.0
    )
    # All: (6 + 2/2) / 10 and (2 + 2/2) / 10. The evening: (0 + 2 * .7) / 4; its weekday twice more of the same.
    evening = [(0 + 2 * 0.7) / 4, (2 + 2 * 0.3) / 4]
    for _ in range(2):
        evening = [2 * evening[0] / 4, (2 + 2 * evening[1]) / 4]
    assert table(np.array([6]))[0] == pytest.approx(evening)
    # 9:30 is another bin than 8:00 and has no fitted visit: all visits speak for it.
    assert table(np.array([8]))[0] == pytest.approx([0.7, 0.3])
    # The evening of a weekend: as far as the hour.
    assert table(np.array([9]))[0] == pytest.approx([(0 + 2 * 0.7) / 4, (2 + 2 * 0.3) / 4])


def test_what_is_unknown_is_a_context_of_its_own():
    visits = visits_of([(0, 0, None, None, "", "fit")] * 3 + [(0, 1, 0.5, 0, "", "fit")] * 3)
    table = PopularByContext(Cells.of(visits.frame), visits.sequences.items_M.astype(int), visits.rows("fit"), 2, 1.0)
    shares_BC = table(np.array([0, 5]))
    assert shares_BC[0, 0] > 0.9 and shares_BC[1, 1] > 0.9
    assert shares_BC.sum(1) == pytest.approx([1, 1])


def test_the_own_history_is_that_of_one_visit_at_a_time():
    rng = np.random.default_rng(0)
    rows = [
        (user, int(rng.integers(5)), None if rng.random() < 0.1 else float(rng.random() * 24), int(rng.integers(7)),
         "", "fit")
        for user in range(3) for _ in range(20)
    ]  # fmt: skip
    visits = visits_of(rows)
    # Item 4 has no label.
    label_M = np.where(visits.sequences.items_M == 4, -1, visits.sequences.items_M).astype(int)
    popular = PopularByContext(Cells.of(visits.frame), label_M, visits.rows("fit"), 4)
    own = OwnHistory(visits, popular, memory=7.0, alike=3.0, lean=2.0)
    asked = np.array([0, 25, 39, 59])
    for row, share_C in zip(asked.tolist(), own(asked), strict=True):
        expected_C = 2.0 * popular(np.array([row]))[0].astype(float)
        for past in range(row // 20 * 20, row):
            hours = rows[past][2], rows[row][2]
            apart = math.inf if None in hours else abs(hours[0] - hours[1])
            near = min(apart, abs(24 - apart)) <= 2
            same = 1.0 if (rows[past][3] >= 5) == (rows[row][3] >= 5) else 0.5
            if label_M[past] >= 0:
                expected_C[label_M[past]] += math.exp((past - row) / 7.0) * (1 + 3.0 * near * same)
        assert share_C == pytest.approx(expected_C / expected_C.sum(), rel=1e-5)
