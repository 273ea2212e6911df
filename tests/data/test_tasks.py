"""Chat rows against a plain loop over users and items, and what no row may ever hold."""

import json

import numpy as np
import polars as pl
import pytest

from recllm.data import prompts
from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import make_split
from recllm.data.tasks import TASKS, RowOptions, parse_mixture
from recllm.data.tasks_text import chat_rows
from recllm.data.text import neutralise

ITEMS = 30
COLUMNS = ["messages", "task", "user", "position", "item"]


def make_catalog(rng: np.random.Generator, items: int = ITEMS) -> Catalog:
    """Titles with quotes, umlauts, separators and hostile markers; a quarter has none, and so with categories."""
    hostile = ["<|im_start|>system", "<a_1><b_2>", "[INST] x", "a: b; c", 'Amélie "2"', "\u4e03\u4eba"]
    titles = [neutralise(f"{hostile[i % len(hostile)]} {i}") if rng.random() < 0.75 else "" for i in range(items)]
    names = [["Drama", "War", "Cr\u00e8me"][: rng.integers(4)] for _ in range(items)]
    frame = {"item_id": np.arange(items, dtype=np.int32), "title": titles, "categories": names}
    return Catalog(pl.DataFrame(frame, schema_overrides={"categories": pl.List(pl.String)}))


def make_sequences(rng: np.random.Generator, users: int = 12, longest: int = 60, items: int = ITEMS) -> Sequences:
    """Users with 1 to `longest` events and gaps in their ids."""
    lengths = [1, 2, 21, 22, 43, *rng.integers(1, longest, users - 5)]
    ids = np.repeat(3 * np.arange(users) + 1, lengths)
    return Sequences.from_arrays(ids, rng.integers(0, items, len(ids)), np.zeros(len(ids), dtype=np.int64))


def sid_texts(items: int = ITEMS) -> list[str]:
    return [f"<a_{i % 7}><b_{i}>" for i in range(items)]


@pytest.fixture
def world():
    rng = np.random.default_rng(3)
    return make_sequences(rng), make_catalog(rng), sid_texts()


def asked(task: str, shown: list[int], item: int, catalog: Catalog, sids: list[str]) -> list[dict] | None:
    """The chat of one row, or None where a text is missing."""
    titles = [catalog.titles[i] for i in shown if catalog.titles[i]]
    match task:
        case "sid_to_title":
            prompt, answer = prompts.title_of_prompt(sids[item]), catalog.titles[item]
        case "title_to_sid":
            prompt, answer = prompts.sid_of_prompt(catalog.titles[item]), sids[item] if catalog.titles[item] else ""
        case "sid_to_categories":
            prompt, answer = prompts.categories_of_prompt(sids[item]), ", ".join(catalog.categories[item])
        case "sequence_to_sid":
            prompt, answer = prompts.recommend_prompt([sids[i] for i in shown]), sids[item]
        case "titles_to_sid":
            prompt, answer = prompts.titles_prompt(titles), sids[item] if titles else ""
        case "sequence_to_title":
            prompt, answer = prompts.next_title_prompt([sids[i] for i in shown]), catalog.titles[item]
    return [*prompt, prompts.assistant(answer)] if answer else None


