"""MovieLens atomic files of both makers, from a folder and from a wheel."""

import zipfile

import polars as pl
import pytest

from recllm.data.movielens import read_movielens

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
RATINGS = INTER + "1\t10\t3\t881250949\n1\t20\t5\t881250949.0\n2\t10\t1\t881250950\n"
ITEM_100K = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
FILMS = ITEM_100K + "10\tToy Story\t1995\tAnimation Children's Comedy\n20\tunkonwn\tunkonwn\t\n"
FILMS_1M = "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n10\tToy Story\t1995\tComedy\r\n"


def _folder(folder, inter=RATINGS, item=FILMS):
    (folder / "ml-100k.inter").write_text(inter)
    (folder / "ml-100k.item").write_text(item)
    return folder


def test_by_hand(tmp_path):
    raw = read_movielens(_folder(tmp_path), "ml-100k")
    assert raw.events.rows() == [("1", "10", 881250949), ("1", "20", 881250949), ("2", "10", 881250950)]
    assert raw.items.select("item", "title", "categories", "year").rows() == [
        ("10", "Toy Story", ["Animation", "Children's", "Comedy"], 1995),
        ("20", "unkonwn", [], None),
    ]
    assert raw.rows == {"ml-100k.inter": 3, "ml-100k.item": 2} and raw.bad.height == 0 and raw.time == "seconds"


def test_other_column_names_and_line_ends(tmp_path):
    raw = read_movielens(_folder(tmp_path, RATINGS.replace("\n", "\r\n"), FILMS_1M), "ml-100k")
    assert raw.items.select("item", "title", "categories", "year").rows() == [("10", "Toy Story", ["Comedy"], 1995)]
    assert raw.events.height == 3


def test_ratings_below_the_floor_are_no_events(tmp_path):
    assert read_movielens(_folder(tmp_path), "ml-100k", min_rating=3.0).events["item"].to_list() == ["10", "20"]


def test_wheel_equals_folder(tmp_path):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/ml-100k/ml-100k.inter", RATINGS)
        archive.writestr("pkg/ml-100k/ml-100k.item", FILMS)
        archive.writestr("pkg/ml-1m/ml-1m.inter", "other")
    (tmp_path / "folder").mkdir()
    folder = read_movielens(_folder(tmp_path / "folder"), "ml-100k")
    assert read_movielens(wheel, "ml-100k").events.equals(folder.events)


def test_malformed_rows(tmp_path):
    bad = "\t10\t3\t1\n1\t\t3\t1\n1\t10\tgood\t1\n1\t10\t3\tinf\n1\t10\t3\t-1\n1\t10\t3\n1\t10\tnan\t1\n1\t10\t3\tnan\n"
    raw = read_movielens(_folder(tmp_path, RATINGS + bad, FILMS + "\tNo key\t1995\tDrama\n"), "ml-100k")
    assert raw.events.height == 3
    ratings = raw.bad.filter(pl.col("file") == "ml-100k.inter")
    assert ratings["row"].to_list() == list(range(5, 13))
    wanted = ["empty user_id", "empty item_id", "rating is not a number", "timestamp is no time"]
    assert ratings["reason"].to_list()[:4] == wanted
    assert raw.bad.filter(pl.col("file") == "ml-100k.item").rows() == [("ml-100k.item", 4, "empty item_id")]


def test_missing_files_and_columns(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no ml-1m\.inter"):
        read_movielens(_folder(tmp_path), "ml-1m")
    with pytest.raises(ValueError, match=r"ml-100k\.inter lacks the column\(s\) timestamp"):
        read_movielens(_folder(tmp_path, inter="user_id:token\titem_id:token\trating:float\n1\t2\t3\n"), "ml-100k")
    with pytest.raises(ValueError, match=r"ml-100k\.item lacks the column\(s\) genre"):
        read_movielens(_folder(tmp_path, item="item_id:token\tmovie_title:token\n1\tx\n"), "ml-100k")
    with pytest.raises(ValueError, match=r"ml-100k\.inter holds no rows"):
        read_movielens(_folder(tmp_path, inter=INTER), "ml-100k")
