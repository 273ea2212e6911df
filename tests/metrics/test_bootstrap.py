"""Bootstrap intervals: coverage on known distributions, agreement with theory, determinism."""

import numpy as np
import pytest

from recllm.metrics.bootstrap import Interval, flat, mean_interval, paired_interval


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(2.0, 1.0, 80), 2.0),
        (lambda rng: rng.random(80) < 0.3, 0.3),  # few distinct values: the multinomial path
    ],
)
def test_an_interval_of_95_percent_covers_the_truth_about_95_times_in_100(draw, truth):
    rng = np.random.default_rng(0)
    runs = [mean_interval(draw(rng), draws=400, seed=trial) for trial in range(400)]
    covered = np.mean([run.lo <= truth <= run.hi for run in runs])
    assert 0.91 <= covered <= 0.98
    assert all(run.lo <= run.mean <= run.hi for run in runs)


@pytest.mark.parametrize("levels", [None, 11])
def test_the_width_is_that_of_the_normal_law(levels):
    values = np.random.default_rng(1).random(4000)
    if levels:
        values = np.floor(values * levels)
    run = mean_interval(values)
    expected = 2 * 1.96 * values.std() / np.sqrt(4000)
    assert run.hi - run.lo == pytest.approx(expected, rel=0.05)
    assert run.n == 4000
    assert run.mean == values.mean()


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(2).random(100)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_a_long_tail_stretches_its_own_side():
    values = np.random.default_rng(6).exponential(size=30) ** 3
    run = mean_interval(values)
    assert run.hi - run.mean > 1.2 * (run.mean - run.lo)
    sample_means = np.random.default_rng(7).choice(values, (20_000, 30)).mean(axis=1)
    assert (run.lo, run.hi) == pytest.approx(np.quantile(sample_means, [0.025, 0.975]), rel=0.1)


def test_memory_is_bounded_by_chunks_without_changing_the_law(monkeypatch):
    values = np.random.default_rng(2).random(100)
    whole = mean_interval(values)
    monkeypatch.setattr("recllm.metrics.bootstrap._CHUNK", 700)  # seven draws a chunk, five in the last
    chunked = mean_interval(values)
    assert chunked == pytest.approx(whole)  # the random stream is read in the same order


def test_pairing_cancels_what_both_share():
    rng = np.random.default_rng(3)
    difficulty = rng.normal(0, 10, 500)
    a, b = difficulty + 0.3 + rng.normal(0, 0.1, 500), difficulty
    run = paired_interval(a, b)
    assert 0.2 < run.lo < 0.3 < run.hi < 0.4
    swapped = paired_interval(b, a)
    assert (swapped.mean, swapped.lo, swapped.hi) == pytest.approx((-run.mean, -run.hi, -run.lo), abs=0.005)


def test_wider_confidence_holds_the_narrower():
    values = np.random.default_rng(4).random(200)
    narrow, wide = mean_interval(values, confidence=0.5), mean_interval(values, confidence=0.99)
    assert wide.lo < narrow.lo < narrow.hi < wide.hi


def test_one_value_and_equal_values_have_no_width():
    assert mean_interval([0.25]) == (0.25, 0.25, 0.25, 1)
    assert mean_interval(np.full(50, 1e9)) == (1e9, 1e9, 1e9, 50)


def test_flat_names():
    assert flat("planner/ndcg@10", Interval(0.2, 0.1, 0.3, 7)) == {
        "planner/ndcg@10": 0.2,
        "planner/ndcg@10_lo": 0.1,
        "planner/ndcg@10_hi": 0.3,
    }


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: mean_interval([]), "at least one value"),
        (lambda: mean_interval([[1.0]]), "one dimension"),
        (lambda: mean_interval([1.0, np.nan]), "value 1 is not finite"),
        (lambda: mean_interval([1.0, 2.0], confidence=95), "confidence"),
        (lambda: mean_interval([1.0, 2.0], confidence=1), "confidence"),
        (lambda: mean_interval([1.0, 2.0], confidence=0), "confidence"),
        (lambda: mean_interval([1.0, 2.0], draws=0), "draws"),
        (lambda: paired_interval([1.0], [1.0, 2.0]), "one shape"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
