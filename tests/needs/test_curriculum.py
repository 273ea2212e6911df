"""The curriculum: order, mixture, promotion, and that a state goes on as if nothing had happened."""

import json
from collections import Counter

import numpy as np
import pytest

from recllm.needs.curriculum import Curriculum, Plan, Promotion

TYPICALITY = np.random.default_rng(0).normal(size=500)


def plan(**changes) -> Plan:
    known = {"rounds": 60, "prompts": 8, "window": 3, "cap": 10, "thresholds": {"need": 0.8, "category": 0.6}}
    return Plan(**{**known, **changes})


def play(curriculum: Curriculum, rounds: int, reward=lambda round, stage: 0.0) -> list[list]:
    """Rounds with the same reward for all prompts of a stage; each completion twice, as groups have it."""
    seen = []
    for _ in range(rounds):
        picks = curriculum.pick()
        seen.append(picks)
        at = curriculum.round - 1
        curriculum.observe([(pick.stage, reward(at, pick.stage)) for pick in picks for _ in range(2)])
    return seen


def test_a_stage_ends_at_its_cap_where_rewards_stay_low():
    curriculum = Curriculum(plan(), TYPICALITY)
    seen = play(curriculum, 60)
    assert curriculum.promotions == [
        Promotion("category", 10, False, 0.0),
        Promotion("service", 20, False, 0.0),
    ]
    stages = [{pick.stage for pick in picks} for picks in seen]
    assert stages[:10] == [{"need"}] * 10
    assert all("category" in kinds and "service" not in kinds for kinds in stages[10:20])
    assert all("service" in kinds for kinds in stages[20:])


def test_the_average_of_the_window_promotes_and_nothing_of_another_stage_counts():
    rewards = {0: 1.0, 1: 0.1, 2: 0.9, 3: 0.9, 4: 0.7}  # means of three: .67, .63, .83
    curriculum = Curriculum(plan(), TYPICALITY)
    play(curriculum, 20, lambda at, stage: rewards.get(at, 0.0) if stage == "need" else 0.55)
    first, second = curriculum.promotions
    assert first[:3] == ("category", 5, True) and first.mean == pytest.approx((0.9 + 0.9 + 0.7) / 3)
    # Replayed needs pay 0 and categories .55, below .6: the cap it is.
    assert second[:3] == ("service", 15, False) and second.mean == pytest.approx(0.55)


def test_a_window_that_is_not_full_promotes_nobody():
    curriculum = Curriculum(plan(window=3), TYPICALITY)
    play(curriculum, 2, lambda at, stage: 1.0)
    assert curriculum.stage == "need"
    play(curriculum, 1, lambda at, stage: 1.0)
    assert curriculum.stage == "category"
    # The average begins anew with the stage.
    play(curriculum, 2, lambda at, stage: 1.0)
    assert curriculum.stage == "category"


@pytest.mark.parametrize("replay", [0.0, 0.2, 0.35])
def test_a_fixed_share_of_the_prompts_repeats_what_earlier_stages_asked(replay):
    curriculum = Curriculum(plan(replay=replay), TYPICALITY)
    seen = play(curriculum, 60)
    assert {pick.stage for picks in seen[:10] for pick in picks} == {"need"}
    asked = {"need": set(), "category": set(), "service": set()}
    for first, last in ((10, 20), (20, 60)):
        current = seen[first][0].stage if replay == 0 else ("category" if first == 10 else "service")
        picks = [pick for picks in seen[first:last] for pick in picks]
        repeats = [pick for pick in picks if pick.stage != current]
        assert len(repeats) == int(replay * len(picks) + 1e-9)
        asked |= {
            stage: {pick.event for earlier in seen[:first] for pick in earlier if pick.stage == stage}
            for stage in asked
            if stage != current
        }
        assert all(pick.event in asked[pick.stage] for pick in repeats)
    if replay:
        late = Counter(pick.stage for picks in seen[20:] for pick in picks)
        assert abs(late["need"] - late["category"]) < 4 * np.sqrt(late["need"] + late["category"])


