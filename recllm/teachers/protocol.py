"""What a teacher is asked, what it answers with, and the little that every teacher can do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_ROLES = ("system", "user", "assistant")


class TeacherError(RuntimeError):
    """A teacher could not answer; the message is one paragraph, names the cause and the remedy.

    answered: what it did answer of the batch, in the order of the questions, None where it did not. A ledger keeps
    these: they may have been paid for. status: the HTTP status where that is why.
    """

    def __init__(self, message: str, answered: Sequence[Answer | None] = (), status: int | None = None) -> None:
        super().__init__(message)
        self.answered, self.status = list(answered), status


@dataclass(frozen=True)
class Question:
    """One chat to be continued by the assistant.

    messages: dicts of `role` (system, user, assistant) and `content`, the last not the assistant's. Titles in the
    content were neutralised (`recllm.data.text`) by whoever wrote the prompt. facts: the structured evidence behind
    the prompt, of JSON's types with strings as keys; a template answers from it. kind: what is asked, which tells a
    template how to answer.

    Raises:
        ValueError: a message without a known role or without text, no message, or the last one is the assistant's.
    """

    messages: Sequence[Mapping[str, str]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""

    def __post_init__(self) -> None:
        for number, message in enumerate(self.messages):
            if set(message) != {"role", "content"} or message["role"] not in _ROLES:
                raise ValueError(
                    f"message {number} needs role ({', '.join(_ROLES)}) and content, got {dict(message)!r}"
                )
            if not isinstance(message["content"], str):
                raise ValueError(f"message {number}: content is a {type(message['content']).__name__}, wanted text")
        if not self.messages or self.messages[-1]["role"] == "assistant":
            raise ValueError("a question ends with a message of the user or the system, for the assistant to answer")


@dataclass(frozen=True)
class Answer:
    """A teacher's reply. It is untrusted text.

    Token counts are None where the teacher did not tell them. finish: "stop", "length" where the reply was cut off
    at the limit, or whatever else the teacher gives as its reason ("content_filter").
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish: str


class Teacher(Protocol):
    """Anything that answers questions with text.

    name: identity, part of the cache key: whatever changes the answers (model, sampling) and never a secret.
    batch: how many questions it likes at once.
    """

    name: str
    batch: int

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order; up to `batch` of them. Raises TeacherError where it cannot."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How a language model writes its answer.

    temperature: 0 is greedy. top_p: share of the probability that is drawn from, in (0, 1]. max_tokens: where the
    answer is cut off. seed: of the draws.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens >= 1):
            raise ValueError(f"temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1 must hold, got {self}")

    def __str__(self) -> str:
        if self.temperature == 0:  # neither top_p nor the seed has a say
            return f"greedy max_tokens={self.max_tokens}"
        drawn = f"temperature={self.temperature:g} top_p={self.top_p:g} seed={self.seed}"
        return f"{drawn} max_tokens={self.max_tokens}"


def digest(question: Question, salt: str) -> str:
    """Hex sha256 over `salt` and everything in the question: equal questions have equal digests, on every machine.

    Raises:
        ValueError: the facts are not JSON: other types, keys that are no strings, NaN or infinity.
    """
    whole = [salt, [dict(message) for message in question.messages], dict(question.facts), question.kind]
    try:
        _check_keys(whole)
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the facts of a question of kind {question.kind!r} are not JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _check_keys(value: Any) -> None:
    """json would write the keys 1 and "1" alike, and two questions would share an answer."""
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"key {wrong[0]!r} is no string")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner)
