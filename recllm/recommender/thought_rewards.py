"""What a thought and the answer behind it are worth: the reasoner's reward, term by term, each 0 to 1.

A completion is a thought between the markers, one of each, and then exactly one sid. Whatever else stands there, before
the thought, in it or after it, makes the completion invalid, and an invalid completion gets 0 from every term. The
weights are bounded by `check_weights`, so that no invalid answer outscores a valid miss and no valid miss a hit: form
can never be traded for the answer. (TwiSTAR's public reward gives twenty letters a and an invalid sid +3 of 5.)

Terms: `valid` 1 for a valid completion. `prefix` TwiSTAR's hierarchical hit (see `rewards.py`). `natural` 1 where the
thought is made of words. `category` F1 of the categories that the thought names against the target's, None where the
target has none. `rollout_beam` OneRec-Think's reward on the beam after the thought (see `rollout_beam.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from recllm.data.prompts import THINK_CLOSE, THINK_OPEN
from recllm.recommender.rewards import prefix, prefix_weights
from recllm.sid.table import SidTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TERMS = ("valid", "prefix", "natural", "category", "rollout_beam")
_MARKERS = re.compile(r"</?think>|<\|[^<>|]{0,40}\|>|</?tool_call>")
_SID = re.compile(r"<[A-Za-z]+_\d+>")
_QUOTED = re.compile(r'"[^"]*"')
_WORD = re.compile(r"[^\W\d_]+")
# A thought shorter than this says nothing; the shortest honest one is "The user wants Drama."
_LEAST_WORDS, _LONGEST_WORD = 3, 20
_LEAST_DISTINCT, _LEAST_LETTERS = 0.5, 0.6
_RUN = re.compile(r"(.)\1{4,}")


@dataclass(frozen=True)
class Reading:
    """A completion as it was read: the thought and the item where it is valid, else why it is not."""

    thought: str = ""
    item: int | None = None
    problem: str | None = None


def read_completion(table: SidTable, completion: str) -> Reading:
    """Read a completion, the whole text that the model wrote. Never raises on any text.

    `problem` is `no_thought`, `unclosed`, `nested`, `sid_inside` or `no_item`.
    """
    if not completion.startswith(THINK_OPEN):
        return Reading(problem="no_thought")
    thought, close, answer = completion.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    if not close:
        return Reading(problem="unclosed")
    if _MARKERS.search(thought) or _MARKERS.search(answer):
        return Reading(problem="nested")
    if _SID.search(thought):
        return Reading(problem="sid_inside")
    items = table.items(table.parse(answer.lstrip("\n")))
    return Reading(thought, items[0]) if len(items) else Reading(problem="no_item")


def natural(thought: str) -> bool:
    """Whether a thought is made of words: some, mostly letters, not the same ones again and again, none too long."""
    words = [word.lower() for word in _WORD.findall(thought)]
    solid = re.sub(r"\s", "", thought)
    return (
        len(words) >= _LEAST_WORDS
        and len(set(words)) >= max(_LEAST_WORDS, _LEAST_DISTINCT * len(words))
        and max(map(len, words)) <= _LONGEST_WORD
        and sum(map(len, words)) >= _LEAST_LETTERS * len(solid)
        and not _RUN.search(thought)
    )


@dataclass(frozen=True)
class CategoryNames:
    """Finds categories of a catalogue in a thought; `categories` are every item's, neutralised."""

    categories: Sequence[Sequence[str]]

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        names = sorted({name for names in self.categories for name in names if name}, key=len, reverse=True)
        return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)) if names else None

    def named(self, thought: str) -> set[str]:
        """The categories in a thought, the longest names first; what stands in quotes is a title."""
        return set(self._pattern.findall(_QUOTED.sub(" ", thought))) if self._pattern else set()

    def f1(self, thought: str, item: int) -> float | None:
        """F1 of the named categories against the item's, 0..1; None where the item has none."""
        wanted = set(self.categories[item])
        if not wanted:
            return None
        named = self.named(thought)
        return 2 * len(named & wanted) / (len(named) + len(wanted))


def term(
    name: str, readings: Sequence[Reading], target: Sequence[int], table: SidTable, names: CategoryNames
) -> list[float | None]:
    """A term of `TERMS` but `rollout_beam`, one value a completion; 0 where it is invalid."""
    target = [table.items(table.sid(wanted))[0] for wanted in target]
    if name == "prefix":
        return prefix(item=[reading.item for reading in readings], target=target, table=table)
    value = {
        "valid": lambda thought, wanted: 1.0,
        "natural": lambda thought, wanted: float(natural(thought)),
        "category": names.f1,
    }[name]
    pairs = zip(readings, target, strict=True)
    return [0.0 if reading.problem else value(reading.thought, wanted) for reading, wanted in pairs]


@dataclass(frozen=True)
class ThoughtReward:
    """A term as TRL calls it; `__name__` is what its mean is logged under.

    It reads what was written, the tokens: a tokenizer's response template takes a message apart, and with it goes what
    was wrong with the form. `beam` is the reward function behind `rollout_beam`, asked about valid completions alone.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    table: SidTable
    names: CategoryNames
    beam: Callable[..., list[float | None]] | None = None

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self, *, completion_ids: Sequence[Sequence[int]], target: Sequence[int], **columns: Any
    ) -> list[float | None]:
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in completion_ids]
        readings = [read_completion(self.table, text) for text in texts]
        if self.name != "rollout_beam":
            return term(self.name, readings, target, self.table, self.names)
        values = self.beam(completion_ids=completion_ids, target=target, **columns)
        pairs = zip(readings, values, strict=True)
        return [0.0 if reading.problem else value for reading, value in pairs]


def check_weights(weights: Mapping[str, float], levels: int) -> None:
    """Refuse weights with which form could outscore the answer.

    A miss earns at most all terms but the last step of `prefix`, a hit at least `valid` and the whole `prefix`.

    Raises:
        ValueError: an unknown term, a negative weight, or a miss that could reach a hit; the message has the bound.
    """
    if unknown := set(weights) - set(TERMS):
        raise ValueError(f"term {sorted(unknown)[0]!r} of the reward is unknown; choose from {', '.join(TERMS)}")
    if negative := [name for name, weight in weights.items() if weight < 0]:
        raise ValueError(f"{negative[0]}_weight is {weights[negative[0]]}: a reward needs weights of at least 0")
    earned = sum(weights.get(name, 0.0) for name in ("natural", "category", "rollout_beam"))
    margin = weights.get("prefix", 0.0) * float(prefix_weights(levels)[-1])
    if earned >= margin:
        raise ValueError(
            f"natural, category and rollout_beam weigh {earned:g} together, and a hit is worth {margin:g} more than a "
            f"near miss: a miss could outscore a hit. Keep their sum below {margin:g}, or raise prefix_weight"
        )
