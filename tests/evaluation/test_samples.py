"""Samples of a thinking model: what is refused, what is kept, and intervals that resample questions."""

import numpy as np
import polars as pl
import pytest

from recllm.evaluation.samples import Samples


def samples(questions: int = 6, count: int = 3) -> Samples:
    generator = np.random.default_rng(0)
    shape = (questions, count)
    right, tokens = generator.random(shape) < 0.5, generator.integers(1, 9, shape, dtype=np.int32)
    return Samples(right.astype(np.float32), tokens, generator.random(shape) < 0.5)


def test_saved_and_loaded_are_equal(tmp_path):
    one = samples()
    one.save(tmp_path / "a.parquet")
    other = Samples.load(tmp_path / "a.parquet")
    for name in ("value_QS", "tokens_QS", "thinks_QS"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_file_that_lost_a_row_is_refused(tmp_path):
    samples().save(tmp_path / "a.parquet")
    pl.read_parquet(tmp_path / "a.parquet")[[*range(7), *range(8, 18)]].write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: expected every question"):
        Samples.load(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("value", "tokens", "message"),
    [
        ([[1.5]], [[1]], "in \\[0, 1\\]"),
        ([[np.nan]], [[1]], "in \\[0, 1\\]"),
        ([[1.0]], [[-1]], "fewer than 0"),
        ([[1.0, 0.0]], [[1]], "one shape"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "one shape"),
    ],
)
def test_bad_samples_are_refused(value, tokens, message):
    value, tokens = np.asarray(value, np.float32), np.asarray(tokens, np.int32)
    with pytest.raises(ValueError, match=message):
        Samples(value, tokens, np.zeros(tokens.shape, bool))


def test_samples_of_one_question_are_not_independent_evidence():
    """Repeating every sample tenfold leaves the interval where it is: only questions are drawn."""
    one = samples(questions=40, count=2)
    many = Samples(*(np.repeat(getattr(one, n), 10, axis=1) for n in ("value_QS", "tokens_QS", "thinks_QS")))
    for name in ("accuracy", "accuracy_lo", "accuracy_hi", "tokens_lo", "tokens_hi"):
        assert one.summary()[name] == pytest.approx(many.summary()[name])
    assert one.summary()["accuracy"] == pytest.approx(one.value_QS.mean())
    assert one.summary()["accuracy_lo"] < one.summary()["accuracy"] < one.summary()["accuracy_hi"]
