"""What a need must not be: a category's name, a venue, the same words again, no phrase at all.

A need with a fault earns nothing for its meaning (`rewards.py`), and a reference with one is no reference. The rules
compare words without case, accents and punctuation.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

# In the order in which they are tried.
FAULTS = ("length", "repeats", "names_category", "names_venue")
# A derived need is a phrase: two words ("light refreshments") to PIGEON's twenty or so.
_LEAST_WORDS, _MOST_WORDS, _MOST_LETTERS = 2, 24, 160
_LEAST_DISTINCT = 0.6
_RUN = re.compile(r"(\w)\1{4,}")
_WORD = re.compile(r"[^\W_]+")
_ENDINGS = ("", "s", "es")
_LONGEST_TITLE = 12


@lru_cache(maxsize=50_000)
def words(text: str) -> tuple[str, ...]:
    """The words of a text, folded: no case, no accents, no punctuation."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return tuple(_WORD.findall("".join(c for c in decomposed if not unicodedata.combining(c))))


@dataclass(frozen=True)
class Venues:
    """Finds titles of venues in a text. A title of one word counts where a digit is in it: words are not citations."""

    titles: Sequence[str]

    @cached_property
    def _known(self) -> frozenset[tuple[str, ...]]:
        keys = {words(title)[:_LONGEST_TITLE] for title in self.titles}
        return frozenset(key for key in keys if len(key) > 1 or any(map(str.isdigit, "".join(key))))

    def named(self, text: str) -> bool:
        """Whether the text holds a venue's title."""
        found = words(text)
        spans = ((i, j) for i in range(len(found)) for j in range(i + 1, min(i + _LONGEST_TITLE, len(found)) + 1))
        return any(found[i:j] in self._known for i, j in spans)


def names_category(text: str, category: str) -> bool:
    """Whether a text holds a category's name, word for word, in the plural, run together or taken apart.

    Of "Gym / Fitness Center" each side of the stroke is a name as well.
    """
    found = words(text)
    names = {"".join(words(part)) for part in (category, *category.split("/"))} - {""}
    runs = ("".join(found[i:j]) for i in range(len(found)) for j in range(i + 1, len(found) + 1))
    return bool({name + ending for name in names for ending in _ENDINGS}.intersection(runs))


def need_fault(need: str, categories: Iterable[str | None], venues: Venues) -> str | None:
    """The first of `FAULTS` that a need has, or None. Never raises on any text.

    categories: whose names it must not hold: the true one and, where an answer goes on to one, the answered one. Names
    of others are words like any ("a walk in the park" where a Plaza is meant).
    """
    found = words(need) if len(need) <= _MOST_LETTERS else ()
    if not _LEAST_WORDS <= len(found) <= _MOST_WORDS:
        return "length"
    doubled = any(one == other for one, other in itertools.pairwise(found))
    if doubled or len(set(found)) < _LEAST_DISTINCT * len(found) or _RUN.search(need):
        return "repeats"
    if any(names_category(need, category) for category in categories if category):
        return "names_category"
    return "names_venue" if venues.named(need) else None
