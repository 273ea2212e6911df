"""Circumstances of visits by hand, and that the truth of a made-up world is not among them."""

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.checkins import SCHEMA, Visits
from recllm.data.interactions import Sequences
from recllm.needs.context import contexts_of, features

DAY = 86_400


def catalog():
    columns = {
        "item_id": [0, 1, 2],
        "title": ["", "", ""],
        "categories": [["Food", "Deli"], ["Food", "Deli"], ["Park"]],
        "lat": [40.0, 41.0, None],
        "lon": [-73.0, -73.0, None],
        "price": [1.0, None, 3.0],
    }
    return Catalog(pl.DataFrame(columns).with_columns(pl.col("item_id").cast(pl.Int32)))


def visits(**changed):
    columns = {
        "user_id": [0, 0, 0, 0, 1],
        "item_id": [0, 1, 0, 2, 0],
        "timestamp": [0, DAY, 3 * DAY, 4 * DAY, 0],
        "hour": [0.0, 6.0, 12.0, None, 6.0],
        "weekday": [4, 5, 6, None, 0],
        "weather": ["rain", "", "rain", "", "rain"],
        "scene": ["", "", "", "", ""],
        "fold": ["fit"] * 5,
        "target": [True] * 5,
        "need": ["a", "b", "a", "b", "a"],
        "accidental": [False] * 5,
    }
    frame = pl.DataFrame({**columns, **changed}, schema=SCHEMA)
    items_M, seconds_M = (frame[name].to_numpy() for name in ("item_id", "timestamp"))
    return Visits(frame, Sequences(np.arange(2), items_M, seconds_M, np.array([0, 4, 5])))


def test_circumstances_by_hand():
    found = contexts_of(visits(), catalog())
    assert found.categories == ("Deli", "Park") and found.roots == ("Food", "")
    assert found.alike_M.tolist() == [0, 1, 2, 0, 0], "earlier visits of the user to the category"
    assert found.same_M.tolist() == [0, 0, 1, 0, 0], "earlier visits of the user to the venue"
    assert found.weekend_M.tolist() == [0, 1, 1, 2, 0]
    assert found.weathers == ("", "rain") and found.day_M.tolist() == [1, 2, 3, 4, 1] and found.day_kinds == 6
    # A degree of latitude is 111.2 km.
    assert found.distance_M[[1, 2]] == pytest.approx([111.19, 111.19], abs=0.01)
    assert np.isnan(found.distance_M[[0, 3, 4]]).all(), "no visit before, or no position"
    assert found.recency_M[1:4].tolist() == [1, 2, 1] and np.isnan(found.recency_M[[0, 4]]).all()
    np.testing.assert_array_equal(found.price_M, [1, np.nan, 1, 3, 1])


def test_the_truth_is_not_read():
    known = contexts_of(visits(), catalog())
    other = contexts_of(visits(need=[""] * 5, accidental=[True] * 5), catalog())
    for name, value in vars(known).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_hours_lie_on_a_circle_and_scales_come_from_the_fitted_rows():
    contexts = contexts_of(visits(hour=[23.5, 0.5, 12.0, None, 6.0], weekday=[0] * 5, weather=[""] * 5), catalog())
    feature_MF = features(contexts, np.arange(5))[:, :2]
    away = np.linalg.norm(feature_MF[0] - feature_MF, axis=1)
    assert away[1] < 0.3 < 1 < away[4] < away[2]
    assert feature_MF[3].tolist() == [0, 0], "what is unknown lies in the middle"
    # The price of a row that is not fitted moves no other row's.
    dear = catalog()
    dear = Catalog(dear.frame.with_columns(pl.Series("price", [1.0, 2.0, 4.0])))
    cheap = Catalog(dear.frame.with_columns(pl.Series("price", [1.0, 2.0, 1.0])))
    fitted = np.array([0, 1, 2])
    one, other = (features(contexts_of(visits(), each), fitted)[:3] for each in (dear, cheap))
    np.testing.assert_array_equal(one, other)


def test_a_visit_to_nowhere_is_refused():
    with pytest.raises(ValueError, match="item 7 is not in the catalogue of 3"):
        contexts_of(visits(item_id=[0, 1, 0, 2, 7]), catalog())
