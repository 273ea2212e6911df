"""The synthetic city keeps its promises, and its Bayes observer is right: against enumeration, samples and rivals."""

import dataclasses
import itertools
import json
import math
import runpy

import numpy as np
import pytest
from scipy.stats import kstest, vonmises

from recllm.data.catalog import Catalog
from recllm.data.checkins import VENUE_SCHEMA, Visits, earlier_alike
from recllm.data.splits import load_split
from recllm.needs import worlds_rules
from recllm.needs.worlds import CITIES, RETURN, WorldOptions, make_world, write_world
from recllm.needs.worlds_bayes import ceilings, filter_scores, foresight, hindsight
from recllm.needs.worlds_city import draw
from recllm.needs.worlds_rules import LEAVES, NEEDS, SCENES, WEATHERS, make_rules
from recllm.training.arguments import parse

EVENTS = ("user_M", "day_M", "second_M", "scene_M", "venue_M", "need_M")


def small(**changes) -> WorldOptions:
    return WorldOptions(**{"users": 40, "visits": 15, "venues": 150, **changes})


@pytest.fixture(scope="module")
def world():
    return make_world(small(users=400, visits=30))


@pytest.fixture(scope="module")
def after(world):
    return hindsight(world)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("needs", [8, 12, 14])
def test_needs_and_categories_overlap_as_promised(seed, needs):
    rules = make_rules(needs, 3, seed)
    covers = [{c for c in range(len(rules.categories)) if rules.category_NC[n, c] >= 0.05} for n in range(needs)]
    wide = sum(len(own) >= 3 for own in covers) / needs
    shared = sum(sum(c in own for own in covers) >= 2 for c in range(len(rules.categories))) / len(rules.categories)
    assert wide >= 1 / 2 and shared >= 1 / 3
    assert rules.shares() == {"needs_with_3_categories": wide, "categories_under_2_needs": shared}
    for table in (rules.category_NC, rules.scene_NS, rules.lifestyle_KN, rules.need_prior()):
        assert (table >= 0).all() and np.allclose(table.sum(-1), 1)


def test_a_rule_without_overlap_is_refused(monkeypatch):
    apart = [dataclasses.replace(n, leaves=leaves) for n, leaves in zip(NEEDS, LEAVES.values(), strict=False)]
    monkeypatch.setattr(worlds_rules, "NEEDS", tuple(apart))
    with pytest.raises(ValueError, match="overlaps too little"):
        make_rules(6, 1, 0)


def test_rare_needs_are_rare_and_come_up(world):
    share_N = np.bincount(world.need_M[~world.accidental_M], minlength=12) / (~world.accidental_M).sum()
    assert (share_N[-3:] < 0.03).all() and (share_N[-3:] > 0.005).all() and (share_N[:-3] > 0.03).all(), share_N


def test_no_description_names_a_category():
    names = [*LEAVES, *(leaf for leaves in LEAVES.values() for leaf in leaves.split(", "))]
    for need in NEEDS:
        text = f"{need.name}: {need.description}".casefold()
        assert [name for name in names if name.casefold() in text] == []
        assert set(need.leaves.split(", ")) <= set(names)
        assert len(need.name.split(" / ")) == 2
    assert len({need.name for need in NEEDS}) == len({need.description for need in NEEDS}) == len(NEEDS)
    assert sum(len(leaves.split(", ")) for leaves in LEAVES.values()) == len(set(names)) - len(LEAVES) == 40


