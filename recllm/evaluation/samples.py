"""What an evaluator says of a model that may think: each question's samples, how good they were and how long.

An evaluator asks every question several times. The samples of one question hang together, so intervals resample
questions, never samples, and two models are compared question by question.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from recllm.metrics.bootstrap import flat, mean_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Samples:
    """Q questions, S samples each.

    Attributes:
        value_QS: float32 in [0, 1], how good each completion is: 1 or 0 where an answer is right or wrong.
        tokens_QS: int32, the completion's tokens, its thought and the token that ends it included.
        thinks_QS: bool, whether the completion thinks before it answers.

    Raises:
        ValueError: shapes differ or are empty, a value is not in [0, 1], or a length is negative.
    """

    value_QS: np.ndarray
    tokens_QS: np.ndarray
    thinks_QS: np.ndarray

    def __post_init__(self) -> None:
        shape = self.value_QS.shape
        if len(shape) != 2 or 0 in shape or self.tokens_QS.shape != shape or self.thinks_QS.shape != shape:
            got = ", ".join(str(getattr(self, field.name).shape) for field in fields(self))
            raise ValueError(f"samples need three arrays of one shape (questions, samples), got {got}")
        if not ((self.value_QS >= 0) & (self.value_QS <= 1)).all():
            raise ValueError("a completion's value must lie in [0, 1]")
        if (self.tokens_QS < 0).any():
            raise ValueError("a completion cannot have fewer than 0 tokens")

    @property
    def value_Q(self) -> np.ndarray:
        """float64, each question's mean value."""
        return self.value_QS.mean(axis=1, dtype=np.float64)

    @property
    def tokens_Q(self) -> np.ndarray:
        """float64, each question's mean tokens."""
        return self.tokens_QS.mean(axis=1, dtype=np.float64)

    def summary(self) -> dict[str, float]:
        """`accuracy` and `tokens` with `_lo` and `_hi` (95%, questions resampled), `think_share`, counts."""
        return {
            **flat("accuracy", mean_interval(self.value_Q)),
            **flat("tokens", mean_interval(self.tokens_Q)),
            "think_share": float(self.thinks_QS.mean()),
            "questions": self.value_QS.shape[0],
            "samples": self.value_QS.shape[1],
        }

    def save(self, path: str | Path) -> None:
        """Write parquet with the columns question, sample, value, tokens, thinks."""
        questions, samples = self.value_QS.shape
        columns = {
            "question": np.repeat(np.arange(questions, dtype=np.int32), samples),
            "sample": np.tile(np.arange(samples, dtype=np.int32), questions),
            "value": self.value_QS.ravel().astype(np.float32),
            "tokens": self.tokens_QS.ravel().astype(np.int32),
            "thinks": self.thinks_QS.ravel().astype(bool),
        }
        pl.DataFrame(columns).write_parquet(path)

    @classmethod
    def load(cls, path: str | Path) -> Samples:
        """Read what `save` wrote.

        Raises:
            ValueError: the rows are not every question with as many samples.
        """
        frame = pl.read_parquet(path).sort("question", "sample")
        samples = int(frame["sample"].max() or 0) + 1
        shape = (frame.height // samples, samples)
        expected = np.repeat(np.arange(shape[0]), samples), np.tile(np.arange(samples), shape[0])
        if frame.height != shape[0] * samples or any(
            (frame[name].to_numpy() != rows).any() for name, rows in zip(("question", "sample"), expected, strict=True)
        ):
            raise ValueError(f"{path}: expected every question with {samples} samples; remove the file and run again")
        return cls(*(frame[name].to_numpy().reshape(shape) for name in ("value", "tokens", "thinks")))


class Evaluator(Protocol):
    """Asks a model the same questions every time."""

    name: str
    """For people and file names, `arithmetic` for instance."""

    fingerprint: str
    """Of the questions and of every setting that may change a result."""

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Samples:
        """Sample with generators seeded by question, so that a point's result depends on no point before it."""
        ...
