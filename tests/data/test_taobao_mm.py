import numpy as np
import polars as pl
import pytest

from recllm.data.taobao_mm import read_taobao_mm, read_vectors

CLICK, NONE = [0, 1], [1, 0]
SAMPLES = {"label_0": pl.List(pl.Int8), "129_1": pl.Int64, "205": pl.Int64}
FEATURES = {"129_1": pl.Int64, "130_1": pl.Int64, "150_2_180": pl.List(pl.Int64), "151_2_180": pl.List(pl.Int64)}
RULES = {"min_item_clicks": 2, "min_history": 2}


def write(folder, name, rows, schema):
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / f"{name}.parquet")


def features(histories: dict[int, list[int] | None]):
    return [(user, 1, items, None if items is None else [7] * len(items)) for user, items in histories.items()]


@pytest.fixture
def folder(tmp_path):
    """Made-up rows in the published layout: items -5 and 20 qualify, 30 is not clicked in test, 40 too rarely."""
    train = [(CLICK, 1, -5), (NONE, 1, 20), (CLICK, 1, 20), (CLICK, 2, -5), (CLICK, 2, 30), (CLICK, 3, 30)]
    train += [(CLICK, 3, 20), (CLICK, 4, 40), (CLICK, 5, -5)]
    test = [(CLICK, 5, 20), (NONE, 6, -5), (CLICK, 6, 40), (CLICK, 7, -5)]
    write(tmp_path, "train_samples", train, SAMPLES)
    write(tmp_path, "test_samples", test, SAMPLES)
    histories = {1: [0, 0, 50, 51, 20], 2: [50, 52], 3: [51], 4: [50, 50], 5: [1, 1, 1]}
    write(tmp_path, "train_user_features", features(histories), FEATURES)
    write(tmp_path, "test_user_features", features({5: [53, 54, -5], 6: [50, 50], 7: [20, 55]}), FEATURES)
    write(tmp_path, "item_features", [(-5, 3), (20, 4), (50, 3)], {"205": pl.Int64, "206": pl.Int64})
    return tmp_path


def sequences(raw) -> dict[str, list[str]]:
    assert raw.time == "order"
    frame = raw.events
    for _, stamps in frame.group_by("user", maintain_order=True).agg("timestamp").rows():
        assert stamps == list(range(len(stamps)))
    return dict(frame.group_by("user", maintain_order=True).agg("item").rows())


def test_the_sampling_rules(folder):
    assert sequences(read_taobao_mm(folder, **RULES)) == {
        "1": ["50", "51", "20", "-5", "20"],  # padding is gone, clicks in the file's order
        "2": ["50", "52", "-5"],  # 30 does not qualify
        # 3 has too short a history; 4 clicked no chosen item; 6 none either
        "5": ["53", "54", "-5", "20"],  # test clicks take the place of train's
        "7": ["20", "55", "-5"],
    }
    few = sequences(read_taobao_mm(folder, **RULES | {"min_history": 3}))
    assert list(few) == ["1", "5"]


def test_draws_are_subsets_and_repeat(folder):
    whole = sequences(read_taobao_mm(folder, **RULES))
    one = sequences(read_taobao_mm(folder, items=1, seed=1, **RULES))
    assert one == sequences(read_taobao_mm(folder, items=1, seed=1, **RULES))
    targets = {items[-1] for items in one.values()}
    assert len(targets) == 1 and set(one) <= set(whole)
    some = sequences(read_taobao_mm(folder, users=2, **RULES))
    assert len(some) == 2 and all(whole[user] == items for user, items in some.items())
    narrow = sequences(read_taobao_mm(folder, sampled_history=True, min_item_clicks=2, min_history=2))
    # Histories are long enough before their items are thinned out: 2 stays with an empty one.
    assert narrow == {"1": ["20", "-5", "20"], "2": ["-5"], "5": ["-5", "20"], "7": ["20", "-5"]}


def test_items_have_their_category_and_vectors_their_row(folder):
    raw = read_taobao_mm(folder, **RULES)
    expected = [("-5", "", ["category 3"]), ("20", "", ["category 4"]), ("50", "", ["category 3"])]
    assert sorted(raw.items.rows()) == expected
    assert read_vectors(folder, ["-5"]) is None
    schema = {"205": pl.Int64, "205_c": pl.List(pl.Int8)}
    write(folder, "scl_embedding_int8_p90", [(20, [127, -127]), (99, [1, 1]), (-5, [0, 64])], schema)
    np.testing.assert_allclose(read_vectors(folder, ["-5", "77", "20"]), [[0, 64 / 127], [0, 0], [1, -1]], atol=1e-6)


def test_rows_with_holes_are_set_aside(folder):
    write(folder, "test_samples", [(CLICK, 7, -5), (CLICK, None, 20), (CLICK, 5, 20), (None, 5, 20)], SAMPLES)
    write(folder, "train_user_features", features({1: [50, 51], 2: None}), FEATURES)
    raw = read_taobao_mm(folder, **RULES)
    assert raw.bad.rows() == [
        ("test_samples.parquet", 4, "no label_0"),
        ("test_samples.parquet", 2, "no 129_1"),
        ("train_user_features.parquet", 2, "no 150_2_180"),
    ]
    assert sorted(sequences(raw)) == ["1", "5", "7"]
    assert raw.rows["test_samples.parquet"] == 4


def test_what_is_missing_is_named(folder):
    with pytest.raises(ValueError, match="no item has 9 clicks"):
        read_taobao_mm(folder, min_item_clicks=9)
    write(folder, "item_features", [(1,)], {"205": pl.Int64})
    with pytest.raises(ValueError, match=r"item_features\.parquet lacks the column\(s\) 206"):
        read_taobao_mm(folder)
    (folder / "test_samples.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_samples\.parquet is missing"):
        read_taobao_mm(folder)
