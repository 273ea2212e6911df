"""JSON lines: the fast way and the careful way agree, and nothing in a line can do more than be set aside."""

import gzip
import json

import polars as pl
import pytest

from recllm.data.jsonl import read_json_lines

FIELDS = {"id": pl.String, "t": pl.Int64, "c": pl.List(pl.String)}


def _read(tmp_path, content, **kwargs):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    return read_json_lines(path, FIELDS, **kwargs)


def test_fields_are_typed_and_others_ignored(tmp_path):
    lines = [{"id": "a", "t": 1, "c": ["x"], "more": {"deep": [1]}}, {"id": 7}, {}, {"t": None, "c": []}]
    table = _read(tmp_path, "\n".join(map(json.dumps, lines)).encode())
    assert table.frame.rows() == [(1, "a", 1, ["x"]), (2, "7", None, None), (3, None, None, None), (4, None, None, [])]
    assert table.frame.schema == {"_line": pl.Int64, **FIELDS}
    assert (table.rows, table.bad.height) == (4, 0)


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_blocks_do_not_matter(tmp_path, block_bytes, ending):
    lines = [b'{"id": "a", "t": 1}', b"", b'{"id": "b"', b'{"id": "c", "c": ["\xc3\xa9"]}', b"  ", b'{"id": "d"}']
    table = _read(tmp_path, ending.join(lines), block_bytes=block_bytes)
    assert table.frame.select("_line", "id").rows() == [(1, "a"), (4, "c"), (6, "d")]
    assert table.bad["row"].to_list() == [3]
    assert table.rows == 4


def test_one_bad_line_changes_nothing_for_the_good_ones(tmp_path):
    lines = [json.dumps({"id": f"i{i}", "t": i, "c": ["x"] * (i % 3)}).encode() for i in range(200)]
    clean = _read(tmp_path, b"\n".join(lines))
    dirty = _read(tmp_path, b"\n".join([*lines, b"{"]))
    assert dirty.frame.equals(clean.frame)
    assert dirty.bad["row"].to_list() == [201]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "a", "t": ', "JSONDecodeError"),
        (b'{"id": "a"} {"id": "b"}', "JSONDecodeError"),
        (b"['id', 'a']", "JSONDecodeError"),
        (b"[1, 2]", "not an object but a list"),
        (b'"text"', "not an object but a str"),
        (b"null", "not an object but a NoneType"),
        (b'{"id": "\xff"}', "UnicodeDecodeError"),
        (b'{"t": "soon"}', "t is a str"),
        (b'{"t": 1.5}', "t is a float"),
        (b'{"t": true}', "t is a bool"),
        (b'{"t": 9223372036854775808}', "t is a int"),
        (b'{"t": ' + b"9" * 5000 + b"}", "integer string conversion"),
        (b'{"c": "text"}', "c is a str"),
        (b"[" * 200_000, "RecursionError"),
        (b'{"id":' * 200_000, "RecursionError"),
    ],
)
def test_malformed_lines_are_set_aside_with_a_reason(tmp_path, line, reason):
    table = _read(tmp_path, b'{"id": "a"}\n' + line + b'\n{"id": "b"}')
    assert table.frame["id"].to_list() == ["a", "b"]
    assert table.bad.select("file", "row").rows() == [("x.json", 2)]
    assert reason in table.bad["reason"].item()


def test_a_lone_surrogate_does_not_stop_the_careful_way(tmp_path):
    table = _read(tmp_path, b'{"id": "\\ud800"}\n{\n{"id": "b"}')
    assert table.frame["id"].to_list() == ["b"]
    assert table.bad["row"].to_list() == [1, 2]


def test_python_literals_are_data_never_code(tmp_path):
    marker = tmp_path / "touched"
    lines = [
        "{'id': 'it\\'s', 't': 3, 'c': [], 'price': 1.5, 'related': {'also': ['x']}}",
        '{"id": "json", "c": null}',
        f"{{'id': __import__('pathlib').Path({str(marker)!r}).touch()}}",
        "{'id': 'a'}.__class__",
        "{'id': 'a'",
        "('id', 'a')",
        "{'id': " + "(" * 5000 + "}",
        "-" * 100_000 + "1",
        "{'id': 'nul\\x00'}",
        "{'id': 'odd \\escape'}",
    ]
    table = _read(tmp_path, "\n".join(lines).encode(), literal=True)
    assert table.frame["id"].to_list() == ["it's", "json", "nul\x00", "odd \\escape"]
    assert table.bad["row"].to_list() == [3, 4, 5, 6, 7, 8]
    assert not marker.exists()


def test_nested_lists_are_typed(tmp_path):
    fields = {"c": pl.List(pl.List(pl.String))}
    path = tmp_path / "x.json"
    path.write_text("{'c': [['a', 'b'], []]}\n{'c': ['a']}\n{}")
    table = read_json_lines(path, fields, literal=True)
    assert table.frame["c"].to_list() == [[["a", "b"], []], None]
    assert table.bad["row"].to_list() == [2]


def test_gzip_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "x.json.gz"
    content = b'{"id": "a"}\n' * 50_000
    path.write_bytes(gzip.compress(content))
    assert read_json_lines(path, FIELDS).rows == 50_000
    path.write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(ValueError, match="not a whole gzip"):
        read_json_lines(path, FIELDS)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole gzip"):
        read_json_lines(path, FIELDS)
    with pytest.raises(FileNotFoundError):
        read_json_lines(tmp_path / "no.json", FIELDS)


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_empty_files_are_an_error(tmp_path, content):
    with pytest.raises(ValueError, match="holds no rows"):
        _read(tmp_path, content)
