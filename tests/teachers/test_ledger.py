"""The ledger loses nothing, repeats nothing and totals what it holds."""

import fcntl
import json
import time

import numpy as np
import pytest

from recllm.teachers.ledger import ask, spending
from recllm.teachers.protocol import Answer, Question, TeacherError, digest


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "ledger.jsonl"


def test_answers_come_in_order_and_only_what_is_new_is_asked(worlds, path):
    teacher, rng = worlds.Ruled(batch=4), np.random.default_rng(0)
    seen = set()
    for _ in range(6):
        items = rng.integers(0, 40, size=15).tolist()
        asked = [worlds.questions(1, start=item)[0] for item in items]
        teacher.asked.clear()
        assert [answer.text for answer in ask(teacher, asked, path)] == [f"text {item}" for item in items]
        assert teacher.asked == [item for item in dict.fromkeys(items) if item not in seen]
        seen |= set(items)
    assert sorted(row["facts"]["item"] for row in rows(path)) == sorted(seen)


def test_a_row_holds_the_question_whole(worlds, path):
    (question,) = worlds.questions(1, start=5)
    ask(worlds.Ruled(), [question], path)
    (row,) = rows(path)
    again = Question(row["messages"], row["facts"], row["kind"])
    assert again == question and row["key"] == digest(again, row["teacher"])
    assert (row["text"], row["prompt_tokens"], row["completion_tokens"], row["finish"]) == ("text 5", 15, 2, "stop")


def test_another_teacher_is_asked_anew(worlds, path):
    ask(worlds.Ruled("one"), worlds.questions(3), path)
    other = worlds.Ruled("other")
    ask(other, worlds.questions(3), path)
    assert other.asked == [0, 1, 2] and len(rows(path)) == 6


def test_a_file_cut_anywhere_is_completed(worlds, path):
    wanted = ask(worlds.Ruled(), worlds.questions(4), path)
    whole = path.read_bytes()
    ends = {place for place in range(len(whole) + 1) if b"\n" in whole[max(place - 2, 0) : place + 1]}
    for size in sorted({0, 1, len(whole), *ends, *range(5, len(whole), 61)}):
        path.write_bytes(whole[:size])
        teacher = worlds.Ruled()
        assert ask(teacher, worlds.questions(4), path) == wanted
        assert path.read_bytes() == whole
        assert len(teacher.asked) == 4 - whole[:size].count(b"\n")


def test_a_damaged_row_is_named_and_nothing_is_written(worlds, path):
    ask(worlds.Ruled(), worlds.questions(3), path)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"\n", b"[1]\n", b'{"key": 1}\n', lines[1][:-9] + b"\n", b"\x00\xff\n"):
        path.write_bytes(lines[0] + damaged + lines[2])
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"ledger\.jsonl: line 2 is no row of a ledger"):
            ask(worlds.Ruled(), worlds.questions(5), path)
        assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"my notes", b'{"weights": [1, 2]}'])
def test_a_file_that_is_no_ledger_is_left_alone(worlds, tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no row of a ledger"):
        ask(worlds.Ruled(), worlds.questions(1), path)
    assert path.read_bytes() == content


def test_a_failure_in_the_middle_of_a_batch_keeps_what_was_answered(worlds, path):
    teacher = worlds.Ruled(failing={4})
    with pytest.raises(TeacherError, match=r"has an exception \(5 of 9 answers are kept in .*start again"):
        ask(teacher, [*worlds.questions(9), *worlds.questions(2)], path)
    assert [row["facts"]["item"] for row in rows(path)] == [0, 1, 2, 3, 5]
    healed = worlds.Ruled()
    assert [answer.text for answer in ask(healed, worlds.questions(9), path)] == [f"text {n}" for n in range(9)]
    assert healed.asked == [4, 6, 7, 8]


def test_a_teacher_that_answers_too_little_is_caught(worlds, path):
    teacher = worlds.Ruled()
    teacher.answer = lambda questions: [Answer("x", 0, 0, "stop")]
    with pytest.raises(TeacherError, match=r"ruled gave 1 answers to 2 questions \(0 of 2"):
        ask(teacher, worlds.questions(2), path)
    assert path.read_bytes() == b""


def test_every_batch_is_in_the_file_before_the_next_is_asked(worlds, path):
    teacher, plain, counts = worlds.Ruled(batch=2), worlds.Ruled().answer, []
    teacher.answer = lambda questions: counts.append(path.read_bytes().count(b"\n")) or plain(questions)
    ask(teacher, worlds.questions(5), path)
    assert counts == [0, 2, 4]


def test_a_second_writer_is_refused_and_the_lock_goes_with_the_first(worlds, path):
    ask(worlds.Ruled(), worlds.questions(1), path)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"another process writes to this ledger; .*ledger\.jsonl"):
            ask(worlds.Ruled(), worlds.questions(2), path)
    failing = worlds.Ruled(failing={1})
    with pytest.raises(TeacherError):
        ask(failing, worlds.questions(2), path)
    assert len(ask(worlds.Ruled(), worlds.questions(2), path)) == 2


def test_any_reply_survives_the_file(worlds, path):
    texts = ["", "a\nb\r\n", "\u2028\x85\x00", "\ud800", '"}\\', "é‹", "x" * 100_000]
    teacher = worlds.Ruled(batch=100)
    teacher.answer = lambda questions: [Answer(text, None, None, "stop") for text in texts]
    asked = worlds.questions(len(texts))
    first = ask(teacher, asked, path)
    teacher.answer = None
    assert ask(teacher, asked, path) == first and [answer.text for answer in first] == texts
    assert path.read_bytes().count(b"\n") == len(texts)


def test_totals_by_hand(worlds, path):
    teacher = worlds.Ruled()
    ask(teacher, [*worlds.questions(3), *worlds.questions(3)], path)  # prompts of 10, 11 and 12 tokens
    ask(worlds.Ruled("other"), worlds.questions(5), path)
    tokens = {"teacher/calls": 3, "teacher/prompt_tokens": 33, "teacher/completion_tokens": 6}
    assert spending(path, teacher) == tokens
    assert spending(path, teacher, prompt_usd=2.0) == tokens
    priced = spending(path, teacher, prompt_usd=2.0, completion_usd=10.0)
    assert priced == {**tokens, "teacher/cost_usd": pytest.approx(126e-6)}
    assert spending(path, worlds.Ruled("stranger"))["teacher/calls"] == 0


def test_a_total_over_uncounted_tokens_is_not_made_up(worlds, path):
    teacher = worlds.Ruled()
    teacher.answer = lambda questions: [Answer("x", 5, None, "stop") for _ in questions]
    ask(teacher, worlds.questions(2), path)
    assert spending(path, teacher, 1.0, 1.0) == {"teacher/calls": 2}


def test_a_ledger_of_100_000_rows_is_read_in_seconds(worlds, tmp_path):
    path, teacher = tmp_path / "ledger.jsonl", worlds.Ruled()
    (question,) = worlds.questions(1)
    ask(teacher, [question], path)
    row = json.loads(path.read_text())
    row["messages"][0]["content"] = "x" * 500
    with path.open("a") as stream:
        stream.writelines(json.dumps({**row, "key": f"{n:064x}"}) + "\n" for n in range(100_000))
    started = time.process_time()
    assert ask(teacher, [question], path)[0].text == "text 0"
    # Of the processor, since others may use the machine, too; about one second was measured.
    assert time.process_time() - started < 6
    assert teacher.asked == [0]
