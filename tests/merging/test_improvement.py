"""Improvements over a parent: p-values that keep their promise, and choices that are read where they were not made."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from recllm.merging.improvement import choose, compare, front_kept, halves, holm, subset
from recllm.merging.results import Results, Row, from_sweep
from recllm.merging.results_csv import read_csv
from recllm.merging.space import Point

sys.path.insert(0, str(Path(__file__).parent))
from sweeps import spectrum, write


def row(key: str, value_Q, tokens_Q) -> Row:
    value_Q, tokens_Q = np.asarray(value_Q, float), np.asarray(tokens_Q, float)
    means = {"accuracy": value_Q.mean(), "accuracy_lo": 0.0, "accuracy_hi": 1.0, "tokens": tokens_Q.mean()}
    return Row(key, "m", key, {}, "", None, n=len(value_Q), value_Q=value_Q, tokens_Q=tokens_Q, **means)


def table(parent: Row, *rows: Row, role: str = "thinking") -> Results:
    return Results(Path("made"), (parent, *rows), {role: parent})


def drawn(rng, questions: int, accuracy: float = 0.6, tokens: float = 100.0, own: float = 0.5) -> tuple:
    """Values and tokens of a model whose questions are hard for everybody, and are drawn anew by half of their luck."""
    hard = np.random.default_rng(0).random(questions)
    luck = np.where(rng.random(questions) < own, rng.random(questions), hard)
    return luck < accuracy, tokens * (0.5 + hard) * rng.gamma(4, 0.25, questions)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_differences_and_improvements_by_hand():
    parent = row("p", [1, 1, 0, 0], [10, 20, 30, 40])
    cases = {
        "both": ([1, 1, 1, 0], [9, 19, 29, 39], True, 0.25, -1),
        "equal": ([1, 1, 0, 0], [10, 20, 30, 40], False, 0, 0),
        "shorter": ([0, 0, 1, 1], [9, 20, 30, 40], True, 0, -0.25),
        "better": ([1, 1, 1, 0], [40, 30, 20, 10], True, 0.25, 0),
        "longer": ([1, 1, 1, 1], [10, 20, 30, 41], False, 0.5, 0.25),
        "worse": ([1, 0, 0, 0], [1, 1, 1, 1], False, -0.25, -24),
    }
    found = compare(table(parent, *(row(name, *case[:2]) for name, case in cases.items())))
    for one, (name, case) in zip(found, cases.items(), strict=True):
        assert (one.row.key, one.parent, one.improves) == (name, "thinking", case[2])
        assert (one.accuracy.mean, one.tokens.mean) == (case[3], case[4])
        assert one.accuracy.lo <= one.accuracy.mean <= one.accuracy.hi
        assert one.improves or one.p == 1
    worse = found[-1]
    assert not worse.improves
    assert compare(table(parent, row("worse", *cases["worse"][:2])), margin=0.25)[0].improves


def test_the_intervals_are_of_the_point_less_the_parent():
    rng = np.random.default_rng(3)
    parent, other = row("p", *drawn(rng, 400)), row("m", *drawn(rng, 400, accuracy=0.9, tokens=50))
    one = compare(table(parent, other))[0]
    for name, of_row in (("accuracy", "value_Q"), ("tokens", "tokens_Q")):
        gap_Q = getattr(other, of_row) - getattr(parent, of_row)
        half = 1.96 * gap_Q.std() / 20
        found = getattr(one, name)
        assert found.mean == pytest.approx(gap_Q.mean())
        assert (found.lo, found.hi) == pytest.approx((gap_Q.mean() - half, gap_Q.mean() + half), abs=0.15 * half)


def test_p_is_the_normal_one_where_there_are_many_questions():
    rng = np.random.default_rng(4)
    for _ in range(6):
        value_Q, tokens_Q = drawn(rng, 2000, own=0.2)
        parent = row("p", *drawn(rng, 2000, own=0.2))
        one = compare(table(parent, row("m", value_Q, tokens_Q - 1.5)), draws=4000)[0]
        z = [
            gap_Q.mean() / gap_Q.std() * np.sqrt(2000)
            for gap_Q in (value_Q - parent.value_Q, parent.tokens_Q - tokens_Q + 1.5)
        ]
        expected = norm.sf(min(z)) if min(z) >= 0 else 1.0
        assert one.p == pytest.approx(expected, abs=0.025)


def test_no_improvement_is_claimed_where_there_is_none_at_the_stated_rate():
    """Twelve points that are the parent drawn again; and ones whose tokens are far fewer, so that accuracy decides."""
    rng = np.random.default_rng(5)
    for fewer in (1.0, 0.3):
        single, family = [], []
        for _ in range(100):
            parent = row("p", *drawn(rng, 150))
            made = (drawn(rng, 150) for _ in range(12))
            found = compare(table(parent, *(row(str(i), v, t * fewer) for i, (v, t) in enumerate(made))), draws=1000)
            single += [one.improves and one.p <= 0.05 for one in found]
            family.append(any(one.is_shown for one in found))
        # 5% of 1200 within three standard errors, allowing for points that share a parent; of 100 families likewise.
        assert np.mean(single) <= 0.075
        assert np.mean(family) <= 0.11
        if fewer < 1:
            assert np.mean(single) >= 0.025, "not so careful that nothing could ever be shown"


def test_a_planted_improvement_is_found_among_many_that_are_none():
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(12):
        parent = row("p", *drawn(rng, 500))
        others = [row(str(i), *drawn(rng, 500)) for i in range(40)]
        planted = row("planted", *drawn(rng, 500, accuracy=0.75, tokens=70))
        shown = [one.row.key for one in compare(table(parent, *others, planted), draws=2000) if one.is_shown]
        hits += "planted" in shown
        assert set(shown) <= {"planted"}
    assert hits == 12


def test_a_gain_in_one_alone_is_no_improvement():
    rng = np.random.default_rng(7)
    value_Q, tokens_Q = drawn(rng, 500)
    parent = row("p", value_Q, tokens_Q)
    dearer = row("dearer", *drawn(rng, 500, accuracy=0.9, tokens=110))
    duller = row("duller", *drawn(rng, 500, accuracy=0.5, tokens=20))
    assert not any(one.improves or one.is_shown for one in compare(table(parent, dearer, duller)))


def test_what_is_the_same_on_every_question_leaves_the_other_claim_to_decide():
    rng = np.random.default_rng(8)
    value_Q, tokens_Q = drawn(rng, 300)
    parent = row("p", value_Q, tokens_Q)
    fewer = rng.integers(0, 3, 300)
    for made in (row("m", value_Q, tokens_Q - fewer), row("m", value_Q | (rng.random(300) < 0.2), tokens_Q)):
        assert compare(table(parent, made))[0].is_shown
    assert compare(table(parent, row("m", value_Q, tokens_Q)))[0].p == 1


def test_a_few_questions_that_differ_are_no_proof():
    """The sign test's p of three wins out of three is .125."""
    value_Q = np.arange(200) < 100
    better_Q = value_Q | (np.arange(200) >= 197)
    one = compare(table(row("p", value_Q, np.full(200, 9)), row("m", better_Q, np.full(200, 8))))[0]
    assert one.improves
    assert 0.05 < one.p < 0.2


