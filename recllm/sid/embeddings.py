"""Vectors of item text: what the quantiser clusters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recllm import assets
from recllm.data.catalog import Catalog

EMBEDDINGS_FILE = "item_embeddings.safetensors"
MINILM = "all-minilm-l6-v2"
TFIDF = "tfidf-svd"
# Wider vectors of short texts lie alone in most directions, and residual k-means finds no clusters in them.
_SVD_WIDTH = 64


def item_texts(catalog: Catalog) -> list[str]:
    """One line an item: the title, then its categories, `Toy Story (1995). Animation, Comedy`."""
    texts = []
    for title, categories in zip(catalog.titles, catalog.categories, strict=True):
        named = ", ".join(category for category in categories if category)
        texts.append(". ".join(part for part in (title.strip(), named) if part))
    return texts


def embed_items(catalog: Catalog, encoder: str = "auto", seed: int = 0) -> tuple[np.ndarray, str]:
    """Unit vectors float32 (items, width) of the items' text, and the name of the encoder that made them.

    encoder: "minilm" (all-MiniLM-L6-v2, 384 wide), "tfidf" (words and word pairs, TF-IDF, truncated SVD to at most
    64), a sentence-transformers folder or Hub id, or "auto": MiniLM, and TF-IDF with a warning where MiniLM cannot
    be had. Items without any text get the zero vector under TF-IDF. Deterministic under `seed`.

    Raises:
        ValueError: no item has a word of text.
        AssetError, OSError: the encoder asked for is out of reach (not with "auto").
    """
    texts = item_texts(catalog)
    if not any(re.search(r"\w", text) for text in texts):
        raise ValueError("no item of the catalogue has a word in its title or categories: there is nothing to embed")
    if encoder == "tfidf":
        return _tfidf(texts, seed), TFIDF
    if encoder == "auto":
        try:
            assets.fetch(MINILM)
        except assets.AssetError as error:
            warnings.warn(f"{MINILM} is out of reach, item text is embedded by TF-IDF + SVD instead: {error}")
            return _tfidf(texts, seed), TFIDF
    if encoder in ("auto", "minilm"):
        vectors_ND = _sentences(texts, str(assets.fetch(MINILM)))
        source = assets.source_of(MINILM)["source"]
        return vectors_ND, f"{MINILM} from {source['kind']} {source['location']}"
    return _sentences(texts, encoder), encoder


def with_positions(vectors_ND: np.ndarray, catalog: Catalog, weight: float) -> np.ndarray:
    """The vectors with two columns more: where an item is, so that near items of one kind share their codes.

    Kilometres east and north of the middle, over their common spread, times `weight` (a text vector has length 1). An
    item whose place is unknown stands in the middle.

    Raises:
        ValueError: a negative weight, or a catalogue without columns `lat` and `lon` in which two places differ.
    """
    frame = catalog.frame
    if weight < 0 or not {"lat", "lon"} <= set(frame.columns):
        raise ValueError(f"position_weight={weight} needs a catalogue with lat and lon, and a weight of at least 0")
    place_N2 = frame.select("lat", "lon").to_numpy().astype(np.float64)
    middle_2 = np.nanmedian(place_N2, axis=0)
    flat_N2 = np.nan_to_num((place_N2 - middle_2) * [1.0, np.cos(np.radians(middle_2[0]))])
    spread = np.sqrt((flat_N2**2).mean())
    if not spread > 0:
        raise ValueError("position_weight: all items of the catalogue are in one place, or in none that is known")
    return np.concatenate([vectors_ND, weight * flat_N2 / spread], axis=1).astype(np.float32)


def encoder_assets(encoder: str) -> list[dict]:
    """Records of the named assets behind an encoder that `embed_items` returned: none, or MiniLM's."""
    return [assets.source_of(MINILM)] if encoder.startswith(f"{MINILM} from ") else []


def save_embeddings(folder: str | Path, vectors_ND: np.ndarray) -> None:
    """Write the item vectors into `folder`; row i belongs to item i."""
    from safetensors.numpy import save_file

    save_file({"vectors": np.ascontiguousarray(vectors_ND, dtype=np.float32)}, Path(folder) / EMBEDDINGS_FILE)


def load_embeddings(folder: str | Path) -> np.ndarray:
    """The item vectors float32 (items, width) of a SID table folder; FileNotFoundError where there are none."""
    from safetensors.numpy import load_file

    path = Path(folder) / EMBEDDINGS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make the table with train_sid_tokenizer.py")
    return load_file(path)["vectors"]


def _sentences(texts: Sequence[str], name: str) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    # Safetensors only: the other weight format of such folders is a pickle.
    model = SentenceTransformer(name, model_kwargs={"use_safetensors": True})
    # Venues of one kind without names share their text.
    place = {text: u for u, text in enumerate(dict.fromkeys(texts))}
    vectors_UD = model.encode(
        list(place), batch_size=64, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=True
    )
    return vectors_UD[[place[text] for text in texts]].astype(np.float32)


def _tfidf(texts: Sequence[str], seed: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    # One-letter words count: there are films called M and Z.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    counts_NW = words.fit_transform(texts)
    width = min(_SVD_WIDTH, min(counts_NW.shape) - 1)
    if width < 1:
        return normalize(counts_NW.toarray()).astype(np.float32)
    vectors_ND = TruncatedSVD(width, random_state=seed).fit_transform(counts_NW)
    return normalize(vectors_ND).astype(np.float32)
