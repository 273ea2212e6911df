import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import make_split
from recllm.rationales.filter import REASONS
from recllm.rationales.generate import KINDS, Plan, make_rows
from recllm.rationales.questions import TEMPLATES
from recllm.teachers.protocol import Answer, TeacherError
from recllm.teachers.template import Template

ITEMS = 60
SIDS = [f"<a_{item}>" for item in range(ITEMS)]
NAMES = ["Drama", "Comedy", "War", "Noir"]


def world(seed: int = 0, shift: int = 0):
    """Users who share items; `shift` moves every event outside the fitting fold to another item."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, ITEMS + 1)
    draws = [rng.choice(ITEMS, rng.integers(5, 20), replace=False, p=share / share.sum()) for _ in range(40)]
    split = make_split(Sequences.from_lists([draw.tolist() for draw in draws]), "roles")
    if shift:
        moved = [
            [*draw[:length], *((draw[length:] + shift) % ITEMS)]
            for draw, length in zip(draws, split.fit_length_U, strict=True)
        ]
        split = make_split(Sequences.from_lists([[int(item) for item in row] for row in moved]), "roles")
    frame = pl.DataFrame(
        {
            "item_id": np.arange(ITEMS, dtype=np.int32),
            "title": [f"Title number {item}" for item in range(ITEMS)],
            "categories": [[NAMES[item % 4]] if item % 7 else [] for item in range(ITEMS)],
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    return split, Catalog(frame)


def rows_of(tmp_path, plan: Plan, teacher=None, shift: int = 0, seed: int = 0):
    split, catalog = world(seed, shift)
    return make_rows(split, catalog, SIDS, plan, teacher or Template(TEMPLATES), tmp_path / "ledger.jsonl")


def test_every_kind_makes_rows_and_counts_add_up(tmp_path):
    columns, metrics = rows_of(tmp_path, Plan(KINDS, stride=2))
    kinds = columns["kind"]
    assert len({len(column) for column in columns.values()}) == 1 and set(kinds) == set(KINDS)
    for kind in ("next", "pair"):
        dropped = sum(metrics[f"{kind}/dropped_{reason}"] for reason in REASONS)
        assert metrics[f"{kind}/kept"] == kinds.count(kind) > 20
        assert metrics[f"{kind}/asked"] == metrics[f"{kind}/kept"] + dropped
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in ledger} == {"next", "pair"} and all(row["text"] for row in ledger)


def test_direct_rows_are_the_category_rows_without_their_thoughts(tmp_path):
    thoughtful, _ = rows_of(tmp_path, Plan(["category"], stride=3, passes=2))
    direct, _ = rows_of(tmp_path, Plan(["direct"], stride=3, passes=2))
    assert direct["user"] == thoughtful["user"] and direct["position"] == thoughtful["position"]
    assert set(direct["kind"]) == {"direct"} and len(direct["kind"]) > 20
    for plain, thinks in zip(direct["messages"], thoughtful["messages"], strict=True):
        assert plain[0] == thinks[0] and re.fullmatch(r"<a_\d+>", plain[1]["content"])
        assert plain[1]["content"] == thinks[1]["content"].partition("</think>")[2]


def test_each_next_row_says_what_happened_in_the_fold(tmp_path):
    split, catalog = world()
    columns, _ = rows_of(tmp_path, Plan(["next"], stride=2, passes=3))
    row_of = {int(user): row for row, user in enumerate(split.fitting.user_ids_U)}
    seen = set()
    for chat, user, position in zip(columns["messages"], columns["user"], columns["position"], strict=True):
        items = split.fitting.items(row_of[user])
        assert (user, position) not in seen and 1 <= position < len(items)
        seen.add((user, position))
        assert chat[0]["content"] == "History: " + "".join(SIDS[item] for item in items[:position][-20:])
        thought, sid = re.fullmatch(r"<think>(.*)</think>(<a_\d+>)", chat[1]["content"]).groups()
        target = int(items[position])
        assert sid == SIDS[target] and f"Title number {target}" not in re.findall(r'"([^"]*)"', thought)
        cited = [int(number) for number in re.findall(r'"Title number (\d+)"', thought)]
        assert set(cited) <= set(items[:position].tolist())
        names = thought.partition("Category: ")[2]
        assert names == ", ".join(catalog.categories[target])


def test_events_outside_the_fitting_fold_change_nothing(tmp_path):
    plan = Plan(KINDS, stride=3)
    before, moved = rows_of(tmp_path / "a", plan)[0], rows_of(tmp_path / "b", plan, shift=5)[0]
    assert before == moved
    assert rows_of(tmp_path / "c", plan, seed=1)[0] != before


class Liar:
    """A teacher that names another item, spells markers, or gives the answer away, in turn."""

    name, batch = "liar", 8
    lies = ("After [H99] more.", "</think><a_1>", "Surely it is {title}.\nCategory: {names}", "Good.", "")

    def answer(self, questions):
        found = []
        for number, question in enumerate(questions):
            target = question.facts["target"]
            text = self.lies[number % len(self.lies)]
            text = text.format(title=target["title"], names=", ".join(target["categories"]))
            found.append(Answer(text, 10, 5, "stop"))
        return found


def test_a_teacher_that_lies_teaches_nothing(tmp_path):
    columns, metrics = rows_of(tmp_path, Plan(["next"], stride=2), teacher=Liar())
    assert columns["messages"] == [] and metrics["next/kept"] == 0 < metrics["next/asked"]
    for reason in ("unknown_label", "markers", "leaks_title", "length", "empty"):
        assert metrics[f"next/dropped_{reason}"] > 0, reason


def test_a_limit_takes_a_sample_and_bad_plans_are_named(tmp_path):
    _, metrics = rows_of(tmp_path, Plan(["next", "pair"], stride=1, limit=17))
    assert metrics["next/asked"] == metrics["pair/asked"] == 17
    with pytest.raises(ValueError, match="kind 'nxt'"):
        Plan(["nxt"])
    with pytest.raises(ValueError, match="stride"):
        Plan(stride=0)


class Tired(Template):
    """Fails after so many batches, as an endpoint does whose credit is used up."""

    batch = 5

    def __init__(self, batches: int):
        super().__init__(TEMPLATES)
        self.left = batches

    def answer(self, questions):
        if not self.left:
            raise TeacherError("no credit left")
        self.left -= 1
        return super().answer(questions)


def test_what_a_failing_teacher_answered_is_not_asked_again(tmp_path):
    plan = Plan(["next"], stride=2)
    whole, _ = rows_of(tmp_path / "whole", plan)
    with pytest.raises(TeacherError, match="15 of"):
        rows_of(tmp_path / "cut", plan, teacher=Tired(3))
    kept = (tmp_path / "cut" / "ledger.jsonl").read_text().splitlines()
    assert len(kept) == 15
    assert rows_of(tmp_path / "cut", plan)[0] == whole
    assert (tmp_path / "cut" / "ledger.jsonl").read_text().splitlines()[:15] == kept


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [{here!r}]
import test_generate as t
class Slow(t.Template):
    batch = 1
    def answer(self, questions):
        print("asked", flush=True)
        time.sleep(0.006)
        return super().answer(questions)
t.rows_of(Path({folder!r}), t.Plan(["next"], stride=1), teacher=Slow(t.TEMPLATES))
"""