def test_a_margin_makes_equal_accuracy_showable():
    rng = np.random.default_rng(9)
    parent = row("p", *drawn(rng, 1000, own=0.1))
    value_Q, tokens_Q = parent.value_Q.copy(), parent.tokens_Q * 0.5
    flipped = (
        rng.choice(np.flatnonzero(value_Q), 20, replace=False),
        rng.choice(np.flatnonzero(value_Q == 0), 20, False),
    )
    value_Q[flipped[0]], value_Q[flipped[1]] = 0, 1
    made = row("m", value_Q, tokens_Q)
    assert compare(table(parent, made))[0].p == pytest.approx(0.5, abs=0.1)
    assert compare(table(parent, made), margin=0.02)[0].is_shown
    with pytest.raises(ValueError, match="margin must lie"):
        compare(table(parent, made), margin=1.0)


def test_without_questions_p_is_unpaired(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text(
        "method,strength,accuracy,tokens,n\ndirect,0,0.4,10,100\nthinking,1,0.5,100,100\n"
        "linear,0.5,0.62,50,100\nlinear,0.6,0.62,101,100\nlinear,0.7,0.4,50,100\n"
    )
    found = {(one.row.strength, one.parent): one for one in compare(read_csv(path))}
    one = found[0.5, "thinking"]
    # Shares with half a success and half a failure more: 62.5 and 50.5 of 101.
    spread = np.sqrt((62.5 * 38.5 + 50.5**2) / 101**2 / 100)
    assert one.p == pytest.approx(norm.sf(0.12 / spread))
    assert one.p_holm == pytest.approx(6 * one.p)
    assert (one.tokens.mean, one.improves) == (-50, True)
    assert [found[s, "thinking"].p for s in (0.6, 0.7)] == [1, 1]
    assert not any(one.improves for one in found.values() if one.parent == "direct")


def test_halves_are_halves():
    choose_Q, read_Q = halves(61)
    assert (choose_Q ^ read_Q).all()
    assert (choose_Q.sum(), read_Q.sum()) == (30, 31)
    assert np.array_equal(choose_Q, halves(61)[0])
    assert not np.array_equal(choose_Q, halves(61, seed=1)[0])
    with pytest.raises(ValueError, match="cannot be split"):
        halves(1)


def test_a_choice_is_made_on_one_half_and_read_on_the_other():
    """Point `lucky` is perfect on the half that is chosen on and useless on the other."""
    choose_Q, read_Q = halves(100)
    parent = row("p", np.arange(100) % 5 > 0, np.full(100, 50) + np.arange(100) % 3)
    lucky = row("lucky", choose_Q, np.full(100, 10) + np.arange(100) % 3)
    unlucky = row("unlucky", read_Q, np.full(100, 9))
    best, budget, none, over = choose(table(parent, lucky, unlucky), budgets=[9.5, 3])
    assert (best.row.key, best.accuracy.mean, best.accuracy.n, best.is_held_out) == ("lucky", 0.0, 50, True)
    assert (budget.row.key, budget.accuracy.mean, budget.tokens.mean) == ("unlucky", 1.0, 9.0)
    assert (none.purpose, none.row) == ("budget 3", None)
    assert (over.purpose, over.row.key) == ("over thinking", "lucky")
    assert over.comparison.accuracy.mean == pytest.approx(-parent.value_Q[read_Q].mean())
    assert (over.comparison.improves, over.comparison.p) == (False, 1.0)


def test_the_winner_of_many_equal_points_is_read_without_its_luck():
    rng = np.random.default_rng(10)
    claimed, read = [], []
    for _ in range(30):
        rows = [row(str(i), rng.random(100) < 0.5, np.full(100, 10)) for i in range(30)]
        best = choose(replace(table(rows[0], *rows[1:]), parents={}))[0]
        claimed.append(max(one.accuracy for one in rows))
        read.append(best.accuracy.mean)
    assert np.mean(claimed) > 0.57
    assert np.mean(read) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(50 * 30))


def test_a_sweep_is_compared_and_its_subset_is_what_a_smaller_sweep_would_be(tmp_path):
    points = [Point.of("linear", strength=s / 10) for s in range(1, 10)]
    results = from_sweep(write(tmp_path / "sweep", points, spectrum(200)))
    found = compare(results)
    assert len(found) == 2 * len(points)
    assert {one.parent for one in found} == {"direct", "thinking"}
    where_Q = halves(200)[0]
    half = subset(results, where_Q)
    assert half.row(points[2].key).accuracy == pytest.approx(spectrum(200)(points[2]).value_Q[where_Q].mean())
    assert half.parents["thinking"].n == 100
    first, kept = front_kept(results)
    assert 1 <= kept <= first
    assert front_kept(replace(results, rows=tuple(replace(one, value_Q=None) for one in results.rows))) is None
