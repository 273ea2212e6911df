"""Frozen sentence encoders that needs are compared with: MiniLM, and a TF-IDF twin where that is out of reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recllm import assets
from recllm.sid.embeddings import MINILM

# Texts -> their vectors float32 (texts, width), of unit length or zero; the same text always has the same vector.
Encoder = Callable[[Sequence[str]], np.ndarray]
ENCODERS = ("minilm", "tfidf")


def minilm_encoder(device: str | None = None) -> Encoder:
    """all-MiniLM-L6-v2, 384 wide, loaded once.

    Raises:
        AssetError: it is out of reach.
    """
    from sentence_transformers import SentenceTransformer

    # Safetensors only: the other weight format of such folders is a pickle.
    folder = str(assets.fetch(MINILM))
    model = SentenceTransformer(folder, device=device, model_kwargs={"use_safetensors": True})

    def encode(texts: Sequence[str]) -> np.ndarray:
        options = {"batch_size": 64, "normalize_embeddings": True, "show_progress_bar": False}
        return model.encode(list(texts), convert_to_numpy=True, **options).astype(np.float32)

    return encode


def tfidf_encoder(corpus: Sequence[str]) -> Encoder:
    """Groups of letters within words, weighed by TF-IDF over `corpus` (needs and categories); deterministic.

    It knows spelling only: "coffee" is near "coffees", and as far from "espresso" as from "gym". Text that shares
    nothing with the corpus gets the zero vector.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    model = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True, dtype=np.float32)
    model.fit(corpus)
    return lambda texts: model.transform(texts).toarray()


@dataclass(frozen=True, eq=False)
class CachedEncoder:
    """An encoder that remembers: texts that it has not met are encoded in one batch, each once.

    Of the `size` texts that are kept those go first that were not asked for the longest, so references and categories,
    which every batch asks for, stay.
    """

    encoder: Encoder
    size: int = 20_000
    _kept: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors float32 (texts, width)."""
        unique = list(dict.fromkeys(texts))
        if new := [text for text in unique if text not in self._kept]:
            self._kept.update(zip(new, self.encoder(new), strict=True))
        for text in unique:
            self._kept[text] = self._kept.pop(text)
        vectors_BD = np.stack([self._kept[text] for text in texts])
        for text in list(self._kept)[: max(0, len(self._kept) - self.size)]:
            del self._kept[text]
        return vectors_BD


def named_encoder(name: str, corpus: Sequence[str]) -> CachedEncoder:
    """The frozen encoder that a run names, one of `ENCODERS`; tfidf is fitted on `corpus`.

    Raises:
        ValueError: an unknown name.
        AssetError: MiniLM is out of reach.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder {name!r} is unknown; the encoders are {', '.join(ENCODERS)}")
    return CachedEncoder(minilm_encoder() if name == "minilm" else tfidf_encoder(corpus))
