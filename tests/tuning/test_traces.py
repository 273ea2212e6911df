"""Studies played for training: every reply is a legal good move, told as a proposer is asked, and no set is looked at
that is left out."""

import json

import numpy as np
import pytest
from made_surfaces import write_made_surface

from recllm.tuning.study.proposal import read_proposal
from recllm.tuning.tuner.lessons import lesson_boards, lesson_memories
from recllm.tuning.tuner.rewards import Improvement
from recllm.tuning.tuner.traces import EARLIER_TRIALS, Mixture, Trace, chat_rows, choose, play, traces


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surfaces")
    for place in range(3):
        write_made_surface(folder, place)
    return folder


@pytest.fixture(scope="module")
def boards(folder):
    return lesson_boards(folder, "three")


@pytest.fixture(scope="module")
def memories(boards, tmp_path_factory):
    return lesson_memories(boards, 2, 0.3, 0, tmp_path_factory.mktemp("memories"))


@pytest.fixture(scope="module")
def rows(boards, memories):
    return list(chat_rows(traces(boards, memories, 60, 0), 0))


def test_the_set_that_is_left_out_is_not_there(folder, boards):
    assert [board.moves.surface.provenance["dataset"] for board in boards] == ["one", "two"]
    with pytest.raises(ValueError, match="no surface of 'thre' to leave out; it has one, three, two"):
        lesson_boards(folder, "thre")


def test_every_reply_is_a_legal_move_that_earns(rows):
    reward = Improvement.of_spaces(["sasrec"])
    assert len(rows) == 60
    for row in rows:
        asked, reply = row["messages"]
        judged = {name: row[name] for name in ("space", "config", "masked", "tried", "worths")}
        assert reward.of(reply["content"], **judged) > 0
        assert asked["role"] == "user" and asked["content"].startswith("sasrec ") and reply["role"] == "assistant"
        assert len(reply["content"]) < 260


def test_situations_differ_with_and_without_memory_and_reflection(rows):
    told = [row["messages"][0]["content"] for row in rows]
    assert 0.1 < np.mean(["\nmemory " in text for text in told]) < 0.9
    assert any("pruned" in text for text in told) and any("pruned" not in text for text in told)
    assert any(text.count("\n") > 6 for text in told)
    assert len(set(told)) > 50


def test_the_same_seed_plays_the_same_and_another_does_not(boards, memories, rows):
    assert list(chat_rows(traces(boards, memories, 20, 0), 0)) == rows[:20]
    assert [row["messages"] for row in chat_rows(traces(boards, memories, 20, 1), 1)] != [
        row["messages"] for row in rows[:20]
    ]


def test_good_moves_are_drawn_by_their_worth(boards):
    trace = next(play(boards[0], np.random.default_rng(0)))
    worth = dict(trace.worths)
    drawn = [worth[choose(trace, np.random.default_rng(seed))] for seed in range(200)]
    assert min(drawn) > 0 and len(set(drawn)) > 1
    assert np.mean(drawn) > np.mean([value for value in worth.values() if value > 0])
    hopeless = Trace(trace.board, trace.situation, tuple((move, 0.0) for move in worth))
    scores = [trace.board.score_R[choose(hopeless, np.random.default_rng(seed)).row] for seed in range(100)]
    assert np.mean(scores) > np.mean([trace.board.score_R[move.row] for move in worth])


def test_a_study_s_moves_are_legal_and_a_skilled_one_ends_better(boards):
    def end(skill, seed):
        *_, last = play(boards[0], np.random.default_rng(seed), skill=skill, trials=10)
        return last.situation.history.best_score

    for seed in range(2):
        for trace in play(boards[0], np.random.default_rng(seed), skill=0.0, trials=6):
            move = trace.worths[0][0]
            said = {"hypothesis": "h", "changed_dimension": move.axis, "value": move.value}
            reply = json.dumps({**said, "expected_effect": "e", "risk": "r"})
            history = trace.situation.history
            read = read_proposal(reply, history.space, history.present, trace.situation.masked, history.tried)
            assert boards[0].space.key(read[1]) == move.key
    assert np.mean([end(1.0, seed) for seed in range(4)]) > np.mean([end(0.0, seed) for seed in range(4)])


def test_memories_are_of_played_studies_and_of_surveys_on_both_sets(memories, boards):
    for known in memories.values():
        assert [len(memory.studies()) for memory in known] == [2, 2]
        played, surveyed = ([len(study.summary.trials) for study in memory.studies()] for memory in known)
        assert 10 < min(played) <= max(played) <= EARLIER_TRIALS
        assert surveyed == [len(boards[0].score_R)] * 2  # every row of a board so small


def test_a_mixture_without_memory_has_none(boards, memories):
    found = traces(boards, memories, 20, 0, Mixture(with_memory=0.0, bent=0.0))
    assert not any(trial.source == "memory" for trace in found for trial in trace.situation.history.trials)
