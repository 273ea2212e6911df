"""The flat arrays say what the rows said, and a wrong file is refused."""

import numpy as np
import polars as pl
import pytest

from recllm.data.interactions import Sequences


def _frame(users, items, times):
    return pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": times},
        schema={"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64},
    )


def test_load_by_hand(tmp_path):
    _frame([0, 0, 0, 2, 5, 5], [7, 8, 7, 1, 3, 2], [10, 10, 12, 5, 1, 2]).write_parquet(
        tmp_path / "interactions.parquet"
    )
    sequences = Sequences.load(tmp_path)
    assert len(sequences) == 3
    assert sequences.user_ids_U.tolist() == [0, 2, 5]
    assert sequences.offsets_U1.tolist() == [0, 3, 4, 6]
    assert [sequences.items(u).tolist() for u in range(3)] == [[7, 8, 7], [1], [3, 2]]
    assert sequences.timestamps(0).tolist() == [10, 10, 12]
    dtypes = [getattr(sequences, name).dtype for name in ("user_ids_U", "items_M", "timestamps_M", "offsets_U1")]
    assert dtypes == [np.int32, np.int32, np.int64, np.int64]
    assert np.shares_memory(sequences.items(0), sequences.items_M)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (_frame([1, 0], [0, 0], [1, 1]), "not sorted"),
        (_frame([0, 0], [0, 0], [2, 1]), "not sorted"),
        (_frame([0, 1, 0], [0, 0, 0], [1, 1, 1]), "not sorted"),
        (_frame([0], [-1], [1]), "negative"),
        (_frame([-1], [0], [1]), "negative"),
        (_frame([], [], []), "no event"),
        (_frame([0], [None], [1]), "item_id has nulls"),
        (_frame([0], [0], [1]).drop("timestamp"), "timestamp must be Int64"),
        (_frame([0], [0], [1]).cast({"item_id": pl.Int64}), "item_id must be Int32"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, frame, message):
    frame.write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(ValueError, match=rf"interactions\.parquet.*{message}"):
        Sequences.load(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_prep"):
        Sequences.load(tmp_path)


def test_leading_equals_its_twin():
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 9, n).tolist() for n in (4, 0, 7, 1)]
    sequences = Sequences.from_lists(histories)
    lengths = [2, 0, 7, 0]
    cut = sequences.leading(np.array(lengths))
    assert [cut.items(u).tolist() for u in range(4)] == [h[:n] for h, n in zip(histories, lengths, strict=True)]
    assert [cut.timestamps(u).tolist() for u in range(4)] == [list(range(n)) for n in lengths]
    assert cut.user_ids_U.tolist() == sequences.user_ids_U.tolist()
    for wrong in ([5, 0, 7, 1], [-1, 0, 7, 1], [1, 0, 7]):
        with pytest.raises(ValueError, match="lengths_U"):
            sequences.leading(np.array(wrong))
