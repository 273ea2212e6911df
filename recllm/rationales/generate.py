"""From evidence to chat rows: questions, a teacher's answers through its ledger, the filter, and messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.prompts import REASONER_HISTORY, THINK_CLOSE, THINK_OPEN, assistant, pair_prompt, reasoner_prompt
from recllm.data.splits import RolesSplit
from recllm.rationales.categories import rationale_rows
from recllm.rationales.cooccurrence import Cooccurrence, CooccurrenceOptions
from recllm.rationales.evidence import EvidenceBook
from recllm.rationales.filter import Rules, TitleIndex, Verdict, counts, judge, mark_near_duplicates
from recllm.rationales.positions import fold_positions
from recllm.rationales.questions import NEXT, PAIR, next_question, pair_question
from recllm.teachers.ledger import ask
from recllm.teachers.protocol import Question, Teacher

CATEGORY, DIRECT = "category", "direct"
# These rows are made of the events alone; the others ask a teacher.
UNASKED = (CATEGORY, DIRECT)
KINDS = (*UNASKED, NEXT, PAIR)
COLUMNS = ("messages", "kind", "user", "position")


@dataclass(frozen=True)
class Plan:
    """Which rows are made.

    kinds: `category` (thoughts about categories, no teacher), `direct` (its rows without a thought), `next` (a user's
    next item explained), `pair` (two linked items explained). stride, passes, seed: see `fold_positions`; each pass has
    offsets of its own. per_item: neighbours of each item that become pairs. limit: at most so many questions of each
    kind, chosen by the seed.
    """

    kinds: Sequence[str] = (CATEGORY,)
    stride: int = 10
    passes: int = 1
    seed: int = 0
    per_item: int = 5
    limit: int | None = None
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"kind {unknown[0]!r} of rationale is unknown; choose from {', '.join(KINDS)}")
        if self.stride < 1 or self.passes < 1:
            raise ValueError(f"stride and passes must be at least 1, got {self.stride} and {self.passes}")


@dataclass(frozen=True)
class Source:
    """What a row explains: an item, and where it comes from (user -1 for a pair); `history` are the prompt's items."""

    history: tuple[int, ...]
    item: int
    user: int
    position: int


def make_rows(
    split: RolesSplit, catalog: Catalog, sid_texts: Sequence[str], plan: Plan, teacher: Teacher, ledger: str | Path
) -> tuple[dict[str, list], dict[str, float]]:
    """The columns of the chat data set, and the filter's counts by kind. Only the fitting fold is read.

    `user` is the id (-1 for a pair) and `position` the place of the next item in the user's sequence.

    Raises:
        TeacherError: the teacher failed; what it answered is in the ledger.
    """
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    metrics: dict[str, float] = {}
    for kind in (kind for kind in UNASKED if kind in plan.kinds):
        for seed in range(plan.seed, plan.seed + plan.passes):
            rows = rationale_rows(split, catalog, sid_texts, plan.stride, seed, thinks=kind == CATEGORY)
            _extend(columns, kind, rows["messages"], rows["user"], rows["position"])
    asked = [kind for kind in plan.kinds if kind not in UNASKED]
    if asked:
        tables = Cooccurrence.from_fitting_fold(split.fitting, len(catalog), CooccurrenceOptions())
        book, titles = EvidenceBook(catalog, tables), TitleIndex(catalog.titles)
        for kind in asked:
            sources, questions = _questions(kind, split, book, plan)
            answers = ask(teacher, questions, ledger, label=f"{kind} rationales")
            pairs = zip(questions, answers, strict=True)
            verdicts = [judge(kind, question.facts, answer, titles, plan.rules) for question, answer in pairs]
            verdicts = mark_near_duplicates(verdicts, [source.item for source in sources], plan.rules)
            _extend(columns, kind, *_messages(kind, sources, verdicts, sid_texts))
            metrics |= {name.replace("rationales", kind, 1): value for name, value in counts(verdicts).items()}
    return columns, metrics


def _questions(kind: str, split: RolesSplit, book: EvidenceBook, plan: Plan) -> tuple[list[Source], list[Question]]:
    if kind == PAIR:
        sources = [Source((one,), other, -1, -1) for one, other in book.linked_pairs(plan.per_item)]
    else:
        sources = list(_next_sources(split, plan))
    if plan.limit is not None and plan.limit < len(sources):
        chosen = np.random.default_rng(plan.seed).choice(len(sources), plan.limit, replace=False)
        sources = [sources[i] for i in np.sort(chosen)]
    make: Callable[[Source], Mapping[str, Any]]
    if kind == PAIR:
        make, asking = (lambda source: book.pair(source.history[0], source.item)), pair_question
    else:
        make, asking = (lambda source: book.next_item(np.array(source.history), source.item)), next_question
    return sources, [asking(make(source)) for source in sources]


def _next_sources(split: RolesSplit, plan: Plan) -> Iterator[Source]:
    fold = split.fitting
    seen: set[tuple[int, int]] = set()
    for seed in range(plan.seed, plan.seed + plan.passes):
        for row, position in fold_positions(fold, plan.stride, seed):
            if (row, position) not in seen:  # two passes may meet
                seen.add((row, position))
                items = fold.items(row)
                history = tuple(items[max(0, position - REASONER_HISTORY) : position].tolist())
                yield Source(history, int(items[position]), int(fold.user_ids_U[row]), position)


def _messages(
    kind: str, sources: Sequence[Source], verdicts: Sequence[Verdict], sid_texts: Sequence[str]
) -> tuple[list, list[int], list[int]]:
    """Chats, users and positions of the kept rationales."""
    kept = [(source, verdict) for source, verdict in zip(sources, verdicts, strict=True) if verdict.reason is None]
    write = functools.partial(_pair_chat if kind == PAIR else _next_chat, sid_texts=sid_texts)
    chats = [write(source, verdict.thought) for source, verdict in kept]
    return chats, [source.user for source, _ in kept], [source.position for source, _ in kept]


def _next_chat(source: Source, thought: str, sid_texts: Sequence[str]) -> list[dict[str, str]]:
    answer = f"{THINK_OPEN}{thought}{THINK_CLOSE}{sid_texts[source.item]}"
    return [*reasoner_prompt([sid_texts[item] for item in source.history]), assistant(answer)]


def _pair_chat(source: Source, thought: str, sid_texts: Sequence[str]) -> list[dict[str, str]]:
    return [*pair_prompt(sid_texts[source.history[0]], sid_texts[source.item]), assistant(thought)]


def _extend(columns: dict[str, list], kind: str, messages: list, users: list, positions: list) -> None:
    columns["messages"] += messages
    columns["kind"] += [kind] * len(messages)
    columns["user"] += users
    columns["position"] += positions
