import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recllm.sid.table import CODES_FILE, TABLE_FILE, SidTable

CODES = np.array([[0, 0, 0], [0, 0, 1], [3, 11, 2], [1, 2, 3]])
SIZES = (4, 12, 5)


@pytest.fixture
def table() -> SidTable:
    return SidTable(CODES, SIZES)


def test_items_and_sids_are_a_bijection(table: SidTable) -> None:
    assert [table.item(table.sid(item)) for item in range(4)] == [0, 1, 2, 3]
    assert table.sid(2) == (3, 11, 2)
    assert table.item((3, 11, 3)) is None
    assert table.item(None) is None
    assert len(table) == 4 and table.levels == 3
    with pytest.raises(IndexError, match="item 4"):
        table.sid(4)
    with pytest.raises(IndexError, match="item -1"):
        table.text(-1)


def test_text_is_parsed_back(table: SidTable) -> None:
    assert table.text(2) == "<a_3><b_11><c_2>"
    assert [table.item(table.parse(table.text(item))) for item in range(4)] == [0, 1, 2, 3]
    assert table.parse("<a_3><b_11><c_4>") == (3, 11, 4), "well formed, though no item has it"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a_3><b_11>",
        "<a_3><b_11><c_2><d_0>",
        "<a_3><b_11><c_2> ",
        " <a_3><b_11><c_2>",
        "<a_3><b_11><c_2>\n",
        "<a_3><c_2><b_11>",
        "<a_03><b_11><c_2>",
        "<a_4><b_11><c_2>",
        "<a_-1><b_11><c_2>",
        "<a_٣><b_11><c_2>",
        "<a_" + "9" * 5000 + "><b_11><c_2>",
        None,
        7,
        b"<a_3><b_11><c_2>",
    ],
)
def test_anything_but_one_sid_is_none(table: SidTable, text: object) -> None:
    assert table.parse(text) is None


@given(st.text(alphabet=st.sampled_from("<>abc_0123456789 ٣\n"), max_size=40) | st.text())
def test_parse_never_raises_and_only_accepts_what_it_writes(text: str) -> None:
    table = SidTable(CODES, SIZES)
    sid = table.parse(text)
    if sid is not None:
        assert "".join(f"<{letter}_{code}>" for letter, code in zip("abc", sid, strict=True)) == text


def test_tokens_are_in_level_order_and_cover_every_text(table: SidTable) -> None:
    tokens = table.tokens()
    assert len(tokens) == len(set(tokens)) == sum(SIZES)
    assert tokens[:5] == ["<a_0>", "<a_1>", "<a_2>", "<a_3>", "<b_0>"] and tokens[-1] == "<c_4>"
    assert {token for item in range(4) for token in re.findall("<[^>]*>", table.text(item))} <= set(tokens)


