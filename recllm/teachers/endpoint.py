"""Any OpenAI-compatible chat endpoint as a teacher: a hosted API, or a vLLM or llama.cpp server of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from recllm.teachers.protocol import Answer, Question, Sampling, TeacherError

_REMEDIES = {
    400: "the server does not take this request; check the model's context length and the sampling settings",
    401: "the server refused the key; check OPENAI_API_KEY",
    403: "the key has no right to this model",
    404: "no such model or path; check the model's name and the base URL, which mostly ends in /v1",
    429: "the rate limit or quota is used up; wait, or lower the concurrency",
}
# What reading a reply raises where it is of another shape, or nested beyond the stack.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Endpoint:
    """Chat completions, `concurrency` requests at a time.

    base_url and api_key default to the environment's OPENAI_BASE_URL and OPENAI_API_KEY; a server of one's own needs
    no key. timeout: seconds for one try. retries: further tries after a 408, 409, 429, 5xx, time-out or lost
    connection; the client waits as Retry-After says, up to two minutes, else 0.5 s doubling up to 8 s.

    The name leaves out the address, so that a ledger outlives a server's move; the model's name has to tell models
    apart.

    Raises:
        ValueError: neither a key nor a base URL is known.
    """

    def __init__(
        self,
        model: str,
        sampling: Sampling | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
    ) -> None:
        from openai import OpenAI

        self.model, self.sampling, self.concurrency = model, sampling or Sampling(), concurrency
        # Several requests a connection, so that one slow answer does not leave the others idle.
        self.name, self.batch = f"endpoint:{model} {self.sampling}", 4 * concurrency
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or None
        if not (self._key or base_url):
            raise ValueError("set OPENAI_API_KEY, or give the base URL of a server of your own (OPENAI_BASE_URL)")
        self._client = OpenAI(base_url=base_url, api_key=self._key or "none", timeout=timeout, max_retries=retries)
        self._tries = retries + 1

    def answer(self, questions: Sequence[Question], fields: Sequence[Mapping[str, Any]] = ()) -> list[Answer]:
        """Answers in the order of the questions.

        fields: further fields of the requests, such as `response_format`, one mapping a question; none by default.

        Raises:
            TeacherError: a request failed for good; requests under way are waited for, the rest is not begun, and
                `answered` holds what arrived.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            more = fields or [{}] * len(questions)
            futures = [pool.submit(self._ask, *pair) for pair in zip(questions, more, strict=True)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        failure = next((error for future in done if (error := future.exception())), None)
        if failure is None:
            return [future.result() for future in futures]
        if not isinstance(failure, TeacherError):
            raise failure
        raise TeacherError(str(failure), [_result(future) for future in futures], failure.status) from None

    def _ask(self, question: Question, fields: Mapping[str, Any]) -> Answer:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        drawn = {"top_p": self.sampling.top_p, "seed": self.sampling.seed} if self.sampling.temperature else {}
        try:
            reply = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[dict(message) for message in question.messages],
                temperature=self.sampling.temperature,
                max_tokens=self.sampling.max_tokens,
                **{**drawn, **fields},
            )
        # `from None`: the causes hold the request, and the request holds the key.
        except APIStatusError as error:
            remedy = _REMEDIES.get(error.status_code, "see the server's own log")
            cause = f"HTTP {error.status_code}, {remedy}; the server says: {error.message}"
            raise self._error(cause, error.status_code) from None
        except APITimeoutError:
            raise self._error(f"no answer in time, {self._tries} times") from None
        except APIConnectionError as error:
            raise self._error(f"no connection, {self._tries} times: {error.__cause__ or error}") from None
        try:
            return _read(reply.http_response.content)
        except _MALFORMED as error:
            cause = f"{type(error).__name__}: {error}"
            raise self._error(f"no chat completion ({cause}) but {reply.http_response.text!r}") from None

    def _error(self, cause: str, status: int | None = None) -> TeacherError:
        """One line that names the model and the server, and in which no server can echo the key."""
        clean = " ".join(cause.split())
        if self._key:
            clean = clean.replace(self._key, "***")
        url = urlsplit(str(self._client.base_url))  # its user part and query may be secrets
        port = f":{url.port}" if url.port else ""
        return TeacherError(
            f"{self.model} at {url.scheme}://{url.hostname}{port}{url.path}: {clean[:500]}", status=status
        )


def _result(future: Future[Answer]) -> Answer | None:
    return None if future.cancelled() or future.exception() else future.result()


def _read(body: bytes) -> Answer:
    """The first choice. Raises one of _MALFORMED where the body is anything else."""
    reply: Any = json.loads(body)
    choice = reply["choices"][0]
    # A filtered reply, or one that spent its tokens on hidden thoughts, has no content; it is an answer all the same.
    content, finish = choice["message"].get("content"), choice.get("finish_reason") or "unknown"
    text, usage = "" if content is None else content, reply.get("usage") or {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not (isinstance(text, str) and isinstance(finish, str)):
        raise TypeError("content or finish_reason is no text")
    if any(count is not None and (type(count) is not int or count < 0) for count in counts):
        raise TypeError(f"token counts {counts}")
    return Answer(text, *counts, finish)
