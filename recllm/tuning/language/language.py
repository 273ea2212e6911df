"""Language models as a tuning agent asks them: a chat and a JSON Schema in, a text out, one batch at a time.

A reply is untrusted text whoever wrote it; `recllm.tuning.language.proposer` judges it. Models differ in how they are
told a situation (`style`, see `recllm.tuning.language.prompt`) and in whether the schema binds what they write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from recllm.teachers.endpoint import Endpoint
from recllm.teachers.ledger import ask, recorded
from recllm.teachers.protocol import Answer, Question, Sampling, TeacherError, digest
from recllm.tuning.language.prompt import STYLES, Style

# Warm enough that a second try differs from the first, and short: a proposal has about 150 tokens.
SAMPLING = Sampling(temperature=0.7, max_tokens=400)
# A tuner's replies are short, and its small context must hold the prompt and a refused reply besides. It is drawn from
# colder than a general model, since the second best of what it learned is worse: cold studies of made data sets need
# 9.1 trials on average, and 10.2 at the temperature of the others (n = 96).
_TUNER_TOKENS, _TUNER_TEMPERATURE = 160, 0.3
_NO_SCHEMA = (400, 404, 415, 422, 501)  # how servers say that they do not know a `response_format`
_SOURCES = "endpoint:MODEL, local:FOLDER_OR_HUB_ID, tuner:FOLDER, smollm2 or transcript:FILE"


@dataclass(frozen=True)
class Ask:
    """One chat to be answered by a JSON object.

    Args:
        messages: dicts of `role` and `content`, the last one the user's.
        schema: JSON Schema of the object. seed: of the draws; the same ask with another seed may be answered otherwise.
    """

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    seed: int = 0

    def question(self, style: Style) -> Question:
        """The ask as teachers know it; the schema stands in it by its digest."""
        text = json.dumps(self.schema, sort_keys=True)
        facts = {"schema": hashlib.sha256(text.encode()).hexdigest()[:16], "seed": self.seed}
        return Question(self.messages, facts, f"tuning {style}")


class LanguageModel(Protocol):
    """Anything that continues chats.

    name: identity, which tells the weights or the served model and how it is sampled, and never a secret.
    style: how a situation is told to it.
    """

    name: str
    style: Style

    def reply(self, asks: Sequence[Ask]) -> list[str]:
        """One text an ask, in order. Raises TeacherError where it cannot."""
        ...


class EndpointModel:
    """A model behind an OpenAI-compatible endpoint, asked for JSON by schema where the server knows how.

    A server that refuses the schema is asked without it from then on: the prompt says what is wanted in words.
    """

    def __init__(self, endpoint: Endpoint, style: Style = "full") -> None:
        self.name, self.style = f"{endpoint.name} {style}", style
        self._endpoint, self._by_schema = endpoint, True

    def reply(self, asks: Sequence[Ask]) -> list[str]:
        """One text an ask, in order; empty where the server's filter or limit left nothing.

        Raises:
            TeacherError: a request failed for good.
        """
        questions = [one.question(self.style) for one in asks]
        try:
            answers = self._endpoint.answer(questions, [self._fields(one, self._by_schema) for one in asks])
        except TeacherError as error:
            if not self._by_schema or error.status not in _NO_SCHEMA:
                raise
            answers = self._without_schema(asks, questions, error.answered)
        return [answer.text for answer in answers]

    def _without_schema(
        self, asks: Sequence[Ask], questions: Sequence[Question], answers: list[Answer | None]
    ) -> list[Answer | None]:
        # What arrived beside the refusal is paid for; it stays.
        open_ = [row for row, answer in enumerate(answers) if answer is None]
        fields = [self._fields(asks[row], by_schema=False) for row in open_]
        failure = None
        try:
            found = self._endpoint.answer([questions[row] for row in open_], fields)
            # Only now is it known that the schema was the trouble.
            self._by_schema = False
        except TeacherError as error:
            found, failure = error.answered, error
        for row, answer in zip(open_, found, strict=True):
            answers[row] = answer
        if failure:
            raise TeacherError(str(failure), answers, failure.status) from None
        return answers

    def _fields(self, one: Ask, by_schema: bool) -> dict[str, Any]:
        fields: dict[str, Any] = {"seed": one.seed} if self._endpoint.sampling.temperature else {}
        if by_schema:
            wanted = {"name": "reply", "strict": False, "schema": dict(one.schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return fields


class Recorder:
    """Keeps every reply of a model in a file, and answers from it what was asked before: nothing is paid for twice.

    The file is a ledger of `recllm.teachers.ledger`, which survives kills and lets several processes take turns.
    """

    def __init__(self, model: LanguageModel, path: str | Path) -> None:
        self.name, self.style = model.name, model.style
        self._model, self._path = model, Path(path)

    def reply(self, asks: Sequence[Ask]) -> list[str]:
        """As the model's; asks that are equal share a reply.

        Raises:
            TeacherError: the model's own.
            ValueError: a row of the file is damaged.
        """
        questions = [one.question(self.style) for one in asks]
        teacher = _Asked(
            self._model, {digest(question, ""): one for question, one in zip(questions, asks, strict=True)}
        )
        return [answer.text for answer in ask(teacher, questions, self._path, label="", wait=True)]


class Transcript:
    """Replies that a `Recorder` wrote, word for word.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged row, no row, or rows of several models.
    """

    def __init__(self, path: str | Path) -> None:
        found = recorded(path)
        if len(found) != 1:
            told = "no reply" if not found else f"replies of {len(found)} models: {', '.join(n for n, _ in found)}"
            raise ValueError(f"{path} holds {told}; a transcript is of one model: record one, or choose another file")
        ((self._recorded, kind), self._answers) = next(iter(found.items()))
        self.name, self.style = f"transcript of {self._recorded}", kind.removeprefix("tuning ")
        if self.style not in STYLES:
            raise ValueError(f"{path} is no transcript of a tuning study: its questions are of kind {kind!r}")
        self._path = path

    def reply(self, asks: Sequence[Ask]) -> list[str]:
        """The recorded replies.

        Raises:
            TeacherError: an ask was not recorded.
        """
        keys = [digest(one.question(self.style), self._recorded) for one in asks]
        for one, key in zip(asks, keys, strict=True):
            if key not in self._answers:
                last = " ".join(one.messages[-1]["content"].split())[:80]
                raise TeacherError(
                    f"{self._path} has no reply to the ask {key[:12]} with seed {one.seed} ({last!r}); replay the "
                    "study that it was recorded from, with the same data, space, seeds and memory, or record it anew"
                )
        return [self._answers[key].text for key in keys]


@dataclass
class _Asked:
    """A model as the teacher that a ledger asks."""

    model: LanguageModel
    asks: Mapping[str, Ask]
    batch: int = 256

    @property
    def name(self) -> str:
        return self.model.name

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        replies = self.model.reply([self.asks[digest(question, "")] for question in questions])
        return [Answer(reply, None, None, "stop") for reply in replies]


def load_language_model(spec: str, sampling: Sampling = SAMPLING, **options: Any) -> LanguageModel:
    """`endpoint:MODEL`, `local:FOLDER_OR_HUB_ID` (a general model), `tuner:FOLDER` (one that was post-trained on the
    brief style), `smollm2` (SmolLM2-135M-Instruct, see recllm.assets) or `transcript:FILE`.

    options go to `Endpoint` or to `LocalModel.load`.

    Raises:
        ValueError: the spec names no model.
    """
    kind, _, source = spec.partition(":")
    if kind == "endpoint" and source:
        return EndpointModel(Endpoint(source, sampling, **options))
    if kind == "transcript" and source:
        return Transcript(source)
    if spec == "smollm2":
        from recllm.assets import fetch

        kind, source = "local", str(fetch("smollm2-135m-instruct"))
    if kind in ("local", "tuner") and source:
        from recllm.tuning.language.local_model import LocalModel

        if kind == "local":
            return LocalModel.load(source, sampling, style="full", **options)
        most, warmth = min(sampling.max_tokens, _TUNER_TOKENS), min(sampling.temperature, _TUNER_TEMPERATURE)
        tuned = replace(sampling, max_tokens=most, temperature=warmth)
        return LocalModel.load(source, tuned, style="brief", **options)
    raise ValueError(f"language model {spec!r} is unknown; give {_SOURCES}")
