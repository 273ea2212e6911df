"""Item text is data, not prompt: make titles harmless before they reach a tokenizer or a chat template."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

MAX_LENGTH = 200
# Every marker that a chat template or SID vocabulary uses opens with one of these: <|im_start|>, <think>, <a_12>,
# [INST]. The substitutes are visible and no normal form turns them back. U+226E and U+226F decompose into < and >,
# U+2581 is how sentencepiece writes a space.
_SUBSTITUTES = str.maketrans({"<": "‹", ">": "›", "≮": "‹", "≯": "›", "[": "(", "]": ")", "▁": " "})
# Control, invisible format (bidi overrides, zero width, tag characters), surrogate and private use.
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co"})
# Variation selectors are invisible too, and can carry hidden bytes.
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_FILLERS = "·•∙‧◦¤¦§¶†"


def neutralise(text: str | None, tokens: Sequence[str] = (), max_length: int = MAX_LENGTH) -> str:
    """`text` as one harmless line: no control character, no chat marker, no SID-like string, none of `tokens`.

    The text is brought to NFKC, invisible characters are dropped, angle brackets become ‹ ›, square brackets
    become round, runs of white space become one space, and the result is cut at `max_length` characters. Each
    remaining occurrence of one of `tokens` (the added tokens of a tokenizer, in any case) is broken by a visible
    filler after its first character; a token of one character is replaced by the filler. None becomes "".
    Applying the function twice changes nothing more.

    Raises:
        ValueError: the tokens use every filler character.
    """
    if not text:
        return ""
    text = unicodedata.normalize("NFKC", _drop_invisible(unicodedata.normalize("NFKC", text)))
    text = " ".join(text.translate(_SUBSTITUTES).split())
    pattern, filler = _breaker(tuple(tokens))
    if pattern is not None:
        text = _break_tokens(text[:max_length].rstrip(), pattern, filler)
    return text[:max_length].rstrip()


def _drop_invisible(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    kept = [c if c.isspace() or unicodedata.category(c) not in _DROPPED else "" for c in text]
    return _SELECTORS.sub("", "".join(kept))


@lru_cache(maxsize=8)
def _breaker(tokens: tuple[str, ...]) -> tuple[re.Pattern[str] | None, str]:
    # A token of white space only cannot be broken; runs of it are collapsed already.
    tokens = tuple(token for token in tokens if token.strip())
    if not tokens:
        return None, ""
    used = {c for token in tokens for c in token}
    filler = next((c for c in _FILLERS if c not in used), None)
    if filler is None:
        raise ValueError(f"the tokens use every filler character ({_FILLERS}); pass fewer tokens")
    longest_first = sorted(set(tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE), filler


def _break_tokens(text: str, pattern: re.Pattern[str], filler: str) -> str:
    # No token holds the filler, so breaking one occurrence cannot make another, and the loop ends.
    while match := pattern.search(text):
        found = match.group()
        broken = found[0] + filler + found[1:] if len(found) > 1 else filler
        text = text[: match.start()] + broken + text[match.end() :]
    return text
