"""Which explanations may be learned from: only those whose every claim about items the evidence bears out.

A teacher's text is untrusted. `judge` reads it, names the first rule that it breaks, or gives the thought in which
labels have become titles. Near-duplicates are told apart in a second pass, since they need all texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recllm.data.text import neutralise
from recllm.rationales.questions import CONCLUSION, NEXT
from recllm.teachers.protocol import Answer

# In the order in which they are tried; each dropped rationale counts under one of them.
REASONS = (
    "cut_off", "empty", "markers", "length", "unknown_label", "unknown_title", "no_category", "wrong_category",
    "leaks_title", "near_duplicate",
)  # fmt: skip
_LABEL = re.compile(r"\[([A-Za-z]+\d*)\]")
_QUOTED = re.compile(r'"([^"]{2,200})"|“([^”]{2,200})”')
_MARKER = re.compile(r"<[^<>\s]{0,40}>|<\||\|>")
_WORD = re.compile(r"\w+")
# Words of a title that another text may hold by chance: one short word says nothing.
_TITLE_WORDS, _LONGEST_TITLE = 2, 12
_SHINGLE = 3


@dataclass(frozen=True)
class Rules:
    """What is asked of a rationale beside faithfulness.

    min_words, max_words: of the explanation and its conclusion together. similar: Jaccard index of word triples from
    which two explanations of one item are near-duplicates; copies: how many of those are kept.
    """

    min_words: int = 3
    max_words: int = 60
    similar: float = 0.8
    copies: int = 3


@dataclass(frozen=True)
class Verdict:
    """`reason` is None where the rationale is kept; `thought` is then its text with titles for labels."""

    reason: str | None
    thought: str = ""


class TitleIndex:
    """Finds titles of the catalogue in a text; titles of a single word are left out, since words are not citations."""

    def __init__(self, titles: Sequence[str]):
        self.known = {key for key in map(title_key, titles) if len(key) >= _TITLE_WORDS}

    def found(self, text: str) -> set[tuple[str, ...]]:
        """Every known title in the text, as its words."""
        words = _words(text)
        spans = ((i, n) for i in range(len(words)) for n in range(_TITLE_WORDS, _LONGEST_TITLE + 1))
        return {words[i : i + n] for i, n in spans if i + n <= len(words) and words[i : i + n] in self.known}


def title_key(title: str) -> tuple[str, ...]:
    """A title's words in lower case, without what stands in brackets (a year) and with a trailing article in front."""
    text = _unbracketed(title)
    moved = re.fullmatch(r"(.*), (The|A|An)\s*", text.strip())
    return _words(f"{moved.group(2)} {moved.group(1)}" if moved else text)[:_LONGEST_TITLE]


def _unbracketed(title: str) -> str:
    return re.sub(r"\([^)]*\)", " ", neutralise(title))


def judge(kind: str, facts: Mapping[str, Any], answer: Answer, titles: TitleIndex, rules: Rules) -> Verdict:
    """The verdict on one answer, near-duplicates aside. Never raises on any text."""
    if answer.finish != "stop":
        return Verdict("cut_off")
    text = answer.text.strip()
    if not text:
        return Verdict("empty")
    if _MARKER.search(text):
        return Verdict("markers")
    if not rules.min_words <= len(_words(text)) <= rules.max_words:
        return Verdict("length")
    cited, explained = citable(kind, facts)
    body = text.rpartition(CONCLUSION)[0] if CONCLUSION in text else text
    if any(label not in cited for label in _LABEL.findall(text)):
        return Verdict("unknown_label")
    named = [*explained["categories"], *facts["shared"]]
    if reason := _titles_fault(kind, body, cited, named, explained, titles):
        return Verdict(reason)
    if reason := _category_fault(text, explained["categories"]):
        return Verdict(reason)
    return Verdict(None, _thought(text, cited))


