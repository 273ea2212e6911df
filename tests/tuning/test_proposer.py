"""From replies to configurations: what is legal is taken, all else is repaired once or replaced at random."""

import json
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from part_spaces import part_space
from studies import DATA, small_space, study, with_trial

from recllm.teachers.protocol import TeacherError
from recllm.tuning.language.prompt import proposal_text
from recllm.tuning.language.proposer import ask_of, propose, random_change
from recllm.tuning.spaces.backbones import backbone_space
from recllm.tuning.study.proposal import Proposal, Reason, Refusal, open_axes, read_proposal
from recllm.tuning.study.reflection import single_change
from recllm.tuning.study.trial import History, Situation

SPACE = part_space("sasrec")
JUNK = (
    *(
        "",
        "{",
        "}" * 500,
        "[" * 20_000,
        '{"a":' * 3000,
        "null",
        "NaN",
        "\ud800",
        "\x00",
        "é" * 300,
        "{{{{{",
        "[]",
        "\U0001f99c",
    ),
    *("__import__('os').system('id')", "../../etc/passwd", "<|im_end|>", "${HOME}", "--output_dir=/", "1e999", "-0"),
    *('{"__class__": 1}', "9" * 400, "0.1", "true", '"', "\\u0000", "\\ud800", "```json", '{"value": {"value": 1}}'),
)


@dataclass
class Scripted:
    """A model that says what is in its script, and notes what it was asked."""

    script: list
    name: str = "scripted"
    style: str = "brief"
    asked: list = field(default_factory=list)

    def reply(self, asks):
        self.asked.append(list(asks))
        return [self.script.pop(0) for _ in asks]


def situation(length=6, seed=0, **more):
    return Situation(study(SPACE, length, seed), DATA, 9, **more)


def legal(of, index=0):
    """A proposal that its schema allows."""
    branch = ask_of(of, Scripted([]), 0).schema["anyOf"][index]["properties"]
    return Proposal("why", branch["changed_dimension"]["const"], branch["value"]["enum"][0], "up", "none")


def test_a_legal_reply_is_taken_whole_and_in_order():
    asked = [situation(4, seed) for seed in range(3)]
    wanted = [legal(one, seed) for seed, one in enumerate(asked)]
    model = Scripted(["Let me think. " + proposal_text(one) + "\nDone." for one in wanted])
    found = propose(model, asked, [7, 8, 9])
    assert len(model.asked) == 1 and [ask.seed for ask in model.asked[0]] == [7, 8, 9]
    for one, proposal, proposed in zip(asked, wanted, found, strict=True):
        history = one.history
        assert (proposed.proposal, proposed.source, proposed.refusals) == (proposal, "model", ())
        assert proposed.config == SPACE.change(history.present, proposal.changed_dimension, proposal.value)
    assert propose(Scripted([]), [], []) == []


def test_only_the_refused_are_asked_again_and_told_why():
    asked = [situation(4, seed) for seed in range(3)]
    good = [proposal_text(legal(one)) for one in asked]
    bad = good[1].replace('"value":', '"value":"no",  "extra":')
    model = Scripted([good[0], bad, "I would not know.", good[1], "still not"])
    found = propose(model, asked, [1, 2, 3])
    assert [one.source for one in found] == ["model", "repaired", "random"]
    assert [[refusal.reason for refusal in one.refusals] for one in found] == [[], ["wrong_fields"], ["not_json"] * 2]
    assert found[1].replies == (bad, good[1]) and found[2].replies == ("I would not know.", "still not")
    first, second = model.asked
    assert [ask.messages[: len(first[1].messages)] for ask in second] == [first[1].messages, first[2].messages]
    assert "extra" in second[0].messages[-1]["content"] and second[0].schema == first[1].schema
    assert found[2].proposal is None and SPACE.key(found[2].config) not in asked[2].history.tried
    assert single_change(SPACE, asked[2].history.present, found[2].config) is not None


def test_a_model_that_cannot_be_asked_is_no_random_trial():
    class Down(Scripted):
        def reply(self, asks):
            raise TeacherError("no connection")

    with pytest.raises(TeacherError, match="no connection"):
        propose(Down([]), [situation()], [0])


def test_what_was_tried_is_not_in_the_schema_and_refused_where_it_is_said():
    for seed in range(4):
        one = situation(25, seed)
        history = one.history
        for branch in ask_of(one, Scripted([]), 0).schema["anyOf"]:
            name, values = (branch["properties"][key] for key in ("changed_dimension", "value"))
            for value in values["enum"]:
                assert SPACE.key(SPACE.change(history.present, name["const"], value)) not in history.tried
    change = next(trial for trial in history.trials if single_change(SPACE, history.present, trial.config))
    name, _, value = single_change(SPACE, history.present, change.config)
    text = proposal_text(Proposal("again", name, value, "up", "none"))
    assert [refusal.reason for refusal in propose(Scripted([text, text]), [one], [0])[0].refusals] == ["tried"] * 2


