"""Each published layout of the Amazon reviews gives the same events and items."""

import gzip
import json

import polars as pl
import pytest

from recllm.data.amazon import detect_format, locate, read_amazon

EVENTS = [("u1", "B1", 100), ("u1", "B2", 100), ("u2", "B1", 90)]


def _lines(rows, dump=json.dumps):
    return "".join(f"{dump(row)}\n" for row in rows).encode()


def _folder_2014(folder, strict=False):
    reviews = [
        {"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 5.0, "helpful": [0, 1]} for u, i, t in EVENTS
    ]
    meta = [
        {"asin": "B1", "title": "It's <b>", "categories": [["Beauty", "Hair"], ["Beauty", "Nails"]], "brand": "O"},
        {"asin": "B2", "categories": [["Beauty"]], "price": 3.5, "salesRank": {"Beauty": 3}},
    ]
    (folder / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(_lines(reviews)))
    (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress(_lines(meta, json.dumps if strict else repr)))


def _folder_2018(folder):
    reviews = [{"reviewerID": u, "asin": i, "unixReviewTime": t, "verified": True} for u, i, t in EVENTS]
    meta = [
        {"asin": "B1", "title": "It's <b>", "category": ["Beauty", "Hair", "Nails"], "brand": "O", "rank": []},
        {"asin": "B2", "category": ["Beauty"], "also_buy": ["x"]},
    ]
    (folder / "Beauty_5.json").write_bytes(_lines(reviews))
    (folder / "meta_Beauty.json").write_bytes(_lines(meta))


def _folder_2023(folder):
    reviews = [{"user_id": u, "asin": "child", "parent_asin": i, "timestamp": t * 1000 + 999} for u, i, t in EVENTS]
    meta = [
        {"parent_asin": "B1", "title": "It's <b>", "categories": ["Beauty", "Hair", "Nails"], "store": "O"},
        {"parent_asin": "B2", "categories": ["Beauty"], "main_category": None, "details": {"a": "b"}},
    ]
    (folder / "Beauty.jsonl.gz").write_bytes(gzip.compress(_lines(reviews)))
    (folder / "meta_Beauty.jsonl").write_bytes(_lines(meta))


def _folder_tsv(folder):
    rows = "".join(f"{u}\t{i}\t{t}\n" for u, i, t in EVENTS)
    (folder / "interactions.tsv.gz").write_bytes(gzip.compress(f"user_id\titem_id\ttimestamp\n{rows}".encode()))
    items = "item_id\ttitle\tcategories\tbrand\nB1\tIt's <b>\tBeauty|Hair|Nails\tO\nB2\t\tBeauty\t\n"
    (folder / "items.tsv").write_text(items)
    (folder / "sid_rqvae.tsv.gz").write_bytes(gzip.compress(b"not for us"))


FOLDERS = {
    "2014": _folder_2014,
    "2014 strict": lambda folder: _folder_2014(folder, strict=True),
    "2018": _folder_2018,
    "2023": _folder_2023,
    "tsv": _folder_tsv,
}


@pytest.mark.parametrize("layout", FOLDERS)
def test_layouts_agree(tmp_path, layout):
    FOLDERS[layout](tmp_path)
    form = layout.split()[0]
    assert detect_format(tmp_path) == form
    for asked in ("auto", form):
        raw = read_amazon(tmp_path, asked)
        assert raw.events.rows() == EVENTS
        assert raw.events.schema["timestamp"] == pl.Int64
        assert raw.items["item"].to_list() == ["B1", "B2"]
        assert raw.items["title"].fill_null("").to_list() == ["It's <b>", ""]
        kept = [list(dict.fromkeys(names)) for names in raw.items["categories"].to_list()]
        assert kept == [["Beauty", "Hair", "Nails"], ["Beauty"]]
        assert raw.items["brand"].fill_null("").to_list() == ["O", ""]
        assert raw.bad.height == 0 and sorted(raw.rows.values()) == [2, 3] and raw.time == "seconds"


def test_sequences_have_an_order_and_no_times(tmp_path):
    (tmp_path / "sequences.tsv").write_text("user_id\titems\n7\t3 1 2\n8\t1\n9\t \n7\t5\n\t4\n")
    items = "item_id\ttitle\tcategories\n1\tOne\tTools,Tapes, Adhesives & Sealants,Tape\n2\tTwo\tTools\n"
    (tmp_path / "items.tsv").write_text(items)
    raw = read_amazon(tmp_path)
    assert raw.time == "order"
    assert raw.events.rows() == [("7", "3", 0), ("7", "1", 1), ("7", "2", 2), ("8", "1", 0)]
    reasons = [("sequences.tsv", 4, "empty items"), ("sequences.tsv", 5, "user_id has a row already")]
    assert raw.bad.rows() == [*reasons, ("sequences.tsv", 6, "empty user_id")]
    # A comma before a space belongs to the name.
    assert raw.items["categories"].to_list() == [["Tools", "Tapes, Adhesives & Sealants", "Tape"], ["Tools"]]


def test_malformed_rows_of_every_layout_are_named(tmp_path):
    good = {"reviewerID": "u", "asin": "B", "unixReviewTime": 5}
    wrong = [{**good, "reviewerID": ""}, {**good, "asin": None}, {**good, "unixReviewTime": -1}, {"asin": "B"}]
    wrong += [{**good, "asin": ["B"]}, {**good, "unixReviewTime": "soon"}]
    (tmp_path / "r.json").write_bytes(_lines([good, *wrong]) + b"{torn\n")
    (tmp_path / "meta_r.json").write_bytes(_lines([{"asin": "B", "title": "T"}, {"title": "no key"}]))
    raw = read_amazon(tmp_path)
    assert raw.events.rows() == [("u", "B", 5)]
    found = dict(raw.bad.filter(pl.col("file") == "r.json").select("row", "reason").rows())
    assert list(found) == [2, 3, 4, 5, 6, 7, 8]
    for row, reason in {2: "no reviewerID", 3: "no asin", 4: "no unixReviewTime", 5: "no reviewerID"}.items():
        assert found[row].startswith(reason)
    assert "asin" in found[6] and "unixReviewTime is a str" in found[7] and "JSONDecodeError" in found[8]
    assert raw.bad.filter(pl.col("file") == "meta_r.json").rows() == [("meta_r.json", 2, "no asin")]
    assert raw.rows == {"r.json": 8, "meta_r.json": 2}


def test_a_list_for_a_key_is_malformed_in_a_clean_file_too(tmp_path):
    rows = [{"reviewerID": u, "asin": i, "unixReviewTime": 5} for u, i in (("u", "B"), (["u"], "B"), ("u", {"a": 1}))]
    (tmp_path / "r.json").write_bytes(_lines(rows))
    (tmp_path / "meta_r.json").write_bytes(_lines([{"asin": "B"}]))
    assert read_amazon(tmp_path).bad["reason"].to_list() == ["reviewerID is no string", "asin is no string"]


def test_tsv_rows_without_a_time_are_malformed(tmp_path):
    (tmp_path / "interactions.tsv").write_text(
        "user_id\titem_id\ttimestamp\na\tx\t1.5\n\tx\t1\na\t\t1\na\tx\t-1\na\tx\t1\n"
    )
    (tmp_path / "items.tsv").write_text("item_id\ttitle\nx\tEx\n\tNo key\n")
    raw = read_amazon(tmp_path)
    assert raw.bad["row"].to_list() == [2, 3, 4, 5, 3]
    assert raw.events.rows() == [("a", "x", 1)]
    assert raw.items["categories"].to_list() == [[]]


def test_missing_and_unclear_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no known file.*it is empty"):
        read_amazon(tmp_path)
    (tmp_path / "interactions.tsv").write_text("user_id\titem_id\ttimestamp\na\tx\t1\n")
    with pytest.raises(FileNotFoundError, match=r"items\.tsv"):
        read_amazon(tmp_path)
    (tmp_path / "items.tsv").write_text("item_id\tname\nx\tEx\n")
    with pytest.raises(ValueError, match=r"items\.tsv lacks the column\(s\) title"):
        read_amazon(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"reviews\.jsonl"):
        read_amazon(tmp_path, "2023")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"meta_\*\.jsonl"):
        read_amazon(tmp_path, "2023")
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several files.*a\.jsonl, b\.jsonl\.gz"):
        read_amazon(tmp_path, "2023")
    with pytest.raises(ValueError, match="unknown format"):
        read_amazon(tmp_path, "2025")