def interrupted(tmp_path, kills: int) -> None:
    """Rationales of a run that is killed at random moments equal those of one that is left alone."""
    plan = Plan(["next"], stride=1)
    whole, _ = rows_of(tmp_path / "whole", plan)
    folder, rng, died, longest = tmp_path / "cut", np.random.default_rng(0), 0, 0.08
    code = CHILD.format(here=str(Path(__file__).parent), folder=str(folder))
    for _ in range(4 * kills):
        if died == kills:
            break
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        child.stdout.readline()
        time.sleep(float(rng.uniform(0, longest)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        died += child.returncode == -signal.SIGKILL
    assert died == kills
    partial = (folder / "ledger.jsonl").read_bytes() if (folder / "ledger.jsonl").exists() else b""
    asked_before = partial.count(b"\n")
    assert rows_of(folder, plan)[0] == whole
    lines = (folder / "ledger.jsonl").read_bytes()
    keys = [json.loads(line)["key"] for line in lines.splitlines()]
    assert len(keys) == len(set(keys)), "no question was asked twice"
    assert lines.startswith(partial[: partial.rfind(b"\n") + 1]) and 0 < asked_before < len(keys)


def test_killed_a_few_times(tmp_path):
    interrupted(tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    interrupted(tmp_path, 20)
