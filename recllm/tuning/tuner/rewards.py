"""What a proposer's reply is worth: the improvement that it makes possible, and nothing for words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.proposal import Refusal, read_proposal

# A reply that is no proposal costs most; one that is, but of something that may not be done now, less. Neither costs
# much beside what a good change earns: a schema keeps a decoder from both, and a study tries again.
UNREADABLE, ILLEGAL = -0.2, -0.1
_UNREADABLE_REASONS = ("not_json", "wrong_fields", "unknown_dimension")


@dataclass(frozen=True)
class Improvement:
    """The reward of replies as TRL calls it: 0 to 1 for a legal change, by its worth (see `Board.worths`), 0 for one
    that a study would not keep, negative for a refused reply.

    Args:
        spaces: by name.
    """

    spaces: dict[str, Space]

    @property
    def __name__(self) -> str:
        return "improvement"

    @classmethod
    def of_spaces(cls, names: Iterable[str]) -> Improvement:
        """For the surfaces of the named backbones."""
        return cls({name: surface_space(name) for name in sorted(set(names))})

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        space: Sequence[str],
        config: Sequence[str],
        masked: Sequence[Sequence[str]],
        tried: Sequence[Sequence[str]],
        worths: Sequence[str],
        **columns: Any,
    ) -> list[float]:
        columns_R = (completions, space, config, masked, tried, worths)
        return [self.of(said(reply), *row) for reply, *row in zip(*columns_R, strict=True)]

    def of(
        self, reply: str, space: str, config: str, masked: Sequence[str], tried: Sequence[str], worths: str
    ) -> float:
        """The reward of one reply in a situation."""
        known = self.spaces[space]
        read = read_proposal(reply, known, json.loads(config), masked, frozenset(tried))
        if isinstance(read, Refusal):
            return UNREADABLE if read.reason in _UNREADABLE_REASONS else ILLEGAL
        return float(json.loads(worths).get(known.key(read[1]), 0.0))


def said(completion: Any) -> str:
    """The text of a completion, which is a chat or a text."""
    return completion if isinstance(completion, str) else "".join(str(part["content"]) for part in completion)
