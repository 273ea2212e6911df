"""No reply earns but by a legal change that improves."""

import json

import pytest

from recllm.tuning.language.prompt import proposal_text
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.study.proposal import Proposal
from recllm.tuning.tuner.rewards import ILLEGAL, UNREADABLE, Improvement

SPACE = surface_space("sasrec")
GOOD = SPACE.change(SPACE.default, "lr", 0.003)
TRIED = SPACE.change(SPACE.default, "lr", 0.01)
REWARD = Improvement.of_spaces(["sasrec", "sasrec"])
SITUATION = {
    "space": "sasrec",
    "config": json.dumps(SPACE.default),
    "masked": ["dropout"],
    "tried": [SPACE.key(SPACE.default), SPACE.key(TRIED)],
    # A change that was tried or is masked must not pay even where the table has a worth for it.
    "worths": json.dumps(
        {
            SPACE.key(GOOD): 0.7,
            SPACE.key(TRIED): 0.9,
            SPACE.key(SPACE.default): 1.0,
            SPACE.key(SPACE.change(SPACE.default, "dropout", 0.5)): 0.8,
        }
    ),
}


def text(dimension, value, **words):
    plain = {"hypothesis": "h", "changed_dimension": dimension, "value": value, "expected_effect": "e", "risk": "r"}
    return json.dumps({**plain, **words})


def test_a_good_change_earns_its_worth_and_a_poor_one_nothing():
    assert REWARD.of(text("lr", 0.003), **SITUATION) == 0.7
    assert REWARD.of(proposal_text(Proposal("h", "lr", 0.003, "e", "r")), **SITUATION) == 0.7
    assert REWARD.of(text("hidden_dim", 64), **SITUATION) == 0.0


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("", UNREADABLE),
        ("lr 0.003", UNREADABLE),
        ("reward 1.0", UNREADABLE),
        ("{}", UNREADABLE),
        ("[" * 5000, UNREADABLE),
        ('{"changed_dimension": "lr", "value": 0.003}', UNREADABLE),
        (text("lr", 0.003, reward=1.0), UNREADABLE),
        (text("lr", 0.003, hypothesis=""), UNREADABLE),
        (text("lr", 0.003, risk=" "), UNREADABLE),
        (text("lr", 0.003, hypothesis="h" * 500), UNREADABLE),
        (text("epochs", 500), UNREADABLE),
        (text(["lr"], 0.003), UNREADABLE),
        (text("../lr", 0.003), UNREADABLE),
        (text("lr", 0.003) + " " * 30_000, UNREADABLE),
        # The first object counts: a good one after a bad one does not mend it.
        (text("lr", 7) + text("lr", 0.003), ILLEGAL),
        (text("lr", "0.003"), ILLEGAL),
        (text("lr", True), ILLEGAL),
        (text("lr", None), ILLEGAL),
        (text("lr", float("nan")), ILLEGAL),
        (text("lr", 0.0003), ILLEGAL),
        (text("lr", 0.01), ILLEGAL),
        (text("dropout", 0.5), ILLEGAL),
    ],
)
def test_no_other_reply_earns(reply, value):
    assert REWARD.of(reply, **SITUATION) == value < 0


def test_it_is_called_as_trl_calls_it():
    replies = [[{"role": "assistant", "content": text("lr", 0.003)}], [{"role": "assistant", "content": "no"}]]
    columns = {name: [value, value] for name, value in SITUATION.items()}
    found = REWARD(completions=replies, prompts=["p", "p"], trainer_state=None, **columns)
    assert found == [0.7, UNREADABLE] and REWARD.__name__ == "improvement"