def test_the_same_options_give_the_same_world():
    one, two, other = make_world(small()), make_world(small()), make_world(small(seed=1))
    for name in (*EVENTS, "lifestyle_U"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert one.city.frame.equals(two.city.frame)
    assert not np.array_equal(one.rules.category_NC, other.rules.category_NC)


def test_two_cities_share_the_rule_and_nothing_else():
    port, hill = (make_world(small(city=city, seed=3)) for city in CITIES)
    for field in dataclasses.fields(port.rules):
        assert np.array_equal(getattr(port.rules, field.name), getattr(hill.rules, field.name))
    assert not set(port.city.frame["title"]) & set(hill.city.frame["title"])
    assert port.city.frame["title"].n_unique() == 150
    assert np.abs(port.city.frame["lat"].to_numpy() - hill.city.frame["lat"].to_numpy()).min() > 1
    share_C = [np.bincount(world.city.category_V, world.city.popularity_V) for world in (port, hill)]
    assert np.abs(share_C[0] - share_C[1]).sum() > 0.2
    assert set(port.visits["need"]) == set(hill.visits["need"])


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_accidents_come_at_their_rate_and_know_nothing_of_the_context(rate):
    world = make_world(small(users=200, visits=30, accidental_rate=rate))
    chance_M = world.accidental_M
    count, size = chance_M.sum(), len(chance_M)
    assert abs(count - rate * size) < 4 * math.sqrt(size * rate * (1 - rate))
    assert kstest(world.second_M[chance_M] / 86_400, "uniform").pvalue > 1e-4
    scene_S = np.bincount(world.scene_M[chance_M], minlength=len(SCENES))
    assert np.abs(scene_S - count / len(SCENES)).max() < 4 * math.sqrt(count / len(SCENES))
    share_V, found_V = world.city.popularity_V, np.bincount(world.venue_M[chance_M], minlength=150)
    assert (np.abs(found_V - count * share_V) < 5 * np.sqrt(count * share_V) + 3).all()


def test_needful_visits_follow_the_planted_need(world):
    needful = ~world.accidental_M
    need, category = world.need_M[needful], world.category_M[needful]
    assert (world.rules.category_NC[need, category] > 0).all()
    for n, count in enumerate(np.bincount(need)):
        found_S = np.bincount(world.scene_M[needful][need == n], minlength=len(SCENES))
        share_S = world.rules.scene_NS[n]
        assert (np.abs(found_S - count * share_S) < 4.5 * np.sqrt(count * share_S * (1 - share_S))).all()


@pytest.mark.parametrize("accidental", [False, True])
def test_needful_visits_return_and_accidents_do_not(world, accidental):
    venues, categories = world.venue_M.tolist(), world.category_M.tolist()
    share_C = np.bincount(world.city.category_V, world.city.popularity_V)
    expected, variance, seen = 0.0, 0.0, 0
    for user in range(200):
        rows = np.flatnonzero(world.user_M == user).tolist()
        for place, row in enumerate(rows):
            known = {venues[r] for r in rows[:place] if categories[r] == categories[row]}
            if known and world.accidental_M[row] == accidental:
                near = float(world.city.near_SV[world.scene_M[row], list(known)].sum())
                popular = float(world.city.popularity_V[list(known)].sum() / share_C[categories[row]])
                chance = popular if accidental else RETURN + (1 - RETURN) * near
                expected, variance = expected + chance, variance + chance * (1 - chance)
                seen += venues[row] in known
    assert abs(seen - expected) < 4 * math.sqrt(variance) and variance > 50


def test_hour_density_integrates_to_one_and_is_that_of_the_events(world):
    grid = (np.arange(24 * 60) + 0.5) / 60
    assert np.allclose(world.rules.hour_density(grid).sum(0) / 60, 1, atol=1e-6)
    for n in range(3):
        cumulative = np.concatenate([[0], world.rules.hour_density(grid)[:, n].cumsum() / 60])
        hours = world.second_M[world.need_M == n] / 3600
        assert kstest(hours, lambda x, c=cumulative: np.interp(x, np.arange(24 * 60 + 1) / 60, c)).pvalue > 1e-4


def likelihood(world, row: int, need: int | None, kind: int, seen: bool) -> float:
    """p(hour, scene, and if `seen` the venue; need | lifestyle, day, earlier venues), from the text of worlds.py."""
    rules, city, rate = world.rules, world.city, world.options.accidental_rate
    venue, scene = int(world.venue_M[row]), int(world.scene_M[row])
    if need is None:
        return rate / 24 / len(SCENES) * (city.popularity_V[venue] if seen else 1)
    day = city.day_kind_Y[world.day_M[row]]
    share_N = [rules.lifestyle_KN[kind, n] * rules.day_ND[n, day] for n in range(len(rules.needs))]
    hour = (world.second_M[row] + 0.5) / 3600
    turn = 2 * math.pi / 24
    peaks = [vonmises.pdf(hour * turn, rules.kappa_N[need], mu * turn) * turn for mu in rules.hours_N2[need]]
    value = (1 - rate) * share_N[need] / sum(share_N) * sum(peaks) / 2 * rules.scene_NS[need, scene]
    if not seen:
        return value
    category = city.category_V[venue]
    past = [
        int(world.venue_M[r])
        for r in range(row)
        if world.user_M[r] == world.user_M[row] and city.category_V[world.venue_M[r]] == category
    ]
    own_V = [v for v in range(len(city.category_V)) if city.category_V[v] == category]
    new = city.near_SV[scene, venue] / sum(city.near_SV[scene, v] for v in own_V)
    back = RETURN if past else 0
    chance = back * past.count(venue) / len(past) if past else 0
    return value * rules.category_NC[need, category] * (chance + (1 - back) * new)


@pytest.fixture(scope="module")
def first_three():
    """A tiny world, and three first events of a user with all that may have led to them: (lifestyle, needs) -> p."""
    world = make_world(small(users=3, visits=6, needs=8, rare_needs=2, accidental_rate=0.3, days=20, seed=5))
    start = int(np.searchsorted(world.user_M, 1))
    rows, answers = np.arange(start, start + 3), [None, *range(8)]
    return world, rows, answers


def enumerated(world, rows, answers, seen):
    """P(answer of the last row | ...) by summing over lifestyles and the answers of all rows."""
    table = {
        (i, kind, answer): likelihood(world, int(row), answer, kind, seen[i])
        for i, row in enumerate(rows)
        for kind in range(len(world.rules.lifestyle_KN))
        for answer in answers
    }
    joint = np.zeros((len(rows), len(answers)))
    for kind in range(len(world.rules.lifestyle_KN)):
        for ways in itertools.product(range(len(answers)), repeat=len(rows)):
            p = math.prod(table[i, kind, answers[way]] for i, way in enumerate(ways))
            for i, way in enumerate(ways):
                joint[i, way] += p
    return joint / joint.sum(1, keepdims=True)


def test_hindsight_is_what_enumeration_finds(first_three):
    world, rows, answers = first_three
    expected = enumerated(world, rows, answers, [True] * 3)
    found = hindsight(world, rows, read=rows)
    assert np.allclose(found.accidental_M, expected[:, 0], rtol=1e-9)
    assert np.allclose(found.need_MN, expected[:, 1:], rtol=1e-9, atol=1e-12)
    turned = hindsight(world, rows[::-1], read=rows)
    assert np.allclose(turned.need_MN, found.need_MN[::-1])
    assert not np.allclose(hindsight(world, rows).need_MN, found.need_MN), "later events say more of the lifestyle"


def test_foresight_is_what_enumeration_finds(first_three):
    world, rows, answers = first_three
    for length in (1, 2, 3):
        expected = enumerated(world, rows[:length], answers, [True] * (length - 1) + [False])[-1]
        found = foresight(world, rows[[length - 1]])
        assert np.allclose(found.accidental_M, expected[0], rtol=1e-9)
        assert np.allclose(found.need_MN[0], expected[1:], rtol=1e-9, atol=1e-12)


def test_foresight_looks_at_no_later_event_and_no_venue(world):
    row = int(np.searchsorted(world.user_M, 1)) - 6
    changed = dataclasses.replace(world, venue_M=np.where(np.arange(len(world.user_M)) >= row, 0, world.venue_M))
    assert np.allclose(foresight(changed, [row]).need_MN, foresight(world, [row]).need_MN)
    assert not np.allclose(hindsight(changed, [row]).need_MN, hindsight(world, [row]).need_MN)


@pytest.mark.parametrize("observer", [hindsight, foresight])
def test_beliefs_are_calibrated(world, observer):
    belief = observer(world)
    assert np.allclose(belief.accidental_M + belief.need_MN.sum(1), 1)
    events = np.column_stack([belief.accidental_M, belief.need_MN])
    truth = np.column_stack([world.accidental_M, world.need_M[:, None] == np.arange(12)])
    edges = [0, 0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.01]
    for low, high in itertools.pairwise(edges):
        inside = (events >= low) & (events < high)
        p, hits = events[inside], truth[inside]
        # Needs of one event exclude each other, so the binomial deviation is an upper bound.
        assert abs(hits.sum() - p.sum()) < 4 * math.sqrt((p * (1 - p)).sum()) + 1, f"beliefs of {low} to {high}"
        assert len(p) > 50


def test_no_simple_filter_makes_fewer_mistakes(world, after):
    category, venue = world.category_M, world.venue_M
    hour = world.second_M // 3600
    per_user_venue = np.unique(world.user_M * 1000 + venue, return_inverse=True)[1]
    rivals = {
        "popularity": world.city.popularity_V[venue],
        "category frequency": np.bincount(category)[category],
        "venue frequency": np.bincount(venue)[venue],
        "visits of the category at this hour": np.bincount(category * 24 + hour)[category * 24 + hour],
        "visits of the category in this scene": np.bincount(category * 6 + world.scene_M)[category * 6 + world.scene_M],
        "the user's visits of the venue": np.bincount(per_user_venue)[per_user_venue],
        "earlier visits of the category": earlier_alike(world.user_M * 100 + category)[2],
        "likely context": foresight(world).accidental_M,
    }
    least = np.minimum(after.accidental_M, 1 - after.accidental_M)
    assert np.allclose(np.where(after.dropped_M, 1 - after.accidental_M, after.accidental_M), least)
    mistakes = int((after.dropped_M != world.accidental_M).sum())
    assert mistakes < 0.6 * world.accidental_M.sum(), "better than keeping all"
    for name, score in rivals.items():
        for cut in np.quantile(score, np.linspace(0, 1, 41)):
            wrong = int(((score <= cut) != world.accidental_M).sum())
            fewest = min(wrong, len(score) - wrong)
            assert mistakes < fewest, name


def test_the_ceilings_leave_room_and_mean_something(world):
    found = ceilings(world)
    assert 0.8 < found["need_accuracy"] < 0.98
    assert found["need_accuracy"] > found["need_accuracy_ahead"] > 2 * found["majority_need"]
    assert found["need_nmi"] > 0.8
    assert found["precision"] > 0.75 and found["recall"] > 0.55
    for name in ("precision", "recall", "need_accuracy", "need_accuracy_ahead"):
        assert abs(found[name] - found[f"{name}_expected"]) < 0.02, name


def test_history_helps_to_know_the_need(world):
    user_M = np.arange(len(world.user_M))
    strangers = dataclasses.replace(
        world, user_M=user_M, options=dataclasses.replace(world.options, users=len(user_M)), lifestyle_U=user_M
    )
    needful = ~world.accidental_M
    known, unknown = ((foresight(log).best_need_M == world.need_M)[needful].mean() for log in (world, strangers))
    assert known > unknown + 0.03


def test_scores_of_a_filter_by_hand():
    dropped, planted = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    assert filter_scores(dropped, planted) == {"precision": 2 / 3, "recall": 2 / 3}
    assert filter_scores(dropped, np.array([0.5, 0.25, 0.25, 0.0, 1.0])) == {"precision": 1.75 / 3, "recall": 1.75 / 2}
    assert filter_scores(~dropped & dropped, planted) == {"recall": 0.0}
    assert filter_scores(dropped, planted & ~planted) == {"precision": 0.0}


def test_without_accidents_nothing_is_dropped():
    world = make_world(small(accidental_rate=0))
    assert not world.accidental_M.any()
    found = hindsight(world)
    assert not found.dropped_M.any() and (found.accidental_M == 0).all()
    assert "precision" not in ceilings(world) and "" not in set(world.visits["need"])


def test_draws_follow_their_row():
    rng = np.random.default_rng(0)
    table = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 3.0]])
    row_M = np.repeat([0, 1, 2], 1000)
    counts = np.stack([np.bincount(draw(table, row_M, rng)[row_M == r], minlength=3) for r in range(3)])
    assert counts[0].tolist() == [0, 1000, 0] and counts[2, 1] == 0 and abs(counts[2, 0] - 250) < 70
    assert counts[1, 1] == 0 and abs(counts[1, 0] - 500) < 80
    order, start, count = earlier_alike(np.array([7, 3, 7, 7, 3]))
    assert (order.tolist(), start.tolist(), count.tolist()) == ([1, 4, 0, 2, 3], [2, 0, 2, 2, 0], [0, 0, 1, 2, 1])


