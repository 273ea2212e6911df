import polars as pl
import pytest

from recllm.data.kuairec import read_kuairec

HEADER = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"


def view(user, video, ratio, stamp="1593878903.438") -> str:
    return f"{user},{video},1000,1000,2020-07-05 00:08:23.438,20200705,{stamp},{ratio}\n"


@pytest.fixture
def folder(tmp_path):
    """Made-up rows in the published layout."""
    rows = [view(1, 10, 1.5), view(1, 11, 1.0), view(1, 12, 1.01, 1593878999.9), view(2, 10, 0.0), view(2, 11, 7.25)]
    (tmp_path / "big_matrix.csv").write_text(HEADER + "".join(rows))
    (tmp_path / "item_categories.csv").write_text('video_id,feat\n10,[8]\n11,"[27, 9]"\n12,[]\n')
    (tmp_path / "item_daily_features.csv").write_text(
        "video_id,date,author_id,video_tag_name\n12,20200705,3,UNKNOWN\n12,20200706,3,street food\n11,20200705,4,cats\n"
    )
    levels = ",".join(f"{n}_level_category_id,{n}_level_category_name" for n in ("first", "second", "third"))
    (tmp_path / "kuairec_caption_category.csv").write_text(
        f"video_id,manual_cover_text,caption,topic_tag,{levels}\n"
        '10,UNKNOWN,"A cat, asleep\nin the sun",[],8,Pets,673,Cats,-124,UNKNOWN\n'
        "11,UNKNOWN,,[],-124,UNKNOWN,-124,UNKNOWN,-124,UNKNOWN\n"
    )
    return tmp_path


def test_only_views_watched_beyond_their_end_count(folder):
    raw = read_kuairec(folder)
    assert raw.events.rows() == [("1", "10", 1593878903), ("2", "11", 1593878903), ("1", "12", 1593878999)]
    assert read_kuairec(folder, min_watch_ratio=1.4).events["item"].to_list() == ["10", "11"]
    assert raw.bad.height == 0 and raw.rows["big_matrix.csv"] == 5 and raw.time == "seconds"


def test_views_of_one_second_keep_the_order_of_their_fractions(folder):
    rows = [view(1, 10, 2, 100.9), view(1, 11, 2, 100.1), view(1, 12, 2, 99.95), view(1, 13, 2, 100.1)]
    (folder / "big_matrix.csv").write_text(HEADER + "".join(rows))
    events = read_kuairec(folder).events
    assert events.rows() == [("1", "12", 99), ("1", "11", 100), ("1", "13", 100), ("1", "10", 100)]


def test_items_take_caption_and_names_first_then_tags(folder):
    items = {item: (title, categories) for item, title, categories in read_kuairec(folder).items.iter_rows()}
    assert items == {
        "10": ("A cat, asleep\nin the sun", ["Pets", "Cats"]),
        "11": ("cats", ["tag 27", "tag 9"]),
        "12": ("street food", []),
    }
    for name in ("item_categories.csv", "item_daily_features.csv", "kuairec_caption_category.csv"):
        (folder / name).unlink()
    assert read_kuairec(folder).items.height == 0


def test_malformed_rows_are_set_aside_with_their_line(folder):
    rows = [view(1, 10, 1.5), view("", 10, 2), view(1, 10, "much"), view(1, 10, 2, ""), "1,11,3\n", view(2, 11, 2)]
    (folder / "small_matrix.csv").write_text(HEADER + "".join(rows))
    raw = read_kuairec(folder, "small")
    assert raw.events["item"].to_list() == ["10", "11"]
    reasons = raw.bad.filter(pl.col("file") == "small_matrix.csv").select("row", "reason").rows()
    assert reasons == [
        (3, "no user_id"),
        (4, "watch_ratio is not a number"),
        (5, "timestamp is no time"),
        (6, "watch_ratio is not a number"),
    ]


def test_files_in_the_data_subfolder_are_found_and_errors_name_the_file(folder, tmp_path):
    inside = tmp_path / "KuaiRec" / "data"
    inside.mkdir(parents=True)
    (inside / "big_matrix.csv").write_text((folder / "big_matrix.csv").read_text())
    assert read_kuairec(inside.parent).events.height == 3
    with pytest.raises(FileNotFoundError, match=r"small_matrix\.csv is missing"):
        read_kuairec(inside.parent, "small")
    for text in ("", HEADER):
        (inside / "small_matrix.csv").write_text(text)
        with pytest.raises(ValueError, match="holds no rows"):
            read_kuairec(inside.parent, "small")
    (inside / "small_matrix.csv").write_text("user_id,video_id\n1,2\n")
    with pytest.raises(ValueError, match="lacks the column"):
        read_kuairec(inside.parent, "small")
