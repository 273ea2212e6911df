"""Boards against brute force: where changes lead, how far the target is, what a move is worth."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_surfaces import write_made_surface

from recllm.tuning.language.proposer import Proposed
from recllm.tuning.study.agent import Agent
from recllm.tuning.study.choosers import SurfaceTrials
from recllm.tuning.study.trial import History
from recllm.tuning.trials.surface import Surface
from recllm.tuning.tuner.board import DISCOUNT, REACH, Board


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surfaces")
    return [Board.of(Surface.load(write_made_surface(folder, place))) for place in range(2)]


def begun(board, masked=frozenset(), left=20):
    """The situation after the default's trial."""
    agent = Agent(board.space, board.data, 30)
    history = History(board.space, epsilon=board.epsilon)
    history = agent.absorb(history, agent.opening(history), board(board.space.default))
    return replace(agent.situation(history), masked=masked, left=left)


def test_a_board_answers_as_its_surface_does(boards):
    board, rng = boards[0], np.random.default_rng(0)
    trial = SurfaceTrials(board.moves.surface)
    configs = [board.space.sample(rng) for _ in range(40)] + [outcome.config for outcome in board.moves.outcomes[::9]]
    for config in configs:
        assert board(config, 0) == trial(config, 0)


def test_moves_are_every_single_change_and_lead_where_the_lookup_says(boards):
    board = boards[0]
    for config in (board.space.default, board.space.sample(np.random.default_rng(3))):
        moves = board.moves.of(config)
        assert [board.space.key(other) for other in board.space.neighbours(config)] == [move.key for move in moves]
        for move in moves:
            changed = board.space.change(config, move.axis, move.value)
            assert board.moves.outcomes[move.row] == board.moves.surface.lookup(changed).outcome


def test_the_way_to_the_target_is_the_shortest_that_always_improves(boards):
    board = boards[0]
    way = {row: 0 for row, score in enumerate(board.score_R) if score >= board.target}
    assert way and board.target == board.moves.surface.target(0.02)
    for length in range(1, 12):  # breadth first, by hand
        for row, outcome in enumerate(board.moves.outcomes):
            steps = [
                move.row
                for move in board.moves.of(outcome.config)
                if board.score_R[move.row] > board.score_R[row] + board.epsilon and way.get(move.row) == length - 1
            ]
            if row not in way and steps:
                way[row] = length
    assert [way.get(row, math.inf) for row in range(len(board.score_R))] == board.away_R.tolist()
    assert 1 in way.values()


def test_a_move_is_worth_what_it_gains_and_what_it_leaves_within_reach(boards):
    board = boards[0]
    situation = begun(board)
    now = board(board.space.default).score
    worths = board.worths(situation)
    assert len(worths) == len(board.moves.of(board.space.default))
    for move, worth in worths:
        score = board.score_R[move.row]
        if score <= now + board.epsilon:
            assert worth == 0
            continue
        away = board.away_R[move.row]
        expected = (1 - REACH) * (score - now) / (board.top - now) + REACH * (DISCOUNT**away if away < 20 else 0)
        assert worth == pytest.approx(expected) and 0 < worth <= 1
    assert any(worth > 0 for _, worth in worths) and any(worth == 0 for _, worth in worths)
    # With one trial left nothing further can be reached.
    last = dict(board.worths(replace(situation, left=1)))
    assert all(last[move] <= worth for move, worth in worths)


def test_masked_axes_and_tried_changes_are_no_moves(boards):
    board = boards[0]
    assert {move.axis for move, _ in board.worths(begun(board, frozenset({"lr", "dropout"})))}.isdisjoint(
        {"lr", "dropout"}
    )
    everything = frozenset(board.space.default)
    assert {move.axis for move, _ in board.worths(begun(board, everything))} == set(board.space.default)
    situation = begun(board)
    first = board.worths(situation)[0][0]
    agent, changed = (
        Agent(board.space, board.data, 30),
        board.space.change(board.space.default, first.axis, first.value),
    )
    history = agent.absorb(situation.history, Proposed(None, changed, "random", (), ()), board(changed))
    assert first.key not in {move.key for move, _ in board.worths(agent.situation(history))}


def test_bending_keeps_failures_and_repeats_by_its_seed(boards):
    one, other = boards
    bent = [one.bent(np.random.default_rng(5), other, 0.5) for _ in range(2)]
    assert np.array_equal(bent[0].score_R, bent[1].score_R) and bent[0].data == bent[1].data
    assert not np.array_equal(bent[0].score_R, one.score_R)
    still = one.bent(np.random.default_rng(5), None, 0.0)
    floor_R = np.maximum(one.score_R, 0.1 * one.top)
    fine_R = np.isfinite(one.score_R)
    assert np.allclose(still.score_R[fine_R], floor_R[fine_R])
    assert np.array_equal(np.isfinite(still.score_R), fine_R) and not fine_R.all()
    assert np.array_equal(one.score_R, Board.of(one.moves.surface).score_R)


def test_a_bent_board_fails_where_the_set_does_that_it_is_mostly_made_of(boards):
    one, (config, row) = boards[0], (boards[0].space.default, boards[0].moves.row(boards[0].space.default))
    score_R = boards[1].score_R.copy()
    score_R[boards[1].moves.row(config)] = -np.inf
    failing = replace(boards[1], score_R=score_R)
    seen = set()
    for seed in range(20):
        bent = one.bent(np.random.default_rng(seed), failing, 0.3)
        mostly_theirs = float(np.random.default_rng(seed).random()) >= 0.5
        outcome = bent(config)
        assert outcome.ok == (not mostly_theirs) == bool(np.isfinite(bent.score_R[row]))
        assert outcome.score == bent.score_R[row]
        seen.add(outcome.ok)
    assert seen == {True, False}


def test_a_bent_board_plays_its_own_scores(boards):
    bent = boards[0].bent(np.random.default_rng(1), boards[1], 0.6)
    row = int(np.flatnonzero(np.isfinite(bent.score_R))[3])
    assert bent(bent.moves.outcomes[row].config).score == bent.score_R[row] != boards[0].score_R[row]