def test_what_a_stage_left_unasked_when_it_was_over_is_not_repeated():
    curriculum = Curriculum(plan(rounds=100, replay=0.5), TYPICALITY)
    seen = play(curriculum, 100, lambda at, stage: 1.0 if stage == "need" else 0.0)
    assert curriculum.promotions[0][:3] == ("category", 3, True)
    asked = {pick.event for picks in seen[:3] for pick in picks}
    repeats = {pick.event for picks in seen[3:] for pick in picks if pick.stage == "need"}
    assert len(asked) == 24 and repeats == asked


def test_events_of_a_stage_come_from_head_to_tail_and_once():
    seen = play(Curriculum(plan(), TYPICALITY), 60)
    for stage, first, last in (("need", 0, 10), ("category", 10, 20), ("service", 20, 60)):
        own = [pick.event for picks in seen[first:last] for pick in picks if pick.stage == stage]
        values = TYPICALITY[own]
        assert (np.diff(values) <= 0).all() and len(set(own)) == len(own)
        # From the head to the tail of all, not only among the best.
        assert values[0] > np.quantile(TYPICALITY, 0.9) and values[-1] < np.quantile(TYPICALITY, 0.1)


def test_fewer_events_than_prompts_come_again():
    seen = play(Curriculum(plan(), TYPICALITY[:5]), 12)
    assert Counter(pick.event for picks in seen[:10] for pick in picks) == dict.fromkeys(range(5), 16)


def test_joint_is_all_stages_from_the_start_without_order():
    curriculum = Curriculum(plan(joint=True), TYPICALITY)
    seen = play(curriculum, 60, lambda at, stage: 1.0)
    assert curriculum.promotions == [] and curriculum.stage == "service"
    for picks in (seen[0], seen[-1]):
        counts = Counter(pick.stage for pick in picks)
        assert set(counts.values()) <= {2, 3} and len(counts) == 3
    own = TYPICALITY[[pick.event for picks in seen for pick in picks if pick.stage == "need"]]
    assert abs(np.corrcoef(np.arange(len(own)), own)[0, 1]) < 0.25


def test_two_stages_of_a_pipeline_begin_with_the_first_of_them():
    curriculum = Curriculum(plan(stages=("category", "service")), TYPICALITY)
    seen = play(curriculum, 20)
    assert {pick.stage for picks in seen[:10] for pick in picks} == {"category"}
    assert [promotion.stage for promotion in curriculum.promotions] == ["service"]
    alone = Curriculum(plan(stages=("need",)), TYPICALITY)
    assert {pick.stage for picks in play(alone, 60) for pick in picks} == {"need"} and not alone.promotions


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("cut", [1, 9, 10, 13, 31])
def test_a_state_that_went_through_json_goes_on_as_if_never_stopped(cut, joint):
    def reward(at, stage):
        return (at % 7) / 7

    known = plan(joint=joint, thresholds={"need": 0.5, "category": 0.45})
    whole, stopped = Curriculum(known, TYPICALITY), Curriculum(known, TYPICALITY)
    expected = play(whole, 60, reward)
    before = play(stopped, cut, reward)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = Curriculum(known, TYPICALITY)
    resumed.load_state_dict(state)
    assert before + play(resumed, 60 - cut, reward) == expected
    assert resumed.promotions == whole.promotions and resumed.state_dict() == whole.state_dict()
    other = Curriculum(plan(stages=("need",)), TYPICALITY)
    with pytest.raises(ValueError, match="3 stages"):
        other.load_state_dict(state)


def test_a_seed_decides_which_events_are_asked():
    first, again, other = (play(Curriculum(plan(seed=seed), TYPICALITY), 30) for seed in (0, 0, 1))
    assert first == again and first != other


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages": ("service", "need")}, "in this order"),
        ({"stages": ()}, "in this order"),
        ({"replay": 1.0}, "replay"),
        ({"window": 0}, "window=0"),
        ({"rounds": 20}, "lower the cap"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        plan(**changes)


def test_events_without_a_typicality_are_refused():
    with pytest.raises(ValueError, match="typicality"):
        Curriculum(plan(), np.array([0.1, np.nan]))
