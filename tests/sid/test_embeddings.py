from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recllm import assets
from recllm.data.catalog import Catalog
from recllm.sid.embeddings import embed_items, item_texts, load_embeddings, save_embeddings, with_positions


def catalog(titles: list[str], categories: list[list[str]]) -> Catalog:
    frame = pl.DataFrame(
        {"item_id": range(len(titles)), "title": titles, "categories": categories},
        schema={"item_id": pl.Int32, "title": pl.String, "categories": pl.List(pl.String)},
    )
    return Catalog(frame)


FILMS = catalog(
    ["Star Wars (1977)", "Star Trek (1979)", "Emma (1996)", "M (1931)", "", "Untitled"],
    [["Science Fiction", "War"], ["Science Fiction"], ["Drama", "Romance"], ["Crime"], ["Drama"], []],
)


def test_text_is_title_and_categories() -> None:
    assert item_texts(FILMS)[0] == "Star Wars (1977). Science Fiction, War"
    assert item_texts(FILMS)[4:] == ["Drama", "Untitled"]


def test_tfidf_gives_unit_vectors_and_puts_like_by_like() -> None:
    vectors, encoder = embed_items(FILMS, "tfidf", seed=0)
    assert encoder == "tfidf-svd" and vectors.dtype == np.float32 and len(vectors) == 6
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert np.array_equal(vectors, embed_items(FILMS, "tfidf", seed=0)[0])


def test_auto_falls_back_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(name: str) -> Path:
        raise assets.AssetError(f"{name}: the network is down")

    monkeypatch.setattr(assets, "fetch", out_of_reach)
    with pytest.warns(UserWarning, match="the network is down"):
        vectors, encoder = embed_items(FILMS, "auto")
    assert encoder == "tfidf-svd" and len(vectors) == 6
    with pytest.raises(assets.AssetError, match="the network is down"):
        embed_items(FILMS, "minilm")


def test_tiny_and_wordless_catalogues() -> None:
    assert embed_items(catalog(["Emma", "Emma"], [[], []]), "tfidf")[0].shape[0] == 2
    assert embed_items(catalog(["Emma"], [[]]), "tfidf")[0].shape[0] == 1
    vectors, _ = embed_items(catalog(["Emma", "Dune", "", "Emma Dune"], [[], [], [], []]), "tfidf")
    assert np.array_equal(vectors[2], np.zeros_like(vectors[2])), "no text, no direction"
    for titles in (["", ""], ["!!!", "..."]):
        with pytest.raises(ValueError, match="nothing to embed"):
            embed_items(catalog(titles, [[], []]), "tfidf")


def test_save_and_load(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    with pytest.raises(FileNotFoundError, match="train_sid_tokenizer"):
        load_embeddings(tmp_path)
    save_embeddings(tmp_path, vectors)
    assert np.array_equal(load_embeddings(tmp_path), vectors)


def test_positions_bring_near_items_of_one_text_together():
    frame = pl.DataFrame(
        {
            "item_id": range(4),
            "title": [""] * 4,
            "categories": [["Bar"]] * 4,
            "lat": [60.0, 60.0, 60.02, None],
            "lon": [10.0, 10.01, 10.0, None],
        }
    )
    text_ND = np.ones((4, 2), dtype=np.float32)
    found_ND = with_positions(text_ND, Catalog(frame), 0.5)
    assert found_ND.dtype == np.float32 and np.array_equal(found_ND[:, :2], text_ND)
    place_N2 = found_ND[:, 2:]
    # A degree of longitude is half as long at 60 north; the unknown place is the middle, the median of each.
    east, north = place_N2[1] - place_N2[0], place_N2[2] - place_N2[0]
    assert north[0] / east[1] == pytest.approx(4, rel=1e-3)
    assert np.array_equal(place_N2[3], [0.0, 0.0])
    assert np.sqrt((place_N2**2).mean()) == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(ValueError, match="position_weight"):
        with_positions(text_ND, Catalog(frame.drop("lat")), 0.5)
    with pytest.raises(ValueError, match="one place"):
        with_positions(text_ND, Catalog(frame.with_columns(lat=1.0, lon=1.0)), 0.5)
