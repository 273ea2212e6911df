"""Patterns of a small city: held against what was planted, and blind to what they must not see."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.checkins import SCHEMA, Visits, write_visits
from recllm.needs.context import contexts_of
from recllm.needs.faults import Venues, need_fault
from recllm.needs.find_patterns import PatternOptions, find_patterns
from recllm.needs.naming import TEMPLATES
from recllm.needs.pattern_scores import planted_scores
from recllm.needs.pattern_table import circular_hour
from recllm.needs.patterns import ABOUT, EVENTS, Patterns
from recllm.needs.worlds import WorldOptions, make_world, write_world
from recllm.needs.worlds_bayes import ceilings
from recllm.teachers.template import Template

OPTIONS = PatternOptions(most_needs=14, classes=(1, 8), steps=20)


def found(folder, ledger, options=OPTIONS):
    return find_patterns(Visits.load(folder), Catalog.load(folder), options, Template(TEMPLATES), ledger)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A city of 500 users, its visits and catalogue, and its patterns."""
    folder = tmp_path_factory.mktemp("city")
    world = make_world(WorldOptions(users=500, visits=30, venues=200))
    write_world(folder, world)
    patterns, counts = found(folder, folder / "ledger.jsonl")
    return folder, world, patterns, counts


def test_planted_needs_and_accidents_are_found(city):
    folder, world, patterns, _ = city
    visits = Visits.load(folder)
    rows = visits.rows("fit")
    best, scores = ceilings(world, rows, rows), planted_scores(patterns, visits, folder)
    assert abs(scores["filter/precision"] - best["precision"]) < 0.1
    assert abs(scores["filter/recall"] - best["recall"]) < 0.1
    assert scores["need_nmi"] > 0.75


def test_tables_hold_what_they_say(city):
    folder, _, patterns, _ = city
    visits, catalog = Visits.load(folder), Catalog.load(folder)
    contexts, frame, events = contexts_of(visits, catalog), patterns.frame, patterns.events
    fitted = (visits.frame["fold"] == "fit").to_numpy()
    joined = pl.DataFrame({"row": np.arange(len(visits)), "user": contexts.user_M}).hstack(events)
    assert frame["support"].is_sorted(descending=True)
    for row in frame.iter_rows(named=True):
        members = joined.filter((pl.col("pattern_id") == row["pattern_id"]) & pl.col("kept") & pl.Series(fitted))
        own = members["row"].to_numpy()
        assert (members.height, members["user"].n_unique()) == (row["support"], row["users"])
        assert {contexts.categories[code] for code in contexts.category_M[own]} == {row["category"]}
        assert row["hour"] == pytest.approx(circular_hour(contexts.hour_M[own]), abs=1e-3)
        assert row["weekend"] == pytest.approx((contexts.weekend_M[own] == 1).mean())
        assert row["users"] >= OPTIONS.least_users and row["support"] >= OPTIONS.least_support
        assert need_fault(row["need"], [row["category"]], Venues(catalog.titles)) is None
        share = (contexts.category_M[fitted] == contexts.categories.index(row["category"])).mean()
        assert row["lift"] == pytest.approx(row["confidence"] / share, rel=1e-4)
    assert frame["lift"].median() > 1.5
    limit = patterns.about["cut"]
    kept = ((events["typicality"] >= np.float32(limit)) & (events["pattern_id"] >= 0)).to_numpy()
    assert (kept == events["kept"].to_numpy()).mean() > 0.999
    assert set(events.filter(pl.col("pattern_id") < 0)["need"]) <= {""}


def test_a_need_has_several_categories_and_a_category_several_needs(city):
    frame = city[2].frame
    assert (frame.group_by("need").agg(pl.col("category").n_unique())["category"] >= 3).mean() >= 0.5
    assert (frame.group_by("category").agg(pl.col("need").n_unique())["need"] >= 2).mean() >= 1 / 3