def test_two_items_with_one_sid_are_named() -> None:
    codes_NL = np.arange(50)[:, None] % 49
    with pytest.raises(ValueError, match=r"items 0 and 49 share the sid \(0,\)"):
        SidTable(codes_NL, (50,))


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 4]], (1, 4), "item 0 has code 4 on level b"),
        ([[0, -1]], (1, 4), "item 0 has code -1"),
        ([[0, 1]], (1, 4, 2), "shape"),
        ([[0.0, 1.0]], (1, 4), "integers"),
        ([[0] * 9], (1,) * 9, "1 to 8 levels"),
        ([[0, 0]], (0, 1), "at least one code"),
    ],
)
def test_bad_codes_are_refused(codes: list, sizes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SidTable(np.array(codes), sizes)


def test_save_and_load_give_the_same_table(table: SidTable, tmp_path: Path) -> None:
    table.save(tmp_path / "new" / "folder")
    loaded = SidTable.load(tmp_path / "new" / "folder")
    assert loaded == table and loaded.hash == table.hash
    assert loaded.codes_NL.dtype == np.int32
    assert np.array_equal(loaded.codes_NL, CODES)


def test_the_hash_sees_codes_order_and_sizes(table: SidTable) -> None:
    assert SidTable(CODES.astype(np.uint8), SIZES).hash == table.hash
    assert SidTable(CODES[::-1], SIZES).hash != table.hash
    assert SidTable(CODES, (4, 12, 6)).hash != table.hash


def test_codes_cannot_be_changed_behind_the_hash(table: SidTable) -> None:
    with pytest.raises(ValueError, match="read-only"):
        table.codes_NL[0, 0] = 1
    source = CODES.copy()
    copied = SidTable(source, SIZES)
    source[0, 0] = 3
    assert copied.sid(0) == (0, 0, 0)


def test_altered_or_missing_files_are_refused(table: SidTable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train_sid_tokenizer"):
        SidTable.load(tmp_path)
    table.save(tmp_path)
    SidTable(CODES[::-1], SIZES).save(tmp_path / "other")
    codes = (tmp_path / CODES_FILE).read_bytes()
    (tmp_path / CODES_FILE).write_bytes((tmp_path / "other" / CODES_FILE).read_bytes())
    with pytest.raises(ValueError, match="do not belong together"):
        SidTable.load(tmp_path)
    (tmp_path / CODES_FILE).write_bytes(codes[:20])
    with pytest.raises(ValueError, match="damaged"):
        SidTable.load(tmp_path)
    for content in ("{", "[]", '{"format": 1}', '{"format": 1, "level_sizes": ["4", 12, 5]}', '{"format": 2}'):
        (tmp_path / TABLE_FILE).write_text(content)
        with pytest.raises(ValueError, match=TABLE_FILE):
            SidTable.load(tmp_path)


SHARED = np.array([[1, 2], [0, 0], [1, 2], [3, 3], [1, 2], [0, 1]])


def test_a_shared_table_answers_with_all_items_behind_a_sid() -> None:
    table = SidTable(SHARED, (4, 4), shared=True)
    for sid in {tuple(codes) for codes in SHARED.tolist()}:
        twins = tuple(item for item in range(6) if table.sid(item) == sid)
        assert table.items(sid) == twins and twins == tuple(sorted(twins))
    assert table.items(table.parse(table.text(2))) == (0, 2, 4)
    assert table.items((2, 2)) == () and table.items(None) == ()
    with pytest.raises(ValueError, match="may share a sid"):
        table.item((0, 0))
    with pytest.raises(ValueError, match=r"items 0 and 2 share the sid \(1, 2\)"):
        SidTable(SHARED, (4, 4))


def test_items_of_a_table_that_is_not_shared(table: SidTable) -> None:
    assert [table.items(table.sid(item)) for item in range(4)] == [(0,), (1,), (2,), (3,)]
    assert table.items((3, 11, 3)) == ()


def test_shared_is_saved_loaded_and_part_of_the_hash(table: SidTable, tmp_path: Path) -> None:
    shared = SidTable(SHARED, (4, 4), shared=True)
    shared.save(tmp_path / "shared")
    loaded = SidTable.load(tmp_path / "shared")
    assert loaded == shared and loaded.shared and loaded.items((1, 2)) == (0, 2, 4)
    assert SidTable(CODES, SIZES, shared=True).hash != table.hash
    description = (tmp_path / "shared" / TABLE_FILE).read_text()
    for other in ("false", '"yes"'):
        (tmp_path / "shared" / TABLE_FILE).write_text(description.replace("true", other))
        with pytest.raises(ValueError):
            SidTable.load(tmp_path / "shared")


def test_hash_and_file_of_a_table_that_is_not_shared_are_what_they_were(table: SidTable, tmp_path: Path) -> None:
    assert table.hash == "549bfddb5f86b2b9a29b1173498264a47337cc934d67860f6f8a8bbabbbc8941"
    table.save(tmp_path)
    assert "shared" not in (tmp_path / TABLE_FILE).read_text() and not SidTable.load(tmp_path).shared
