"""Training material of the tuner: studies played on surfaces, and what would have been a good move in each situation.

A study begins as a real one does, with the default and where memory says to begin, and goes on with a mixture of good,
random and bad moves, so that its situations are those that a proposer gets into, well or badly. The good moves are
single changes drawn by their worth (`Board.worths`), of which several are often good.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.tuning.language.prompt import proposal_text, situation_messages
from recllm.tuning.language.proposer import Proposed
from recllm.tuning.memory.cognition import Summary, summarise
from recllm.tuning.study.agent import Agent
from recllm.tuning.study.proposal import Proposal
from recllm.tuning.study.trial import History, Situation
from recllm.tuning.tuner.board import Board, Move
from recllm.tuning.tuner.wording import worded

if TYPE_CHECKING:
    from recllm.tuning.memory.memory import Memory

# Worth that makes a move e times as likely to be the one that is taught.
TEMPERATURE = 0.05
# Trials that a situation lies behind at most, the budgets that studies are played under, and what memories are made of.
MOST_TRIALS = 24
EARLIER_TRIALS, SURVEYED = 60, 150
BUDGETS = (8, 60)


@dataclass(frozen=True)
class Trace:
    """A situation, the moves that are legal in it with their worths, and the board that it is on."""

    board: Board
    situation: Situation
    worths: tuple[tuple[Move, float], ...]

    @property
    def improvable(self) -> bool:
        """Whether a single change would be kept."""
        return any(worth > 0 for _, worth in self.worths)


def choose(trace: Trace, rng: np.random.Generator, temperature: float = TEMPERATURE) -> Move:
    """A good move, by the softmax of the worths; where none would be kept, one whose score is high as such go."""
    moves = [move for move, worth in trace.worths if worth > 0]
    if moves:
        value_M = np.array([worth for _, worth in trace.worths if worth > 0]) / temperature
    else:
        moves = [move for move, _ in trace.worths]
        score_M = np.array([trace.board.score_R[move.row] for move in moves])
        value_M = np.where(np.isfinite(score_M), score_M, 0.0) / max(trace.board.top, 1e-9) / temperature
    share_M = np.exp(value_M - value_M.max())
    return moves[int(rng.choice(len(moves), p=share_M / share_M.sum()))]


def proposal_of(trace: Trace, move: Move) -> Proposal:
    """The move as a proposer says it, with its reasons in a few words."""
    now = trace.situation.history.standing
    before, score = trace.situation.history.present[move.axis], trace.board.score_R[move.row]
    gain = score / now.outcome.score - 1 if now and now.outcome.score > 0 and math.isfinite(score) else 0.0
    return worded(trace.board.space.by_name[move.axis], before, move.value, gain)


def play(
    board: Board,
    rng: np.random.Generator,
    memory: Memory | None = None,
    reflect: bool = True,
    skill: float = 0.5,
    trials: int = MOST_TRIALS,
) -> Iterator[Trace]:
    """The situations of one study of `trials` trials at most, each before its trial.

    skill: share of the moves that are good ones; the rest is drawn from all that are legal.
    """
    budget = int(rng.integers(max(trials, BUDGETS[0]), BUDGETS[1] + 1))
    agent = Agent(board.space, board.data, budget, memory=memory, reflect=reflect)
    history = History(board.space, epsilon=board.epsilon)
    while len(history.trials) < trials:
        proposed = agent.opening(history)
        if proposed is None:
            situation = agent.situation(history)
            trace = Trace(board, situation, tuple(board.worths(situation)))
            if not trace.worths:
                return
            yield trace
            move = choose(trace, rng) if rng.random() < skill else trace.worths[int(rng.integers(len(trace.worths)))][0]
            changed = board.space.change(history.present, move.axis, move.value)
            proposed = Proposed(proposal_of(trace, move), changed, "model", (), ())
        history = agent.absorb(history, proposed, board(proposed.config))


def earlier_study(name: str, board: Board, rng: np.random.Generator, trials: int = EARLIER_TRIALS) -> Summary:
    """The summary of a study that was played well on a board, for a memory to learn from."""
    *_, last = play(board, rng, skill=0.8, trials=trials)
    return summarise(name, last.situation.history, board.data)


def survey(name: str, board: Board, rng: np.random.Generator, rows: int = SURVEYED) -> Summary:
    """The summary of the default and `rows` configurations drawn from a board."""
    default = board.moves.row(board.space.default)
    drawn = [row for row in rng.permutation(len(board.score_R)).tolist() if row != default][:rows]
    outcomes = (board(board.moves.outcomes[row].config) for row in [default, *drawn])
    return summarise(name, History.sampled(board.space, outcomes, board.epsilon), board.data)


def row_of(trace: Trace, move: Move) -> dict[str, Any]:
    """A row of the chat data set; see `chat_rows`."""
    history = trace.situation.history
    reply = {"role": "assistant", "content": proposal_text(proposal_of(trace, move))}
    worths: dict[str, float] = {move.key: round(worth, 4) for move, worth in trace.worths if worth > 0}
    return {
        "messages": [*situation_messages(trace.situation, "brief"), reply],
        "space": trace.board.space.name,
        "config": json.dumps(dict(history.present)),
        "masked": sorted(trace.situation.masked),
        "tried": sorted(history.tried),
        "worths": json.dumps(worths),
    }


@dataclass(frozen=True)
class Mixture:
    """What the training studies are like.

    Args:
        with_memory, with_reflection: shares of the studies that have them. bent: strength of the bending at most;
            at .3 the ranks of bent data sets are as alike as those of the measured ones (Spearman .92 and .79 at the
            median for SASRec and HSTU, .90 to .95 and .80 to .83 measured): a memory is to be believed as far as it is.
        kept: share of the situations of a study without memory that become rows; one with memory begins where little
            is left to improve, and all of its few do.
    """

    with_memory: float = 0.75
    with_reflection: float = 0.85
    bent: float = 0.3
    kept: float = 0.5


def traces(
    boards: Sequence[Board],
    memories: Mapping[int, Sequence[Memory]],
    count: int,
    seed: int,
    mixture: Mixture = Mixture(),
) -> Iterator[Trace]:
    """`count` situations of studies on bent boards, the boards in turn. Where no single change is worth anything,
    nothing is to be learned; the study is played on if it has none of the best configurations yet.

    memories: place of a board -> memories of studies on data sets bent otherwise, one of which a study is given.
    """
    made, number = 0, 0
    while made < count:
        rng, place = np.random.default_rng((seed, number)), number % len(boards)
        number += 1
        board = boards[place]
        others = [other for other in boards if other.space.name == board.space.name and other is not board]
        other = others[int(rng.integers(len(others)))] if others and rng.random() < 0.7 else None
        known = memories.get(place, ())
        memory = known[int(rng.integers(len(known)))] if known and rng.random() < mixture.with_memory else None
        bent = board.bent(rng, other, float(rng.random()) * mixture.bent)
        reflect, skill = bool(rng.random() < mixture.with_reflection), float(rng.uniform(0.2, 0.95))
        length = int(rng.integers(2, MOST_TRIALS + 1))
        for trace in play(bent, rng, memory, reflect, skill, length):
            if not trace.improvable:
                if trace.situation.history.best_score >= bent.target:
                    break
                continue
            if memory is not None or rng.random() < mixture.kept:
                yield trace
                made += 1
                if made == count:
                    return


def chat_rows(found: Iterable[Trace], seed: int) -> Iterator[dict[str, Any]]:
    """Rows for `sft.py` and `grpo_tuner.py`: `messages`, the situation in brief style and a good move; and what a reply
    is judged by: `space`, `config` (JSON), `masked`, `tried` (keys), `worths` (JSON: key of a configuration -> worth of
    the change to it)."""
    rng = np.random.default_rng((seed, 1))
    for trace in found:
        yield row_of(trace, choose(trace, rng))