def test_the_folder_is_a_data_set_with_visits(tmp_path):
    world = make_world(small())
    counts = write_world(tmp_path, world)
    visits, split, catalog = Visits.load(tmp_path), load_split(tmp_path), Catalog.load(tmp_path)
    assert counts["users"] == 40 and counts["items"] == len(catalog) == 150 and counts["events"] == len(visits)
    assert visits.frame.equals(world.visits)
    assert all((root, leaf) in world.rules.categories for root, leaf in catalog.categories)
    assert {name: catalog.frame.schema[name] for name in VENUE_SCHEMA} == VENUE_SCHEMA
    known = json.loads((tmp_path / "dataset.json").read_text())
    assert known["time"] == "seconds" and known["world"]["accidental_rate"] == 0.2
    assert set(known["needs"]) == {need.name for need in world.rules.needs}
    assert set(visits.frame["need"]) <= {*known["needs"], ""}
    assert ((visits.frame["need"] == "") == visits.frame["accidental"]).all()
    assert set(visits.frame["weather"]) == set(WEATHERS)
    # The backbones are fitted on the fold "fit", event for event.
    fit_U = np.bincount(world.user_M[world.fold_M == "fit"], minlength=40)
    assert split.fit_length_U.tolist() == fit_U.tolist() == (split.sequences.lengths_U - 4).tolist()
    assert len(visits.rows("validation")) == len(visits.rows("test")) == 80
    assert set(split.test.targets_E) <= set(visits.frame["item_id"].to_numpy()[visits.rows("test")])
    stamps = visits.frame["timestamp"].to_numpy()
    assert np.allclose(stamps % 86_400 / 3600, visits.frame["hour"].to_numpy(), atol=1e-4)
    assert ((stamps // 86_400 + 3) % 7 == visits.frame["weekday"].to_numpy()).all(), "1970-01-01 was a Thursday"


def test_the_script_writes_a_world(repo_root, tmp_path):
    script = runpy.run_path(str(repo_root / "data_prep" / "needs_world.py"))
    config = repo_root / "recipes" / "configs" / "needs_world" / "smoke.yaml"
    (args,) = parse(script["Arguments"], argv=["--config", str(config), "--output_dir", str(tmp_path)])
    script["main"](args)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["users"] == 60 and metrics["categories_under_2_needs"] >= 1 / 3
    assert 0 < metrics["bayes/fit/recall"] < 1 and metrics["bayes/test/need_accuracy"] > 0.7
    assert len(Visits.load(tmp_path)) == metrics["events"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"city": "moon"}, "unknown; the cities are port, hill"),
        ({"accidental_rate": 1.0}, "accidental_rate"),
        ({"visits": 5}, "visits of 6"),
        ({"visits": 130}, "days=120"),
        ({"users": 0}, "users=0"),
        ({"venues": 100}, "at least 120"),
        ({"needs": 15}, "2 to 14"),
        ({"needs": 3}, "2 to 14"),
    ],
)
def test_impossible_worlds_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_world(small(**changes))