def test_where_the_data_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("RECLLM_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="pass --data DIR, or set RECLLM_DATA"):
        locate("toy")
    (tmp_path / "toy").mkdir()
    monkeypatch.setenv("RECLLM_DATA", str(tmp_path))
    assert locate("toy") == tmp_path / "toy"
    assert locate("toy", tmp_path / "toy") == tmp_path / "toy"
    assert locate("toy", tmp_path) == tmp_path / "toy"
    with pytest.raises(FileNotFoundError, match="other is no folder"):
        locate("other")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        locate("toy", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "users", "items", "events", "unseen", "time"),
    [
        ("amazon2014-beauty", 22_328, 12_101, 198_185, 21, "seconds"),
        ("amazon2014-toy", 19_124, 11_758, 165_247, 0, "seconds"),
        ("amazon2014-health", 38_329, 18_427, 343_831, 0, "seconds"),
        ("amazon2018-scientific", 8_317, 4_344, 58_492, 0, "order"),
    ],
)
def test_real_sets_have_their_published_counts(recllm_data, name, users, items, events, unseen, time):
    raw = read_amazon(locate(name, recllm_data))
    assert (raw.events.height, raw.events["user"].n_unique(), raw.items.height) == (events, users, items)
    assert raw.items.height - raw.events["item"].n_unique() == unseen
    assert raw.time == time and raw.bad.height == 0
