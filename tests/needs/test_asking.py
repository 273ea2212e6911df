"""Visits as questions: nothing of the visit itself in its prompt, references that can be learned, chats as answered."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.data.interactions import Sequences
from recllm.needs.asking import Asking, Others, references
from recllm.needs.chats import chat_rows
from recllm.needs.patterns import Patterns
from recllm.needs.prompts import Context
from recllm.needs.rewards import Places
from recllm.needs.schema import ServiceNames, read_answer
from recllm.needs.vocabulary import candidates
from recllm.needs.worlds import WorldOptions, make_world, write_world

worlds = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("need_worlds.py")), run_name="need_worlds"))
NAMES = ServiceNames()


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    write_world(folder, make_world(WorldOptions(users=30, visits=12, venues=120)))
    visits, catalog = Visits.load(folder), Catalog.load(folder)
    places = Places.from_catalog(catalog, candidates(visits, catalog))
    patterns = Patterns.load(worlds.write_patterns(folder / "patterns", folder), visits)
    return SimpleNamespace(visits=visits, catalog=catalog, places=places, patterns=patterns)


def test_a_prompt_tells_what_was_known_before_the_visit_and_no_more(city):
    asking = Asking(city.visits, city.places, NAMES)
    row = int(city.visits.history(40)[0]) + 3
    said = asking.chat(row, "service")[0]["content"]
    items = city.visits.sequences.items_M[row - 3 : row]
    hours = city.visits.frame["hour"][row - 3 : row]
    recent = "; ".join(
        f"{city.catalog.categories[item][-1]} {item} {int(hour)}h" for item, hour in zip(items, hours, strict=True)
    )
    assert f"Recent: {recent}. Need, category, services?" in said
    weekday = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    now = city.visits.frame.row(row, named=True)
    assert said.startswith(f"Now: {weekday[now['weekday']]} {int(now['hour'])}h, {now['weather']}, {now['scene']}.")
    # Another venue in this row and in all later ones changes nothing.
    other = np.where(np.arange(len(city.visits)) >= row, 7, city.visits.sequences.items_M)
    moved = SimpleNamespace(
        frame=city.visits.frame,
        history=city.visits.history,
        sequences=SimpleNamespace(items_M=other),
    )
    assert Asking(moved, city.places, NAMES).chat(row, "service")[0]["content"] == said


def test_venues_that_a_user_returned_to_are_told_the_commonest_first(city):
    a, b, c, d, e, f, g, other = sorted(city.places.candidates)[:8]
    past = [other, other, g, a, a, b, c, b, c, c, d, d, e, e, f, f]
    places = replace(city.places, candidates=city.places.candidates - {other})
    asking = Asking(city.visits, places, NAMES)
    [message] = asking.asked(Context(), np.array(past), [], "need")
    told = message["content"].split("Often: ")[1].removesuffix(". Need?").split("; ")
    # c three times, then those of two visits, the latest first; g came once, `other` is no candidate.
    assert told == [f"{city.places.category_N[item]} {item}" for item in (c, f, e, d)]
    [message] = asking.asked(Context(), np.array([a, b, c]), [7.5, None, 24.0], "need")
    assert "Often" not in message["content"]
    said = [f"{city.places.category_N[item]} {item}{hour}" for item, hour in ((a, " 7h"), (b, ""), (c, " 0h"))]
    assert f"Recent: {'; '.join(said)}. Need?" in message["content"]


def test_a_model_that_is_told_the_need_is_asked_for_the_rest(city):
    asking = Asking(city.visits, city.places, NAMES)
    said = asking.chat(5, "service", ("a quick lunch", "body / food"))[0]["content"]
    assert said.endswith("Need: a quick lunch (body / food). Category, services?")
    with pytest.raises(ValueError, match="a need is given"):
        asking.chat(5, "need", ("a quick lunch", "body / food"))


def test_references_are_kept_targets_of_the_fold(city):
    found = references(city.visits, city.patterns, city.places, "fit")
    frame = city.visits.frame
    expected = [row for row in range(len(frame)) if frame["fold"][row] == "fit" and not frame["accidental"][row]]
    assert found["row"].to_list() == expected
    assert found["target"].to_list() == frame["item_id"][expected].to_list()
    assert found["category"].to_list() == [city.catalog.categories[item][-1] for item in found["target"]]
    events = city.patterns.events[expected]
    assert found["need"].to_list() == events["need"].to_list() and (found["need"] != "").all()


def test_without_clustering_every_target_has_a_need_and_that_of_the_nearest_pattern(city):
    found = references(city.visits, city.patterns, city.places, "fit", all_events=True)
    assert found["row"].to_list() == city.visits.rows("fit").tolist()
    patterns, frame = city.patterns.frame, city.visits.frame
    bare = found.filter(pl.Series(city.patterns.events["need"][found["row"].to_list()] == ""))
    assert bare.height > 10
    for event in bare.iter_rows(named=True):
        hour, weekend = frame["hour"][event["row"]], float(frame["weekday"][event["row"]] >= 5)
        of_category = patterns.filter(pl.col("category") == event["category"]).to_dicts()

        def far(pattern, hour=hour, weekend=weekend):
            apart = abs(pattern["hour"] - hour)
            return min(apart, 24 - apart) / 12 + abs(pattern["weekend"] - weekend)

        of_category = of_category or patterns.to_dicts()
        assert event["need"] == min(of_category, key=far)["need"]


def test_a_reference_that_no_reward_would_pay_for_is_left_out(city):
    events = city.patterns.events.with_columns(
        need=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("the same the same the same")).otherwise("need")
    )
    found = references(city.visits, Patterns(city.patterns.frame, events, {}), city.places, "fit")
    assert found.height and (found["row"] % 2 == 1).all()


def test_the_others_are_own_then_near_and_popular_then_popular():
    """By hand: six venues of one category, two near the user, and four of another."""
    frame = pl.DataFrame(
        {
            "user_id": [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
            "item_id": [1, 2, 1, 0, 3, 3, 3, 4, 4, 5, 9],
            "fold": ["fit"] * 3 + ["validation"] + ["fit"] * 7,
        }
    )
    arrays = (frame["user_id"].to_numpy(), frame["item_id"].to_numpy(), np.arange(11))
    visits = Visits(frame, Sequences.from_arrays(*arrays))
    categories = [["Food", "Deli"]] * 6 + [["Food", "Bar"]] * 6
    # 4 is as near as the user's own 1 and 2; 3 is more popular and far away; 5 is near, and less popular than 4.
    lat = [0.0, 0.0, 0.01, 1.0, 0.005, 0.006, *[2.0] * 6]
    titles = [""] * 12
    catalog = Catalog(pl.DataFrame({"item_id": range(12), "title": titles, "categories": categories}))
    places = Places.from_catalog(catalog, range(12))
    others = Others.of(visits, places, pl.DataFrame({"lat": lat, "lon": [0.0] * 12}))
    assert others(3, 0) == [1, 2, 4, 5, 3, 9, 6, 7, 8]
    # Without positions popularity alone orders the category: 3 before 1 (its own come first), 4 and 5.
    blind = Others.of(visits, places, pl.DataFrame({"item_id": range(12)}))
    assert blind(3, 0)[:5] == [1, 2, 3, 4, 5]
    assert blind(4, 9)[:3] == [6, 7, 8], "no history, the target itself left out"


def test_chats_ask_about_fitting_visits_and_answer_with_the_target_first(city):
    events = references(city.visits, city.patterns, city.places, "fit")
    asking, others = Asking(city.visits, city.places, NAMES), Others.of(city.visits, city.places, city.catalog.frame)
    rows = chat_rows(events, asking, others, ["service", "need", "category"], 0.25, max_events=40, seed=3)
    stages = {stage: [row for row in rows if row["stage"] == stage] for stage in ("need", "category", "service")}
    assert {stage: len(found) for stage, found in stages.items()} == {"need": 10, "category": 10, "service": 40}
    whole = {row["row"]: row["messages"][1]["content"] for row in stages["service"]}
    for row in rows:
        assert city.visits.frame["fold"][row["row"]] == "fit"
        said = row["messages"][1]["content"]
        answer = read_answer(said, row["stage"], NAMES).answer
        assert answer.need == row["need"] and row["target"] == city.visits.frame["item_id"][row["row"]]
        assert whole[row["row"]].startswith(said.rstrip("}"))
        if row["stage"] == "service":
            assert answer.services[0] == row["target"] and len(set(answer.services)) == 10
    assert list(rows["row"]) == list(
        chat_rows(events, asking, others, ["need", "category", "service"], 0.25, 40, 3)["row"]
    )


def test_chats_of_the_second_model_tell_the_need_and_those_of_the_first_end_with_it(city):
    events = references(city.visits, city.patterns, city.places, "fit")
    asking, others = Asking(city.visits, city.places, NAMES), Others.of(city.visits, city.places, city.catalog.frame)
    second = chat_rows(events, asking, others, ["category", "service"], 0.5, 10)
    for row in second:
        assert f"Need: {row['need']} (" in row["messages"][0]["content"]
        assert read_answer(row["messages"][1]["content"], row["stage"], NAMES).answer.need == row["need"]
    first = chat_rows(events, asking, others, ["need"], 0.5, 10)
    assert set(first["stage"]) == {"need"} and len(first) == 10
    assert not any("Need: " in row["messages"][0]["content"] for row in first)


@pytest.mark.parametrize(
    ("stages", "share", "told"), [([], 0.2, "no stage"), (["all"], 0.2, "unknown"), (["need"], 1.5, "early_share")]
)
def test_chats_that_cannot_be_made_are_refused(city, stages, share, told):
    events = references(city.visits, city.patterns, city.places, "fit")
    with pytest.raises(ValueError, match=told):
        chat_rows(events, Asking(city.visits, city.places, NAMES), lambda row, target: [], stages, share)
