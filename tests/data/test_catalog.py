"""The catalogue loads as written and refuses ids with gaps."""

import polars as pl
import pytest

from recllm.data.catalog import SCHEMA, Catalog


def _frame(ids, titles=None, categories=None):
    titles = titles or [f"t{i}" for i in ids]
    categories = categories or [["c"] for _ in ids]
    return pl.DataFrame({"item_id": ids, "title": titles, "categories": categories}, schema=SCHEMA)


def test_load(tmp_path):
    frame = _frame([0, 1, 2], ["x", None, ""], [["a", "b"], None, []]).with_columns(year=pl.lit(1995))
    frame.write_parquet(tmp_path / "catalog.parquet")
    catalog = Catalog.load(str(tmp_path))
    assert len(catalog) == 3
    assert catalog.titles == ["x", "", ""]
    assert catalog.categories == [["a", "b"], [], []]
    assert catalog.frame["year"].to_list() == [1995] * 3


@pytest.mark.parametrize("ids", [[1, 2], [0, 2], [1, 0], [0, 0], [0, None], []])
def test_ids_must_run_from_zero(tmp_path, ids):
    _frame(ids).write_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(ValueError, match="0 to N-1"):
        Catalog.load(tmp_path)


def test_columns_must_be_there_and_typed(tmp_path):
    for frame in (_frame([0]).drop("title"), _frame([0]).cast({"item_id": pl.Int64})):
        frame.write_parquet(tmp_path / "catalog.parquet")
        with pytest.raises(ValueError, match="must be"):
            Catalog.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="data_prep"):
        Catalog.load(tmp_path / "nowhere")
