"""The curve: figures worked out by hand, and twins that count or scan instead of being clever."""

import sys
from pathlib import Path

import numpy as np
import pytest

from recllm.merging.curve import area, control, controls, crossings, front, phase, phases, recommend
from recllm.merging.results import from_sweep
from recllm.merging.results_csv import read_csv
from recllm.merging.space import Point

sys.path.insert(0, str(Path(__file__).parent))
from sweeps import ENDS, constant, write

DIRECT, THINKING = ENDS
L3, L7, SLERP = (Point.of(name, strength=s) for name, s in (("linear", 0.3), ("linear", 0.7), ("slerp", 0.5)))
TA7, TIES = Point.of("task_arithmetic", strength=0.7), Point.of("ties", strength=0.5, density=0.5)
#          accuracy, tokens; the reference is accuracy .4 at 100 tokens
TABLE = {
    DIRECT: (0.4, 10),
    L3: (0.5, 20),
    SLERP: (0.5, 30),  # as good as L3, longer
    TIES: (0.3, 15),  # worse than the direct parent
    L7: (0.9, 40),
    TA7: (1.0, 35),  # the same merge as L7 by mathematics: it must not count
    THINKING: (0.8, 100),
}


@pytest.fixture
def results(tmp_path):
    points = [point for point in TABLE if point not in ENDS]
    accuracy, tokens = ({point: row[i] for point, row in TABLE.items()} for i in range(2))
    return from_sweep(write(tmp_path / "sweep", points, constant(accuracy, tokens)))


def keys(points) -> list[str]:
    return [point.key for point in points]


def test_the_table_by_hand(results):
    assert [row.key for row in results.rows if row.twin] == [TA7.key]
    assert results.row(TA7.key).twin == L7.key
    assert [row.key for row in front(results.distinct)] == keys([DIRECT, L3, L7])
    # Left of 100 tokens and above .4: 20 to 40 tokens at .1, 40 to 100 at .5; the parents span 90 x .4.
    found = area(results.distinct, results)
    assert found.value == pytest.approx(20 * 0.1 + 60 * 0.5)
    assert found.share == pytest.approx(32 / 36)
    assert area([results.row(SLERP.key)], results).value == pytest.approx(70 * 0.1)
    assert area([results.row(TIES.key)], results).value == 0
    assert area(results.parents.values(), results).value == 0
    budgets = {9: None, 10: DIRECT, 19.9: DIRECT, 20: L3, 39: L3, 40: L7, 1000: L7, None: L7}
    for budget, point in budgets.items():
        row = recommend(results.distinct, budget)
        assert (row and row.key) == (point and point.key), budget


def test_the_shorter_of_equally_good_points_is_recommended(results):
    equal = [results.row(point.key) for point in (SLERP, L3)]
    assert recommend(equal).key == recommend(equal[::-1]).key == L3.key


def test_lines_are_methods_with_one_setting_and_end_at_the_parents(results):
    series = {str(line): [row.key for row in rows] for line, rows in results.series().items()}
    assert series == {
        "linear": keys([DIRECT, L3, L7, THINKING]),
        "slerp": keys([DIRECT, SLERP, THINKING]),  # whose own ends are those of the straight line
        "ties density=0.5": keys([TIES]),
        "task_arithmetic": keys([TA7]),
    }


def test_steering_by_hand(results):
    found = controls(results)
    assert set(found) == {"linear", "slerp"}
    linear = found["linear"]
    assert linear.spearman == 1
    assert (linear.jump, linear.jump_from, linear.jump_to) == (60, 0.7, 1.0)
    assert linear.jump_share == pytest.approx(60 / 90)
    assert control([0, 0.5, 1], [30, 10, 20]).spearman == pytest.approx(-0.5)
    assert control([0, 0.5, 1], [30, 10, 20]).jump == -20
    assert control([0, 1], [3, 4]).spearman is None
    assert control([0, 0.5, 1], [3, 3, 3]).spearman is None
    assert control([0.5], [3]) is None