def citable(kind: str, facts: Mapping[str, Any]) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Label -> title of what a text may cite, and the item that is explained."""
    if kind == NEXT:
        between = [facts["path"]["over"]] if facts["path"] else []
        return {item["label"]: item["title"] for item in [*facts["history"], *between]}, facts["target"]
    return {item["label"]: item["title"] for item in facts["items"]}, facts["items"][1]


def mark_near_duplicates(verdicts: Sequence[Verdict], item_E: Sequence[int], rules: Rules) -> list[Verdict]:
    """Verdicts in which kept rationales beyond `rules.copies` near-equal ones about an item are dropped."""
    kept: dict[int, list[set]] = {}
    marked = []
    for verdict, item in zip(verdicts, item_E, strict=True):
        if verdict.reason is None:
            shingles = _shingles(verdict.thought)
            near = [other for other in kept.setdefault(item, []) if _jaccard(shingles, other) >= rules.similar]
            if len(near) >= rules.copies:
                marked.append(Verdict("near_duplicate"))
                continue
            kept[item].append(shingles)
        marked.append(verdict)
    return marked


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Flat metrics: how many were asked for, kept, and dropped for each reason."""
    found = Counter(verdict.reason for verdict in verdicts)
    return {
        "rationales/asked": len(verdicts),
        "rationales/kept": found[None],
        **{f"rationales/dropped_{reason}": found[reason] for reason in REASONS},
    }


def _titles_fault(
    kind: str,
    body: str,
    cited: Mapping[str, str],
    categories: Sequence[str],
    explained: Mapping[str, Any],
    titles: TitleIndex,
) -> str | None:
    """A title that is not of the evidence, or, before the answer, the one that is to be found."""
    own = {title_key(title) for title in cited.values()}
    target = title_key(explained["title"])
    names = {_words(name) for name in categories}
    quoted = {title_key(one or other) for one, other in _QUOTED.findall(body)} - {()} - names
    mentioned = quoted | titles.found(_without(body, categories))
    if kind == NEXT and target and target not in own:
        words = _words(body)
        filed = _words(_unbracketed(explained["title"]))[:_LONGEST_TITLE]  # "Piano, The" as it stands
        inside = any(words[i : i + len(target)] in (target, filed) for i in range(len(words)))
        # One short word (a film called It) stands in many honest sentences.
        if (inside and (len(target) > 1 or len(target[0]) > 3)) or target in quoted:
            return "leaks_title"
    # A known title may be part of a longer one that is cited.
    parts = {part for key in own for part in _parts(key)}
    return "unknown_title" if mentioned - own - parts - {target} else None


def _without(text: str, names: Sequence[str]) -> str:
    """The text without whole names of categories: an item may be called like one of them."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ; ", text)
    return text


def _category_fault(text: str, categories: Sequence[str]) -> str | None:
    """Whether the conclusion names categories of the item and nothing else; an item without any needs none."""
    conclusion = text.rpartition(CONCLUSION)[2] if CONCLUSION in text else ""
    if not categories:
        return "wrong_category" if conclusion.strip() else None
    if not conclusion.strip():
        return "no_category"
    rest, named = conclusion.strip().rstrip("."), 0
    for name in sorted(categories, key=len, reverse=True):
        place = rest.find(name)
        if place >= 0:
            rest, named = rest[:place] + rest[place + len(name) :], named + 1
    return "wrong_category" if rest.strip(" ,;") or not named else None


def _thought(text: str, cited: Mapping[str, str]) -> str:
    """The text on one line, neutralised, each label replaced by its title in quotes."""
    pieces = _LABEL.split(text)
    words = [
        neutralise(piece, max_length=2000) if i % 2 == 0 else f'"{cited[piece]}"' for i, piece in enumerate(pieces)
    ]
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(word for word in words if word))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _parts(key: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [key[i:j] for i in range(len(key)) for j in range(i + 1, len(key) + 1)]


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return {words[i : i + _SHINGLE] for i in range(max(1, len(words) - _SHINGLE + 1))}


def _jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)
