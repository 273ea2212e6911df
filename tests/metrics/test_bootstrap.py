"""Bootstrap intervals: coverage on known distributions, agreement with theory, determinism."""

import numpy as np
import pytest

from recllm.metrics.bootstrap import Clusters, Interval, flat, mean_interval, paired_interval


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


def test_examples_of_one_cluster_count_as_one():
    """Ten copies of everybody know no more than one of each, and are not to look as if they did."""
    values_G = np.random.default_rng(3).random(60)
    alone = Clusters(np.arange(60)).mean(values_G)
    copied = Clusters(np.repeat(np.arange(60), 10)).mean(np.repeat(values_G, 10))
    assert copied[:3] == pytest.approx(alone[:3]) and copied.n == 600
    plain = mean_interval(values_G)
    assert alone.hi - alone.lo == pytest.approx(plain.hi - plain.lo, rel=0.1)


def test_clusters_are_drawn_whole_and_weigh_by_their_size():
    cluster_E, values_E = np.array([7, 7, 7, 2]), np.array([1.0, 1.0, 0.0, 0.0])
    found = Clusters(cluster_E, draws=4000).mean(values_E)
    # Both drawn once (half of the time): 2/4; the large one twice: 2/3; the small one twice: 0.
    assert found == (0.5, 0.0, pytest.approx(2 / 3), 4)
    assert Clusters(cluster_E).mean(values_E, cluster_E == 7) == (pytest.approx(2 / 3),) * 3 + (3,)


def test_a_gain_is_relative_and_paired():
    rng = np.random.default_rng(4)
    cluster_E, base_E = rng.integers(40, size=300), rng.random(300)
    clusters = Clusters(cluster_E)
    assert clusters.gain(1.25 * base_E, base_E)[:3] == pytest.approx((0.25,) * 3)
    better = clusters.gain(base_E + rng.normal(0.1, 0.3, 300), base_E)
    assert better.lo < better.mean < better.hi and better.mean == pytest.approx(0.1 / 0.5, abs=0.1)
    assert clusters.gain(base_E, np.zeros(300)) is None
    rare_E = (np.arange(300) == 0).astype(float)
    assert clusters.gain(base_E, rare_E) is None, "a third of the resamples has nothing to divide by"


@pytest.mark.parametrize(
    ("cluster_E", "values_E", "where_E"),
    [([], [], None), ([1, 2], [0.0], None), ([1, 2], [0.0, np.nan], None), ([1, 2], [0.0, 1.0], [False, False])],
)
def test_clusters_refuse_what_has_no_mean(cluster_E, values_E, where_E):
    with pytest.raises(ValueError, match=r"need|values of shape"):
        Clusters(np.array(cluster_E)).mean(np.array(values_E), where_E)
