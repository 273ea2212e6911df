"""Foursquare check-ins in both layouts: the same rows give the same visits, and what is nobody's need is no target."""

import gzip
import zipfile

import polars as pl
import pytest

from recllm.data.checkins import SCHEMA, VENUE_SCHEMA
from recllm.data.foursquare import CONTEXT_LEAVES, CONTEXT_ROOTS, SERVICES, may_be_asked_for, read_matdata, read_nyc

VENUES = "poi_id\tlat\tlon\tcategory\troot_category\tprice\trating\n"
VISITS = "user_id\tpoi_id\tlocal_time\tweather\n"
SAMPLE = "tid,lat_lon,date_time,time,rating,price,weather,day,root_type,type\n"
PLACES = {
    "7": ("40.83", "-73.94", "Home (private)", "Residence", "-1", "-1.0"),
    "9": ("40.76", "-73.88", "Deli / Bodega", "Food", "1", "8.2"),
    "4": ("40.75", "-73.97", "Hotel", "Travel & Transport", "-1", "-1.0"),
}
LOG = [("6", "7", "2012-11-12 05:17:18", "Clear"), ("6", "9", "2012-11-17 23:30:00", "Unknown"),
       ("6", "4", "2012-11-18 00:00:00", "Snow"), ("8", "9", "2012-11-12 12:00:00", "Rain")]  # fmt: skip


def write_nyc(folder, visits=LOG, venues=None, extra_venues="", extra_visits=""):
    folder.mkdir(exist_ok=True)
    places = PLACES if venues is None else venues
    rows = "".join("\t".join((key, *facts)) + "\n" for key, facts in places.items())
    (folder / "venues.tsv.gz").write_bytes(gzip.compress((VENUES + rows + extra_venues).encode()))
    rows = "".join("\t".join(row) + "\n" for row in visits)
    (folder / "checkins.tsv.gz").write_bytes(gzip.compress((VISITS + rows + extra_visits).encode()))
    return folder


def sample_row(tid, place, stamp, weather):
    lat, lon, leaf, root, price, rating = PLACES[place]
    return f"{tid},{lat} {lon},{stamp},0,{rating},{price},{weather},Monday,{root},{leaf}\n"


def write_sample(folder, extra=""):
    folder.mkdir(exist_ok=True)
    (folder / "Foursquare_Sample.csv").write_text(SAMPLE + "".join(sample_row(*row) for row in LOG) + extra)
    return folder


def test_by_hand(tmp_path):
    raw = read_nyc(write_nyc(tmp_path))
    assert raw.events.select("user", "item", "hour", "weekday", "weather", "target").rows() == [
        ("6", "7", pytest.approx(5 + 17 / 60 + 18 / 3600), 0, "Clear", False),
        ("6", "9", 23.5, 5, "", True),
        ("6", "4", 0.0, 6, "Snow", True),
        ("8", "9", 12.0, 0, "Rain", True),
    ]
    assert raw.events["timestamp"].to_list() == [1352697438, 1353195000, 1353196800, 1352721600]
    assert raw.items.select("item", "title", "categories", "lat", "lon", "price", "rating").rows() == [
        ("7", "", ["Residence", "Home (private)"], 40.83, -73.94, None, None),
        ("9", "", ["Food", "Deli / Bodega"], 40.76, -73.88, 1.0, pytest.approx(8.2)),
        ("4", "", ["Travel & Transport", "Hotel"], 40.75, -73.97, None, None),
    ]
    assert (raw.rows, raw.time, raw.bad.height) == ({"checkins.tsv.gz": 4, "venues.tsv.gz": 3}, "seconds", 0)
    assert {name: raw.items.schema[name] for name in VENUE_SCHEMA} == VENUE_SCHEMA
    context = {name: kind for name, kind in SCHEMA.items() if name not in ("user_id", "item_id", "fold")}
    assert {name: raw.events.schema[name] for name in context} == context


def test_both_layouts_tell_the_same(tmp_path):
    nyc, sample = read_nyc(write_nyc(tmp_path / "a")), read_matdata(write_sample(tmp_path / "b"))
    assert sample.events.drop("item").equals(nyc.events.drop("item"))
    assert sample.items.drop("item").equals(nyc.items.drop("item"))
    assert sample.items["item"].to_list() == [
        "40.83 -73.94 Home (private)",
        "40.76 -73.88 Deli / Bodega",
        "40.75 -73.97 Hotel",
    ]
    assert sample.events["item"].to_list() == [sample.items["item"][place] for place in (0, 1, 2, 1)]


def test_two_kinds_of_place_at_one_spot_are_two_venues(tmp_path):
    row = (
        sample_row("8", "9", "2012-11-12 13:00:00", "Rain").replace("Deli / Bodega", "Bar").replace("Food", "Nightlife")
    )
    assert read_matdata(write_sample(tmp_path, row)).items.height == 4