def test_phase_boundaries_by_hand(results):
    found = phase([0, 0.4, 0.6, 1], [0, 0.01, 0.91, 1])
    assert found.low == pytest.approx(0.4 + 0.2 * 0.04 / 0.9)
    assert found.high == pytest.approx(0.6 + 0.4 * 0.04 / 0.09)
    assert (found.start, found.end, found.fall, found.returns, found.is_monotone) == (0, 1, 0, 0, True)
    # In the table completions of more than 10 tokens think: none at 0, all from .3 on.
    linear = phases(results)["linear"]
    assert (linear.low, linear.high) == (pytest.approx(0.3 * 0.05), pytest.approx(0.3 * 0.95))


@pytest.mark.parametrize(
    ("shares", "low", "high", "fall", "returns"),
    [
        ([0.2, 0.5, 0.8], None, None, 0, 0),  # thinks from the start, never always
        ([0.0, 0.05, 0.05], 0.5, None, 0, 0),  # reached exactly at a point
        ([0.0, 0.04, 0.0], None, None, 0.04, 0),
        ([0.0, 1.0, 0.0], 0.025, 0.475, 1.0, 2),  # up through both levels and down again
        ([1.0, 0.0, 1.0], None, None, 1.0, 4),  # there from the start; lost, and back
    ],
)
def test_phases_that_are_not_one_rise(shares, low, high, fall, returns):
    found = phase([0, 0.5, 1], shares)
    assert (found.low, found.high) == (pytest.approx(low) if low else low, pytest.approx(high) if high else high)
    assert (found.fall, found.returns) == (pytest.approx(fall), returns)
    assert found.is_monotone == (fall == 0)


def test_crossings_are_where_a_fine_scan_changes_sides():
    rng = np.random.default_rng(0)
    for _ in range(60):
        count = int(rng.integers(2, 9))
        strength = np.sort(rng.choice(101, count, replace=False)) / 100
        share = rng.choice([0.0, 0.05, 0.3, 0.95, 1.0], count) if rng.random() < 0.5 else rng.random(count)
        for level in (0.05, 0.95):
            found = crossings(strength, share, level)
            for value in found:  # on the line, at the level
                assert np.interp(value, strength, share) == pytest.approx(level)
            # The points themselves, too: a peak of exactly the level is reached and left at one strength.
            grid = np.union1d(np.linspace(strength[0], strength[-1], 20_001), strength)
            scanned = np.interp(grid, strength, share) >= level - 1e-12
            assert len(found) == np.count_nonzero(scanned[1:] != scanned[:-1]), (strength, share, level)


def test_the_front_is_what_comparing_all_pairs_leaves(tmp_path):
    rng = np.random.default_rng(1)
    for trial in range(20):
        lines = ["method,strength,accuracy,tokens,n"]
        lines += [f"m{i},,{rng.integers(0, 8) / 8},{rng.integers(1, 8)},50" for i in range(int(rng.integers(1, 20)))]
        path = tmp_path / f"{trial}.csv"
        path.write_text("\n".join(lines))
        rows = read_csv(path).rows
        better = {
            row.key
            for row in rows
            if not any(
                other.accuracy >= row.accuracy
                and other.tokens <= row.tokens
                and (other.accuracy > row.accuracy or other.tokens < row.tokens)
                for other in rows
            )
        }
        found = front(rows)
        assert {row.key for row in found} == better
        assert [row.tokens for row in found] == sorted(row.tokens for row in found)


def test_bad_lines_are_refused():
    with pytest.raises(ValueError, match="strengths must rise"):
        control([0.5, 0.5], [1, 2])
    with pytest.raises(ValueError, match="each strength needs a value"):
        phase([0, 1], [0.5])
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        phase([0, 1], [0.5, 1.5])
    with pytest.raises(ValueError, match="must be finite"):
        control([0, 1], [1, float("nan")])


def test_without_both_parents_there_is_no_area(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("method,strength,accuracy,tokens,n\nties,0.5,0.5,10,50\nties,0,0.4,5,50\n")
    results = read_csv(path)
    assert set(results.parents) == {"direct"}
    assert area(results.rows, results) is None
    assert "the thinking parent was not measured: nothing is compared with it" in results.notes