def test_a_mask_holds_unless_it_leaves_nothing():
    one = situation(3, masked=frozenset(SPACE.default) - {"dropout"})
    branches = ask_of(one, Scripted([]), 0).schema["anyOf"]
    assert {branch["properties"]["changed_dimension"]["const"] for branch in branches} == {"dropout"}
    lr = proposal_text(Proposal("why", "lr", 0.001, "up", "none"))
    refused = propose(Scripted([lr, lr]), [one], [0])[0]
    assert [refusal.reason for refusal in refused.refusals] == ["masked_dimension"] * 2
    assert single_change(SPACE, one.history.present, refused.config)[0] == "dropout"
    history = History(SPACE)
    for value in (0.2, 0.0, 0.4, 0.6):  # now every value of the one open axis was tried
        history = with_trial(history, {**SPACE.default, "dropout": value}, 0.04 - value / 100, source="default")
    one = replace(one, history=history)
    model = Scripted([lr])
    assert propose(model, [one], [0])[0].source == "model"
    assert "masked" not in model.asked[0][0].messages[0]["content"]


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_use_a_space_up_without_a_repeat(seed):
    space, history, model = small_space(), History(small_space()), Scripted(["no"] * 100)
    history = with_trial(history, space.default, 0.04, source="default")
    rng = np.random.default_rng(seed)
    while len(history.trials) < 36:
        proposed = propose(model, [Situation(history, DATA, 1, masked=frozenset({"mode"}))], [seed])[0]
        assert space.check(proposed.config) == proposed.config
        assert space.key(proposed.config) not in history.tried and proposed.source == "random"
        history = with_trial(history, proposed.config, 0.04 * rng.random(), source="random")
    with pytest.raises(ValueError, match="no configuration of small is left to try after 36 trials"):
        propose(model, [Situation(history, DATA, 1)], [seed])


def test_random_changes_are_even_over_the_open_axes_and_follow_the_seed():
    one = situation(1, masked=frozenset({"lr"}))
    history = one.history
    drawn = [single_change(SPACE, history.present, random_change(one, seed)) for seed in range(1500)]
    open_ = [axis.name for axis in open_axes(SPACE, history.present, one.masked)]
    counts = np.array([sum(name == axis for name, _, _ in drawn) for axis in open_])
    assert counts.sum() == 1500 and "lr" not in open_
    expected = 1500 / len(open_)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    assert {value for name, _, value in drawn if name == "dropout"} == {0.0, 0.4, 0.6}
    assert random_change(one, 3) == random_change(one, 3)


def test_a_range_is_drawn_from_too():
    space = backbone_space("sasrec")
    one = Situation(study(space, 2), DATA, 9, masked=frozenset(space.by_name) - {"lr"})
    drawn = {random_change(one, seed)["lr"] for seed in range(40)}
    assert len(drawn) > 30 and all(1e-5 <= value <= 3e-2 for value in drawn)


def judge(reply, one):
    """Whatever a reply is, it is a legal and new configuration or a typed refusal."""
    history = one.history
    found = read_proposal(reply, history.space, history.present, one.masked, history.tried)
    if isinstance(found, Refusal):
        assert found.reason in get_args(Reason) and found.words and len(found.words) < 1500
        return found.reason
    proposal, config = found
    assert history.space.check(config) == config and history.space.key(config) not in history.tried
    name, _, value = single_change(history.space, history.present, config)
    assert (name, value) == (proposal.changed_dimension, proposal.value) and name not in one.masked
    return "legal"


def mutated(text, rng):
    """A legal reply, damaged as replies are."""
    for _ in range(int(rng.integers(1, 4))):
        at, until = sorted(rng.integers(0, len(text) + 1, 2))
        junk = str(rng.choice(JUNK)) if rng.random() < 0.5 else text[at:until]
        kind = rng.integers(6)
        if kind == 0:
            text = text[:at] + text[min(at + int(rng.integers(1, 9)), until) :]
        elif kind == 1:
            text = text[:at] + junk + text[at:]
        elif kind == 2:
            text = text[:at] + junk + text[until:]
        elif kind == 3:
            try:  # one field taken out, doubled or given another value
                said = json.loads(text)
                name = sorted(said)[int(rng.integers(len(said)))]
                said[name] = [junk, None, [said], {"a": said}, 10 ** int(rng.integers(40)), -1, True, said.pop(name)][
                    int(rng.integers(8))
                ]
                text = json.dumps(said)
            except (ValueError, TypeError, AttributeError, RecursionError):
                text = junk
        elif kind == 4:
            text = text.replace(str(rng.choice(["lr", "0", "value", ",", ":", "{"])), junk, 1)
        else:
            text = junk + text + junk
    return text


@pytest.mark.parametrize("which", range(4))
def test_ten_thousand_damaged_replies(which):
    # Four situations of 2,500 replies each.
    space = (SPACE, backbone_space("hstu"), small_space(), part_space("hstu"))[which]
    one = Situation(study(space, 5, which), DATA, 9, masked=frozenset({"lr"} if which < 2 else ()))
    rng, seen = np.random.default_rng(which), []
    for _ in range(2500):
        config = dict(one.history.present)
        axis = space.by_name[str(rng.choice(sorted(config)))]
        proposal = Proposal("it may help", axis.name, axis.from_unit(rng.random()), "up a little", "slower")
        reply = proposal_text(proposal)
        seen.append(judge(reply if rng.random() < 0.2 else mutated(reply, rng), one))
    counts = {reason: seen.count(reason) for reason in set(seen)}
    # The fuzz reaches every judgement; replies that stay legal too.
    assert counts["legal"] > 200 and set(counts) >= {"not_json", "wrong_fields", "unknown_dimension", "no_change"}
    assert ("masked_dimension" in counts) == (which < 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(JUNK[5:9]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
ONE = situation()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_json_in_any_field(data):
    reply = {"hypothesis": "a", "changed_dimension": "lr", "value": 0.001, "expected_effect": "b", "risk": "c"}
    for name in data.draw(st.lists(st.sampled_from(sorted(reply)), max_size=3)):
        reply[name] = data.draw(JSON)
    judge(json.dumps(reply), ONE)
    judge(json.dumps(data.draw(JSON)), ONE)


def test_a_reply_of_any_size_is_judged_at_once():
    for reply in (
        "{" * 10_000,
        '{"a":' * 3999,
        "x" * 10_000_000,
        "[" * 19_999 + "]",
        '{"hypothesis": "' + "a" * 19_000,
    ):
        assert judge(reply, ONE) == "not_json"
