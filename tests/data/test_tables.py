"""Delimited text: every malformed row is found and named, nothing else is lost."""

import gzip
import zipfile

import polars as pl
import pytest

from recllm.data.tables import find, first_reason, need, read_table, set_aside


def test_good_rows_pass_and_malformed_ones_are_named():
    content = b"a:token\tb:float\n1\t2\n\n3\n4\t5\t6\n \n\t7\n8\t9"
    table = read_table("f.tsv", content, typed_header=True)
    assert table.frame.rows() == [(2, "1", "2"), (7, "", "7"), (8, "8", "9")]
    assert table.bad.rows() == [("f.tsv", 4, "1 fields, the header has 2"), ("f.tsv", 5, "3 fields, the header has 2")]
    assert table.rows == 5


def test_quotes_line_ends_and_marks_are_plain_text():
    content = '\ufeffa\tb\r\n"x\ty"\r\n\'\t#\r\n'.encode()
    assert read_table("f", content).frame.select("a", "b").rows() == [('"x', 'y"'), ("'", "#")]


def test_rows_that_are_not_utf8_are_set_aside():
    table = read_table("f", "a\tb\né\t�\n".encode() + b"\xff\t1\n2\t\xc3\n")
    assert table.bad["row"].to_list() == [2, 3, 4]  # the replacement character itself is then in doubt too
    assert set(table.bad["reason"]) == {"not UTF-8"}
    assert read_table("f", "a\tb\né\t�\n".encode()).bad.height == 0


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a\tb", b"a\tb\n", b"a\tb\n\n \n"])
def test_empty_files_are_an_error(content):
    with pytest.raises(ValueError, match=r"f\.tsv holds no rows"):
        read_table("f.tsv", content)


def test_headers_must_be_clear():
    with pytest.raises(ValueError, match="names a column twice"):
        read_table("f.tsv", b"a:token\ta:float\n1\t2\n", typed_header=True)
    with pytest.raises(ValueError, match=r"f\.tsv lacks the column\(s\) c, d; its header has a, b"):
        need(read_table("f.tsv", b"a\tb\n1\t2\n"), "a", "c", "d")


def test_set_aside_gives_the_first_reason_and_keeps_line_order():
    table = read_table("f", b"a\tb\n1\n\t\nx\t1\n2\t3\n")
    number = pl.col("a").cast(pl.Int64, strict=False)
    table = set_aside(table, first_reason((pl.col("a") == "", "empty"), (number < 0, "no number")))
    assert [row[1:] for row in table.bad.rows()] == [(2, "1 fields, the header has 2"), (3, "empty"), (4, "no number")]
    assert table.frame.select("a", "b").rows() == [("2", "3")]
    assert table.rows == 4


def test_find_in_folder_and_wheel(tmp_path):
    (tmp_path / "x.inter.gz").write_bytes(gzip.compress(b"hello"))
    assert find(tmp_path, "x.inter") == ("x.inter.gz", b"hello")
    assert find(tmp_path, "y.inter") is None
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deep/down/x.inter", "hi")
        archive.writestr("z/z.inter", "1")
        archive.writestr("../z.inter", "2")
    assert find(wheel, "x.inter") == ("x.inter", b"hi")
    with pytest.raises(ValueError, match="several files"):
        find(wheel, "z.inter")


def test_find_names_what_is_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find(tmp_path / "no", "x")
    whole = gzip.compress(b"hello" * 1000)
    (tmp_path / "x.gz").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"x\.gz is not a whole gzip"):
        find(tmp_path, "x")
    (tmp_path / "x.gz").write_bytes(b"plain")
    with pytest.raises(ValueError, match=r"x\.gz is not a whole gzip"):
        find(tmp_path, "x")
    (tmp_path / "y.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"y\.zip is not a readable zip"):
        find(tmp_path / "y.zip", "x")
    with pytest.raises(ValueError, match="neither a folder"):
        find(tmp_path / "x.gz", "x")