def test_the_wheel_equals_the_folder(tmp_path):
    folder = write_sample(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("matdata/assets/sample/Foursquare_Sample.csv", (folder / "Foursquare_Sample.csv").read_bytes())
        archive.writestr("matdata/assets/sample/train.csv", "other")
    assert read_matdata(tmp_path / "x.whl").events.equals(read_matdata(folder).events)


def test_malformed_visits_are_set_aside_with_their_line(tmp_path):
    noon = "2012-11-12 12:00:00"
    bad = [("", "9", noon), ("8", "", noon), ("8", "5", noon)]
    bad += [("8", "9", time) for time in ("2012-13-12 12:00:00", "1912-11-12 12:00:00", "")]
    bad = [(*row, "Rain") for row in bad]
    raw = read_nyc(write_nyc(tmp_path, [*LOG, *bad], extra_visits="8\t9\n"))
    assert raw.events.height == 4
    no_time = "the time is not YYYY-MM-DD HH:MM:SS, or before 1970"
    assert raw.bad.rows() == [
        ("checkins.tsv.gz", 6, "no user or session"),
        ("checkins.tsv.gz", 7, "no venue id"),
        ("checkins.tsv.gz", 8, "its venue has no good row in the file of venues"),
        ("checkins.tsv.gz", 9, no_time),
        ("checkins.tsv.gz", 10, no_time),
        ("checkins.tsv.gz", 11, no_time),
        ("checkins.tsv.gz", 12, "2 fields, the header has 4"),
    ]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (0, "north", "no latitude"),
        (0, "90.5", "no latitude"),
        (0, "-90.5", "no latitude"),
        (1, "-181", "no longitude"),
        (1, "181", "no longitude"),
        (2, " ", "no category"),
        (3, "", "no root category"),
        (4, "0", "price is neither -1 nor 1 to 4"),
        (4, "nan", "price is neither -1 nor 1 to 4"),
        (5, "10.1", "rating is neither -1 nor 0 to 10"),
        (5, "good", "rating is neither -1 nor 0 to 10"),
    ],
)
def test_a_malformed_venue_takes_its_visits_along(tmp_path, column, value, reason):
    facts = list(PLACES["9"])
    facts[column] = value
    raw = read_nyc(write_nyc(tmp_path, venues={**PLACES, "9": tuple(facts)}))
    assert raw.bad.filter(pl.col("file") == "venues.tsv.gz").rows() == [("venues.tsv.gz", 3, reason)]
    assert raw.bad.filter(pl.col("file") == "checkins.tsv.gz")["row"].to_list() == [3, 5]
    assert raw.events["item"].to_list() == ["7", "4"]


def test_a_sample_row_without_a_position_is_malformed(tmp_path):
    row = sample_row("8", "9", "2012-11-12 13:00:00", "Rain")
    raw = read_matdata(write_sample(tmp_path, row.replace("40.76 -73.88", "40.76") + row.replace("40.76 ", "x ")))
    assert raw.bad.rows() == [
        ("Foursquare_Sample.csv", 6, "no longitude"),
        ("Foursquare_Sample.csv", 7, "no latitude"),
    ]
    assert raw.events.height == 4 and raw.rows == {"Foursquare_Sample.csv": 6}


def test_a_venue_listed_twice_does_not_double_its_visits(tmp_path):
    twice = "9\t1\t2\tBar\tNightlife Spot\t-1\t-1\n"
    raw = read_nyc(write_nyc(tmp_path, extra_venues=twice))
    assert raw.events.height == 4 and raw.events["target"].to_list() == [False, True, True, True]


def test_missing_files_and_columns_are_named(tmp_path):
    folder = write_nyc(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no Foursquare_Sample\.csv"):
        read_matdata(folder)
    (folder / "checkins.tsv.gz").write_bytes(gzip.compress(b"user_id\tlocal_time\n1\t2\n"))
    with pytest.raises(ValueError, match=r"checkins\.tsv\.gz lacks the column\(s\) poi_id, weather"):
        read_nyc(folder)
    (folder / "venues.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no venues\.tsv"):
        read_nyc(folder)


def test_homes_workplaces_and_transit_are_never_targets():
    pairs = {
        ("Residence", "Home (private)"): False,
        ("Residence", "Hotel"): True,  # a leaf that is a service is one under any root
        ("Professional & Other Places", "Office"): False,
        ("Professional & Other Places", "Tech Startup"): False,
        ("Professional & Other Places", "Doctor's Office"): True,
        ("Professional & Other Places", "A leaf nobody listed"): False,
        ("College & University", "College Residence Hall"): False,
        ("Travel & Transport", "Metro Station"): False,
        ("Travel & Transport", "Hotel"): True,
        ("Outdoors & Recreation", "Bridge"): False,
        ("Outdoors & Recreation", "Park"): True,
        ("Shop & Service", "IT Services"): False,
        ("A root nobody listed", "A leaf nobody listed"): True,
    }
    frame = pl.DataFrame(list(pairs), schema=["root", "leaf"], orient="row")
    assert frame.select(may_be_asked_for(pl.col("root"), pl.col("leaf")).alias("t"))["t"].to_list() == list(
        pairs.values()
    )


def test_the_categories_lists_name_real_ones(recllm_data):
    venues = pl.read_csv(recllm_data / "foursquare_nyc" / "venues.tsv.gz", separator="\t", infer_schema=False)
    assert set(CONTEXT_ROOTS) <= set(venues["root_category"])
    assert set(SERVICES) - set(venues["category"]) <= {"Mosque"}
    assert set(CONTEXT_LEAVES) <= set(venues["category"])
    under = venues.filter(pl.col("category").is_in(SERVICES))
    assert set(under["root_category"]) <= set(CONTEXT_ROOTS), "elsewhere a service needs no listing"
    raw = read_nyc(recllm_data / "foursquare_nyc")
    assert (raw.events.height, raw.items.height, raw.bad.height) == (52_148, 13_848, 0)
    assert raw.events["target"].sum() == 31_129
