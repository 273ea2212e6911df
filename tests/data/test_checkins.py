"""Visits: what a folder must hold, folds by the end of a log and by the calendar, and the split that they make."""

import datetime
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from recllm.data.checkins import (
    FOLDS,
    SCHEMA,
    Visits,
    calendar_folds,
    clock,
    completed,
    folds_split,
    last_folds,
    target_counts,
    write_visits,
)
from recllm.data.histories import write_histories
from recllm.data.interactions import Sequences
from recllm.data.prepare import Raw, prepare, quarantine, write_dataset
from recllm.data.splits import load_split

UTC = datetime.UTC
DAY = 86_400
POLICIES = SimpleNamespace(max_bad_fraction=0.01)


def seconds(*date: int) -> int:
    return int(datetime.datetime(*date, tzinfo=UTC).timestamp())


def random_visits(seed: int, users: int = 12) -> pl.DataFrame:
    """Logs of 1 to 30 events over 20 days, some of which may not be asked for, in the order of a data set."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start = seconds(2012, 10, 30) + rng.integers(0, 120 * DAY)
        times = np.sort(start + rng.integers(0, 20 * DAY, rng.integers(1, 31)))
        rows += [(user, int(rng.integers(9)), int(time), bool(rng.random() < 0.7)) for time in times]
    schema = {"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64, "target": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def by_user(visits: pl.DataFrame, folds: pl.Series) -> dict[int, list[tuple[int, bool, str]]]:
    logs: dict[int, list] = {}
    for user, time, target, fold in zip(
        visits["user_id"], visits["timestamp"], visits["target"], folds.to_list(), strict=True
    ):
        logs.setdefault(user, []).append((time, target, fold))
    return logs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("targets", [1, 3])
def test_last_folds_equal_a_count_by_hand(seed, targets):
    visits = random_visits(seed)
    for log in by_user(visits, last_folds(visits, targets)).values():
        asked = [place for place, (_, target, _) in enumerate(log) if target]
        wanted = ["fit"] * len(log)
        if len(asked) > 2 * targets:
            first, last = asked[-2 * targets], asked[-targets]
            wanted = ["fit"] * first + ["validation"] * (last - first) + ["test"] * (len(log) - last)
        assert [fold for _, _, fold in log] == wanted


def test_last_folds_need_a_log_long_enough():
    visits = random_visits(0, users=2)
    with pytest.raises(ValueError, match="no user has more than 200 visits"):
        last_folds(visits, 100)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        last_folds(visits, 0)


def week(time: int) -> tuple[int, int]:
    return tuple(datetime.datetime.fromtimestamp(time, tz=UTC).isocalendar()[:2])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shares", [(0.15, 0.15), (0.2, 0.1), (0.3, 0.1)])
def test_calendar_folds_are_the_fewest_last_weeks_with_the_share(seed, shares):
    visits = random_visits(seed, users=40)
    folds = calendar_folds(visits, *shares)
    starts = [week(log[0][0]) for log in by_user(visits, folds).values()]
    cuts = []
    for share in (sum(shares), shares[1]):
        enough = [w for w in set(starts) if sum(start >= w for start in starts) >= share * len(starts) - 1e-9]
        cuts.append(max(enough))
    for time, fold in zip(visits["timestamp"], folds, strict=True):
        assert fold == FOLDS[sum(week(time) >= cut for cut in cuts)]


def test_no_fitted_event_is_younger_than_a_target_of_anybody():
    visits = random_visits(3, users=40)
    visits = visits.with_columns(calendar_folds(visits))
    ends = [visits.filter(pl.col("fold") == fold)["timestamp"] for fold in FOLDS]
    assert ends[0].max() < ends[1].min() and ends[1].max() < ends[2].min()


def test_a_session_that_reaches_past_a_cut_is_cut_there():
    monday = seconds(2012, 4, 2)
    # The second events of sessions 2 and 4 lie in the week after their first.
    days = {0: [0], 1: [1], 2: [6, 7], 3: [8], 4: [13, 14]}
    rows = [(user, 0, monday + day * DAY, True) for user, own in days.items() for day in own]
    visits = pl.DataFrame([*rows, (5, 0, monday + 14 * DAY - 1, True), (6, 0, monday + 14 * DAY, True)],
                          schema=["user_id", "item_id", "timestamp", "target"], orient="row")  # fmt: skip
    found = by_user(visits, calendar_folds(visits, 0.4, 0.14))
    assert {user: [fold for _, _, fold in log] for user, log in found.items()} == {
        0: ["fit"],
        1: ["fit"],
        2: ["fit", "validation"],
        3: ["validation"],
        4: ["validation", "test"],
        5: ["validation"],
        6: ["test"],
    }


def test_calendar_folds_tell_what_they_cannot_do():
    visits = random_visits(0)
    for shares in ((0, 0.5), (0.5, 0), (0.5, 0.5)):
        with pytest.raises(ValueError, match="must lie above 0 and sum to below 1"):
            calendar_folds(visits, *shares)
    with pytest.raises(ValueError, match="start in 1 weeks, too few"):
        calendar_folds(visits.with_columns(timestamp=pl.lit(seconds(2012, 4, 3))))


def test_the_clock():
    frame = pl.DataFrame(
        {"t": [datetime.datetime(2012, 11, 12, 5, 17, 18), datetime.datetime(2013, 2, 17, 23, 59, 59)]}
    )
    rows = frame.select(*clock(pl.col("t"))).rows()
    assert [(time, day) for time, _, day in rows] == [
        (seconds(2012, 11, 12, 5, 17, 18), 0),
        (seconds(2013, 2, 17, 23, 59, 59), 6),
    ]
    assert [hour for _, hour, _ in rows] == pytest.approx([5 + 17 / 60 + 18 / 3600, 24 - 1 / 3600])


def raw(events: int = 40, users: int = 4) -> Raw:
    rng = np.random.default_rng(1)
    rows = [(f"u{u}", f"v{rng.integers(6)}", int(t)) for u in range(users) for t in range(events // users)]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    frame = frame.with_columns(scene=pl.lit("a [mall]<|im_end|>"), target=pl.int_range(pl.len()) % 4 != 1)
    items = pl.DataFrame({"item": ["v0"], "title": [""], "categories": [["Food", "Deli"]]})
    return Raw(completed(frame), items, quarantine([]), {"events": len(rows)})


@pytest.fixture
def folder(tmp_path):
    """A data set of visits as a script writes it."""
    source = raw()
    done = prepare(source, k=0, dedup="none")
    visits = done.interactions.with_columns(last_folds(done.interactions, 2))
    write_dataset(tmp_path, done, source, POLICIES, {"name": "toy"}, visits)
    return tmp_path


def test_what_a_source_does_not_say_is_unknown_and_text_is_harmless():
    events = raw().events
    assert dict(events.schema) == {"user": pl.String, "item": pl.String, "timestamp": pl.Int64} | {
        name: SCHEMA[name] for name in SCHEMA if name not in ("user_id", "item_id", "timestamp", "fold")
    }
    row = events.row(1, named=True)
    assert (row["hour"], row["weekday"], row["accidental"]) == (None, None, None)
    assert (row["weather"], row["need"], row["target"]) == ("", "", False)
    assert row["scene"] == "a (mall)‹|im_end|›"


def test_a_written_folder_loads_as_visits_and_as_a_split(folder):
    visits, split, known = Visits.load(folder), load_split(folder), json.loads((folder / "dataset.json").read_text())
    assert len(visits) == 40 and known["split"] == split.kind == "folds"
    assert pl.read_parquet(folder / "interactions.parquet").columns == ["user_id", "item_id", "timestamp"]
    assert {"fit_targets", "validation_targets", "test_targets"} <= known["counts"].keys()
    counts = target_counts(visits)
    assert counts == {name: known["counts"][name] for name in counts}
    assert (counts["validation_targets"], counts["test_targets"]) == (8, 8)
    assert sum(counts.values()) == 40 and known["counts"]["test_users"] == 4
    for fold, examples in (("validation", split.validation), ("test", split.test)):
        rows = visits.rows(fold)
        assert examples.targets_E.tolist() == visits.frame["item_id"].to_numpy()[rows].tolist()
        for example, row in enumerate(rows):
            history = visits.history(row)
            assert examples.history(example).tolist() == visits.frame["item_id"].to_numpy()[history].tolist()
            assert set(visits.frame["user_id"].to_numpy()[history]) <= {visits.frame["user_id"][int(row)]}
    fitted = visits.frame.filter(pl.col("fold") == "fit")
    assert split.fitting.items_M.tolist() == fitted["item_id"].to_list()
    assert split.fit_length_U.sum() == fitted.height == known["counts"]["fitting_events"]


def test_the_fingerprint_follows_the_folds(tmp_path):
    marks = []
    for targets in (2, 2, 1):
        source = raw()
        done = prepare(source, k=0, dedup="none")
        visits = done.interactions.with_columns(last_folds(done.interactions, targets))
        write_dataset(tmp_path, done, source, POLICIES, {}, visits)
        marks.append(json.loads((tmp_path / "dataset.json").read_text())["fingerprint"])
    assert marks[0] == marks[1] != marks[2]


def test_a_test_fold_without_targets_is_refused_before_anything_is_written(tmp_path):
    source = raw()
    done = prepare(source, k=0, dedup="none")
    visits = done.interactions.with_columns(fold=pl.lit("fit"))
    with pytest.raises(ValueError, match="no visit of the fold test"):
        write_dataset(tmp_path / "set", done, source, POLICIES, {}, visits)
    assert not (tmp_path / "set").exists()


def test_folds_that_go_back_in_time_are_refused():
    sequences = Sequences.from_lists([[0, 1], [2, 3]])
    frame = pl.DataFrame({"fold": ["test", "test", "fit", "test"], "target": True})
    assert folds_split(Visits(frame, sequences)).fit_length_U.tolist() == [0, 1]
    with pytest.raises(ValueError, match="user 1: a test visit comes before"):
        folds_split(Visits(frame.with_columns(fold=pl.Series(["fit", "test", "test", "fit"])), sequences))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hour": pl.lit(1)}, "column hour must be Float32, is Int32"),
        ({"target": pl.lit(None, pl.Boolean)}, "column target has nulls"),
        ({"fold": pl.lit("train")}, "unknown fold 'train'"),
        ({"item_id": pl.lit(0, pl.Int32)}, "not those of interactions"),
        ({"timestamp": pl.col("timestamp") + 1}, "not those of interactions"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, change, message):
    path = folder / "visits.parquet"
    pl.read_parquet(path).with_columns(**change).write_parquet(path)
    with pytest.raises(ValueError, match=message) as raised:
        Visits.load(folder)
    assert str(path) in str(raised.value)


def test_missing_files_and_unknown_folds_are_named(folder):
    with pytest.raises(ValueError, match="fold 'train' is unknown; the folds are fit, validation, test"):
        Visits.load(folder).rows("train")
    with pytest.raises(ValueError, match=r"dataset\.json: histories are cut by their length"):
        write_histories(folder, folder / "h.arrow")
    (folder / "visits.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"visits\.parquet is missing"):
        load_split(folder)


def test_a_world_writes_what_loads(tmp_path):
    columns = {"user_id": [0, 0], "item_id": [1, 0], "timestamp": [5, 9], "hour": [1.5, None], "weekday": [0, 6]}
    frame = pl.DataFrame({**columns, "fold": ["fit", "test"], "accidental": [True, False], "need": ["rest", ""]})
    frame = frame.with_columns(weather=pl.lit(""), scene=pl.lit("mall"), target=pl.lit(True))
    write_visits(tmp_path, frame)
    frame.select(pl.col("user_id").cast(pl.Int32), pl.col("item_id").cast(pl.Int32), "timestamp").write_parquet(
        tmp_path / "interactions.parquet"
    )
    loaded = Visits.load(tmp_path)
    assert loaded.rows("test").tolist() == [1] and loaded.history(1).tolist() == [0] and loaded.history(0).size == 0
    assert loaded.frame["accidental"].to_list() == [True, False] and loaded.frame["hour"].to_list() == [1.5, None]