def twin(fold, catalog, sids, weights, targets="all", stride=0, drop_items=0.0, copies=0, seed=0):
    """The rows of `chat_rows`, one at a time, with the same draws in the same order."""
    rng, step, everything = np.random.default_rng(seed), stride or {"all": 1, "last": 21}[targets], []
    for task, weight in weights.items():
        found = []
        if task.startswith("seq") or task == "titles_to_sid":
            for row in range(len(fold)):
                items = fold.items(row).tolist()
                places = sorted(range(len(items) - 1, 0, -step))
                found += [(int(fold.user_ids_U[row]), p, items[p], items[max(0, p - 20) : p]) for p in places]
        else:
            found = [(None, None, item, [item]) for item in range(len(catalog))]
        found = [row for row in found if asked(task, row[3], row[2], catalog, sids)]
        wanted = int(weight * len(found) + 0.5)
        rest = sorted(rng.choice(len(found), wanted % len(found), replace=False)) if wanted % len(found) else []
        found = found * (wanted // len(found)) + [found[i] for i in rest]
        if task == "sequence_to_sid" and copies:
            draws = iter(rng.random(copies * sum(len(shown) for *_, shown in found)).tolist())
            for user, place, item, shown in list(found) * copies:
                kept = [i for i in shown if next(draws) >= drop_items]
                found.append((user, place, item, kept or shown[-1:]))
        for user, place, item, shown in found:
            everything.append((asked(task, shown, item, catalog, sids), task, user, place, item))
    return [dict(zip(COLUMNS, everything[i], strict=True)) for i in rng.permutation(len(everything))]


OPTIONS = [
    {},
    {"targets": "last"},
    {"stride": 4},
    {"targets": "last", "stride": 20, "seed": 5},
    {"drop_items": 0.4, "copies": 2},
    {"drop_items": 0.9, "copies": 1, "targets": "last", "seed": 9},
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_are_those_of_a_plain_loop(world, task, options):
    fold, catalog, sids = world
    rows, counts = chat_rows(fold, catalog, sids, {task: 1.0}, RowOptions(**options))
    assert rows.column_names == COLUMNS
    assert rows.to_list() == twin(fold, catalog, sids, {task: 1.0}, **options)
    assert counts["rows"] == len(rows) == counts[f"rows/{task}"]


@pytest.mark.parametrize("seed", range(8))
def test_mixtures_are_those_of_a_plain_loop(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("recllm.data.tasks_text.BLOCK_ROWS", int(rng.integers(5, 200)))  # blocks must not show
    fold, catalog, sids = make_sequences(rng), make_catalog(rng), sid_texts()
    weights = {task: float(rng.choice([0.1, 0.5, 1, 1.3, 2])) for task in rng.permutation(list(TASKS))}
    options = {**OPTIONS[seed % len(OPTIONS)], "seed": seed}
    rows, _ = chat_rows(fold, catalog, sids, weights, RowOptions(**options))
    assert rows.to_list() == twin(fold, catalog, sids, weights, **options)


def test_weights_give_exact_counts(world):
    fold, catalog, sids = world
    ones = dict.fromkeys(TASKS, 1.0)
    _, plain = chat_rows(fold, catalog, sids, ones)
    for weight in (0.25, 0.5, 1.0, 2.0, 2.75):
        rows, counts = chat_rows(fold, catalog, sids, dict.fromkeys(TASKS, weight))
        for task in TASKS:
            assert counts[f"rows/{task}"] == int(weight * plain[f"rows/{task}"] + 0.5)
            assert counts[f"left_out/{task}"] == plain[f"left_out/{task}"]
        texts = [json.dumps([row[name] for name in COLUMNS]) for row in rows]
        repeats = {texts.count(text) for text in set(texts)}
        assert repeats <= {int(np.floor(weight)) or 1, int(np.ceil(weight))}, "no row twice before each came once"


def test_items_without_text_are_counted(world):
    fold, catalog, sids = world
    rows, counts = chat_rows(fold, catalog, sids, dict.fromkeys(TASKS, 1.0))
    untitled = sum(not title for title in catalog.titles)
    assert untitled > 0 and counts["left_out/sid_to_title"] == counts["left_out/title_to_sid"] == untitled
    assert counts["left_out/sid_to_categories"] == sum(not names for names in catalog.categories) > 0
    assert counts["left_out/sequence_to_sid"] == 0 and counts["rows/sequence_to_sid"] == fold.lengths_U.sum() - 12
    assert counts["left_out/titles_to_sid"] > 0 and counts["left_out/sequence_to_title"] > 0
    assert all(message["content"].strip() for row in rows for message in row["messages"])
    assert counts["users"] == sum(fold.lengths_U > 1)


@pytest.mark.parametrize("kind", ["roles", "leave_one_out"])
def test_no_answer_comes_from_outside_the_fitting_fold(kind):
    rng = np.random.default_rng(7)
    catalog, sids = make_catalog(rng), sid_texts()
    split = make_split(make_sequences(rng), kind)
    pairs = [pair for e in (split.validation, split.test) for pair in zip(e.user_E, e.position_E, strict=True)]
    held_out = {(int(user), int(place)) for user, place in pairs}
    assert held_out
    rows, _ = chat_rows(split.fitting, catalog, sids, dict.fromkeys(TASKS, 1.0), RowOptions(copies=1, drop_items=0.3))
    row_of = {int(user): row for row, user in enumerate(split.sequences.user_ids_U)}
    sequences = [row for row in rows if row["user"] is not None]
    assert len(sequences) > 100
    for row in sequences:
        user, place = row_of[row["user"]], row["position"]
        assert place < split.fit_length_U[user] and (user, place) not in held_out
        assert split.sequences.items(user)[place] == row["item"]
        if row["task"] == "sequence_to_sid":
            shown = row["messages"][0]["content"].removeprefix(prompts.RECOMMEND_INSTRUCTION)
            before = [sids[i] for i in split.sequences.items(user)[max(0, place - 20) : place]]
            parts = [f"<a{part}" for part in shown.split("<a")[1:]]
            places = iter(before)
            assert parts and all(part in places for part in parts), "shown items stand before the target, in order"


def test_last_targets_tile_the_sequences(world):
    fold, catalog, sids = world
    rows, _ = chat_rows(fold, catalog, sids, {"sequence_to_sid": 1.0}, RowOptions("last"))
    for u, user in enumerate(fold.user_ids_U):
        items = fold.items(u)
        mine = sorted((row for row in rows if row["user"] == user), key=lambda row: row["position"])
        text = "".join(
            row["messages"][0]["content"].removeprefix(prompts.RECOMMEND_INSTRUCTION) + row["messages"][1]["content"]
            for row in mine
        )
        lost = int(len(items) % 21 == 1)  # a single oldest item has nothing before it
        assert text == "".join(sids[i] for i in items[lost:])


def test_the_seed_decides_everything(world):
    fold, catalog, sids = world
    weights = {"sequence_to_sid": 1.0, "sid_to_title": 0.5}
    options = [RowOptions(copies=1, drop_items=0.5, seed=seed) for seed in (1, 1, 2)]
    built = [chat_rows(fold, catalog, sids, weights, option)[0] for option in options]
    first, again, other = (rows.to_list() for rows in built)
    assert first == again != other
    marks = [rows._fingerprint for rows in built]
    assert marks[0] == marks[1] != marks[2], "what was tokenised before is found again, and for nothing else"
    assert [row["task"] for row in first] != sorted(row["task"] for row in first), "tasks are mixed"


def test_no_copy_loses_its_whole_history(world):
    fold, catalog, sids = world
    rows, _ = chat_rows(fold, catalog, sids, {"sequence_to_sid": 1.0}, RowOptions(copies=3, drop_items=0.95))
    shown = [row["messages"][0]["content"].removeprefix(prompts.RECOMMEND_INSTRUCTION) for row in rows]
    assert all(shown) and sum(text.count("<a_") == 1 for text in shown) > len(rows) // 2


def test_dropped_share_is_the_one_asked_for():
    fold = Sequences.from_lists([list(range(21))] * 400)
    catalog = make_catalog(np.random.default_rng(0))
    options = RowOptions("last", copies=1, drop_items=0.25)
    rows, _ = chat_rows(fold, catalog, sid_texts(), {"sequence_to_sid": 1.0}, options)
    shown = np.array([row["messages"][0]["content"].count("<a_") for row in rows])
    assert (shown == 20).sum() >= 400 and len(rows) == 800
    assert abs(shown.sum() - (400 * 20 + 400 * 15)) < 200


def test_hostile_titles_stay_harmless(world):
    fold, catalog, sids = world
    rows, _ = chat_rows(fold, catalog, sids, {"sid_to_title": 1.0, "title_to_sid": 1.0, "titles_to_sid": 1.0})
    for row in rows:
        asked_text, answer = (message["content"] for message in row["messages"])
        titles = answer if row["task"] == "sid_to_title" else asked_text
        assert not {"<", ">", "[", "]"} & set(titles)
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_instructions_end_where_the_stream_template_cuts():
    assert all(task.instruction.endswith(": ") for task in TASKS.values())
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS), "a model must tell the tasks apart"


def test_a_mixture_is_a_task_or_a_mapping():
    assert parse_mixture("sequence_to_sid") == {"sequence_to_sid": 1.0}
    assert parse_mixture('{"sid_to_title": 2, "title_to_sid": 0.5}') == {"sid_to_title": 2.0, "title_to_sid": 0.5}
    for text, complaint in [
        ("sequence", "neither a task"),
        ("{}", "map tasks to weights"),
        ('["sequence_to_sid"]', "map tasks to weights"),
        ('{"sequence": 1}', "unknown task 'sequence'"),
        ('{"sid_to_title": 0}', "leave out"),
        ('{"sid_to_title": -1}', "positive"),
        ('{"sid_to_title": true}', "positive"),
        ('{"sid_to_title": "1"}', "positive"),
        ('{"sid_to_title": NaN}', "positive"),
        ('{"sid_to_title": Infinity}', "positive"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            parse_mixture(text)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"targets": "first"}, "targets must be one of all, last"),
        ({"stride": -1}, "stride must not be negative"),
        ({"copies": 1}, "go together"),
        ({"drop_items": 0.5}, "go together"),
        ({"copies": 1, "drop_items": 1.0}, "go together"),
        ({"copies": -1, "drop_items": 0.5}, "go together"),
    ],
)
def test_bad_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        RowOptions(**options)


def test_worlds_that_do_not_fit_are_refused(world):
    fold, catalog, sids = world
    with pytest.raises(ValueError, match="29 sid texts for 30 items"):
        chat_rows(fold, catalog, sids[:-1], {"sequence_to_sid": 1.0})
    with pytest.raises(ValueError, match="no row can be made of sequence_to_sid"):
        chat_rows(Sequences.from_lists([[1], [2]]), catalog, sids, {"sequence_to_sid": 1.0})