def test_events_of_other_folds_change_no_pattern(tmp_path):
    """Other venues, hours and scenes after the fitted events: all that is fitted stays, to the last bit."""
    world = make_world(WorldOptions(users=80, visits=24, venues=120, seed=3))
    options = PatternOptions(most_needs=6, classes=(1, 2), steps=6, least_users=2, least_support=3)
    tables = []
    for name in ("as it was", "changed"):
        write_world(tmp_path / name, world)
        if name == "changed":
            visits = Visits.load(tmp_path / name).frame
            later = pl.col("fold") != "fit"
            changed = visits.with_columns(
                pl.when(later).then((pl.col("hour") + 5) % 24).otherwise("hour").cast(pl.Float32).alias("hour"),
                pl.when(later).then(pl.lit("station")).otherwise("scene").alias("scene"),
                pl.when(later).then((pl.col("item_id") * 7 + 1) % 120).otherwise("item_id").alias("item_id"),
                need=pl.lit("", dtype=pl.String),
                accidental=pl.lit(None, dtype=pl.Boolean),
            )
            write_visits(tmp_path / name, changed)
            events = pl.read_parquet(tmp_path / name / "interactions.parquet")
            events.with_columns(changed["item_id"]).write_parquet(tmp_path / name / "interactions.parquet")
        patterns, _ = found(tmp_path / name, tmp_path / name / "ledger.jsonl", options)
        tables.append((patterns, Visits.load(tmp_path / name).frame["fold"] == "fit"))
    (one, fit), (other, _) = tables
    assert one.frame.equals(other.frame) and one.about["cut"] == other.about["cut"]
    assert one.events.filter(fit).equals(other.events.filter(fit))
    assert not one.events.equals(other.events), "the others were changed"


def test_a_folder_is_read_back_and_only_for_its_visits(city, tmp_path):
    folder, _, patterns, _ = city
    visits = Visits.load(folder)
    patterns.save(tmp_path, visits)
    again = Patterns.load(tmp_path, visits)
    assert again.frame.equals(patterns.frame) and again.need_types == patterns.need_types
    assert again.events["kept"].equals(patterns.events["kept"]) and again.about["cut"] == patterns.about["cut"]
    assert again.need_types == sorted(set(patterns.frame["need_type"]))

    other = tmp_path / "other"
    write_world(other, make_world(WorldOptions(users=500, visits=30, venues=200, seed=1)))
    with pytest.raises(ValueError, match=r"events\.parquet: its \d+ rows are not those of the \d+ visits"):
        Patterns.load(tmp_path, Visits.load(other))
    later = replace(visits.sequences, timestamps_M=visits.sequences.timestamps_M + 1)
    with pytest.raises(ValueError, match="are not those of"):
        Patterns.load(tmp_path, replace(visits, sequences=later))
    events = pl.read_parquet(tmp_path / EVENTS)
    events.with_columns(pl.lit(10_000, dtype=pl.Int32).alias("pattern_id")).write_parquet(tmp_path / EVENTS)
    with pytest.raises(ValueError, match="a pattern_id is not in"):
        Patterns.load(tmp_path, visits)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "version": 0}))
    with pytest.raises(ValueError, match=r"patterns\.json: wanted version 1"):
        Patterns.load(tmp_path, visits)


def test_a_log_without_scenes_days_or_positions_and_with_context_only_visits(tmp_path):
    """As PIGEON's layout has it: no date, so no weekday; some visits may not be asked for."""
    world = make_world(WorldOptions(users=80, visits=24, venues=120, seed=3))
    write_world(tmp_path, world)
    catalog = pl.read_parquet(tmp_path / "catalog.parquet").drop("lat", "lon", "price")
    catalog.write_parquet(tmp_path / "catalog.parquet")
    frame = Visits.load(tmp_path).frame
    asked = pl.Series(np.arange(frame.height) % 7 > 0)
    write_visits(
        tmp_path,
        frame.with_columns(
            pl.lit(None, dtype=SCHEMA["weekday"]).alias("weekday"),
            pl.when(pl.col("hour") < 1).then(None).otherwise("hour").cast(pl.Float32).alias("hour"),
            scene=pl.lit(""),
            weather=pl.lit(""),
            target=asked,
        ),
    )
    options = PatternOptions(most_needs=6, classes=(1, 2), steps=6, least_users=2, least_support=3)
    patterns, _ = found(tmp_path, tmp_path / "ledger.jsonl", options)
    aside = patterns.events.filter(~asked)
    assert (aside["pattern_id"] == -1).all() and not aside["kept"].any() and aside["typicality"].is_nan().all()
    assert not patterns.events.filter(asked)["typicality"].is_nan().any()
    assert set(patterns.frame["scene"]) == {""} and (patterns.frame["weekend"] == 0).all()


def test_too_little_is_said_so(tmp_path):
    world = make_world(WorldOptions(users=4, visits=8, venues=120, days=20))
    write_world(tmp_path, world)
    with pytest.raises(ValueError, match="too few"):
        found(tmp_path, tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError, match="at least 1"):
        PatternOptions(classes=(0, 1))


def test_the_mean_of_hours_goes_around_midnight():
    assert circular_hour(np.array([22.0, 3.0, np.nan])) == pytest.approx(0.5)
    assert np.isnan(circular_hour(np.array([np.nan])))
