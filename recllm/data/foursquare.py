"""Foursquare check-ins in New York, April 2012 to February 2013 (Yang et al., IEEE Trans. SMC: Systems 45(1), 2015).

Weekday, venue category, price, rating and weather were added by others. Two layouts of one source, never to be pooled:

| layout | file | columns |
|---|---|---|
| nyc: 150 users | checkins.tsv | user_id, poi_id, local_time, weather |
| | venues.tsv | poi_id, lat, lon, category, root_category, price, rating |
| matdata: 3,079 sessions | Foursquare_Sample.csv | tid, lat_lon, date_time, rating, price, weather, root_type, type |

The second lies in the wheel mat-data and names neither users nor venues: a venue is (lat_lon, type), and a session,
which lasts a week at most, stands for a user; one person may be behind several. Files may be gzipped; -1 and "Unknown"
mean unknown. Venues have no names, so their titles are empty.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recllm.data.checkins import VENUE_SCHEMA, clock, completed
from recllm.data.prepare import Raw
from recllm.data.tables import Table, find, first_reason, need, read_table, set_aside

SOURCE = "Foursquare check-ins in New York 2012-13 (Yang et al. 2015), with venue facts and weather by MAT-Tools"
LICENCE = "no licence is stated for the data: research use, cite the source, do not redistribute"
NYC, MATDATA = "foursquare_nyc", "mat-data-foursquare"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
# What a check-in tells but nobody asks a recommender for. Where one lives, works, studies or passes through makes up
# these four roots (29,821 of mat-data's 66,962 check-ins) ...
CONTEXT_ROOTS = ("Residence", "Professional & Other Places", "College & University", "Travel & Transport")
# ... but for these leaves, which one goes to for what they offer. A leaf that is not listed is context: rather lose a
# target than ask for somebody's office.
SERVICES = (
    *("Acupuncturist", "Chiropractor", "Dentist's Office", "Doctor's Office", "Emergency Room", "Eye Doctor"),
    *("Hospital", "Medical Center", "Medical Lab", "Mental Health Office", "Physical Therapist", "Veterinarian"),
    *("Church", "Mosque", "Shrine", "Spiritual Center", "Synagogue", "Temple"),
    *("Language School", "Library", "Music School", "Post Office"),
    *("Ballroom", "Community Center", "Convention Center", "Cultural Center", "Distillery", "Event Space", "Fair"),
    *("Monument / Landmark", "Social Club", "Winery"),
    *("Bed & Breakfast", "Bike Rental / Bike Share", "Hostel", "Hotel", "Rental Car Location", "Resort"),
)
# Leaves of other roots that are transit or workplaces: a bridge is crossed, and at the rest most check-ins are of one
# person at one address (138 of 139 under IT Services).
CONTEXT_LEAVES = ("Bridge", "Construction & Landscaping", "IT Services", "Real Estate Office")


def read_nyc(folder: str | Path) -> Raw:
    """Read the folder foursquare_nyc.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file without rows, or a column is missing.
    """
    venues = _venues(_table(Path(folder), "venues.tsv"))
    table = _table(Path(folder), "checkins.tsv")
    need(table, "user_id", "poi_id", "local_time", "weather")
    frame = table.frame.rename({"user_id": "user", "poi_id": "item", "local_time": "time"})
    # A venue that stands there twice must not double its visits.
    categories = venues.frame.select("item", "root", "leaf").unique("item", keep="first", maintain_order=True)
    frame = frame.join(categories, on="item", how="left", maintain_order="left")
    visits = _checked_visits(Table(frame, table.bad, table.rows, table.file))
    return Raw(
        events=_events(visits.frame),
        items=_items(venues.frame),
        bad=pl.concat([visits.bad, venues.bad]),
        rows={visits.file: visits.rows, venues.file: venues.rows},
    )


def read_matdata(source: str | Path) -> Raw:
    """Read Foursquare_Sample.csv from a folder, or from the wheel that holds it. A session (tid) stands for a user.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file holds no row, or a column is missing.
    """
    table = _table(Path(source), "Foursquare_Sample.csv", ",")
    need(table, "tid", "lat_lon", "date_time", "rating", "price", "weather", "root_type", "type")
    place = pl.col("lat_lon").str.split(" ")
    frame = table.frame.drop("time").rename({"tid": "user", "date_time": "time", "root_type": "root", "type": "leaf"})
    frame = frame.with_columns(
        pl.format("{} {}", "lat_lon", "leaf").alias("item"),
        place.list.get(0, null_on_oob=True).alias("lat"),
        place.list.get(1, null_on_oob=True).alias("lon"),
    )
    visits = _checked_visits(_checked_venues(Table(frame, table.bad, table.rows, table.file)))
    items = _items(visits.frame.unique("item", keep="first", maintain_order=True))
    return Raw(_events(visits.frame), items, visits.bad, {visits.file: visits.rows})


def _table(source: Path, name: str, separator: str = "\t") -> Table:
    found = find(source, name)
    if found is None:
        raise FileNotFoundError(f"{source} holds no {name} or {name}.gz")
    return read_table(*found, separator=separator)


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64, strict=False)


def _venues(table: Table) -> Table:
    need(table, "poi_id", "lat", "lon", "category", "root_category", "price", "rating")
    frame = table.frame.rename({"poi_id": "item", "root_category": "root", "category": "leaf"})
    return _checked_venues(Table(frame, table.bad, table.rows, table.file))


def _checked_venues(table: Table) -> Table:
    price, rating = _number("price"), _number("rating")
    checks = (
        (pl.col("item") == "", "no venue id"),
        (pl.col("root").str.strip_chars() == "", "no root category"),
        (pl.col("leaf").str.strip_chars() == "", "no category"),
        (~_number("lat").is_between(-90, 90), "no latitude"),
        (~_number("lon").is_between(-180, 180), "no longitude"),
        (~((price == -1) | price.is_between(1, 4)), "price is neither -1 nor 1 to 4"),
        (~((rating == -1) | rating.is_between(0, 10)), "rating is neither -1 nor 0 to 10"),
    )
    return set_aside(table, first_reason(*checks))


def _checked_visits(table: Table) -> Table:
    time = pl.col("time").str.to_datetime(TIME_FORMAT, strict=False)
    checks = (
        (pl.col("user") == "", "no user or session"),
        (pl.col("item") == "", "no venue id"),
        (pl.col("leaf").is_null(), "its venue has no good row in the file of venues"),
        (time.dt.epoch("s") < 0, "the time is not YYYY-MM-DD HH:MM:SS, or before 1970"),
    )
    table = set_aside(table, first_reason(*checks))
    return Table(table.frame.with_columns(time), table.bad, table.rows, table.file)


def may_be_asked_for(root: pl.Expr, leaf: pl.Expr) -> pl.Expr:
    """Whether a venue of these categories may be a target; see `CONTEXT_ROOTS`."""
    return (~root.is_in(CONTEXT_ROOTS) | leaf.is_in(SERVICES)) & ~leaf.is_in(CONTEXT_LEAVES)


def _events(visits: pl.DataFrame) -> pl.DataFrame:
    weather = pl.when(pl.col("weather") != "Unknown").then(pl.col("weather")).otherwise(pl.lit(""))
    target = may_be_asked_for(pl.col("root"), pl.col("leaf"))
    return completed(
        visits.select("user", "item", *clock(pl.col("time")), weather.alias("weather"), target.alias("target"))
    )


def _items(venues: pl.DataFrame) -> pl.DataFrame:
    known = (
        (pl.when(_number(name) != -1).then(_number(name)) if name in ("price", "rating") else _number(name))
        .cast(dtype)
        .alias(name)
        for name, dtype in VENUE_SCHEMA.items()
    )
    categories = pl.concat_list("root", "leaf").alias("categories")
    return venues.select("item", pl.lit("").alias("title"), categories, *known)
