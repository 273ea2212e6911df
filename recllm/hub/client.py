"""Calls to the Hub that end: a time limit on each request, passing faults retried, and no secret in any message.

The Hub's own client waits without limit for an answer and honours any Retry-After, however long; here every request
has a limit, every wait a ceiling, and what is left over is one `PublishError` that says what to do.
"""

from __future__ import annotations

import email.utils
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})  # the same request may well succeed a moment later


class PublishError(RuntimeError):
    """Publishing cannot work or did not; the message is one paragraph, names the cause and the remedy."""


class _Passing(Exception):
    """A fault that may pass. `tries` limits the retries where the layer below has already made its own."""

    def __init__(self, reason: str, retry_after: float | None = None, tries: int | None = None) -> None:
        super().__init__(reason)
        self.retry_after, self.tries = retry_after, tries


@dataclass(frozen=True)
class Retry:
    """How patient to be: `retries` after the first try, waits that double from `base_delay` up to `max_delay`.

    A server's Retry-After is obeyed up to `max_delay`. `timeout` is the longest silence on a connection. All in
    seconds.
    """

    retries: int = 5
    base_delay: float = 1.0
    max_delay: float = 60.0
    timeout: float = 120.0

    def delay(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after the given failed attempt (0 is the first); jitter keeps many clients apart."""
        if asked is not None:
            return min(asked + random.uniform(0, self.base_delay), self.max_delay)
        return min(self.base_delay * 2**attempt, self.max_delay) * random.uniform(0.5, 1.0)


def scrub(text: object, *secrets: str | None) -> str:
    """The text without secrets: the given ones, anything that looks like a token, and the queries of signed URLs."""
    clean = str(text)
    for secret in filter(None, secrets):
        clean = clean.replace(secret, "***")
    clean = re.sub(r"\b(hf|api_org)_\w{8,}", r"\1_***", clean)
    clean = re.sub(r"(?i)\bbearer\s+[^\s\"']+", "Bearer ***", clean)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", clean)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait: Retry-After in seconds or as a date, or the reset of a spent rate limit."""
    spent = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            pass  # neither seconds nor a date: as if it were absent
    return float(spent.group(1)) if spent else None


@dataclass
class HubCaller:
    """An `HfApi` whose calls go through `call`, inside `with caller.session():`."""

    endpoint: str
    token: str | None = field(repr=False)
    retry: Retry

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(endpoint=self.endpoint, token=self.token or False, library_name="recllm")

    @contextmanager
    def session(self) -> Iterator[None]:
        """Bound every request of the Hub's client while the block runs; the client is shared by the process."""
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils import _http

        # There is no public way to read the factory, and replacing it blindly would lose a user's proxy set-up.
        before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
        set_client_factory(lambda: _bounded(before(), self.retry.timeout))
        try:
            yield
        finally:
            set_client_factory(before)

    def call(self, step: str, action: Callable[[], T], expect: tuple[type[Exception], ...] = ()) -> T:
        """Run one step, again where its fault may pass. `expect` names exceptions that the caller wants as they are.

        Raises:
            PublishError: the step failed for good, or once more than `retries` times; names the step and the cause.
        """
        attempt = 0
        while True:
            try:
                return action()
            except (*expect, PublishError):
                raise
            except (OSError, ValueError, RuntimeError, _Passing) as error:
                fault = _passing(error)
                if fault is None:
                    raise PublishError(self.scrub(f"{step}: {_explain(error)}")) from None
                allowed = self.retry.retries if fault.tries is None else min(fault.tries, self.retry.retries)
                if attempt >= allowed:
                    last = self.scrub(f"{step} failed {attempt + 1} times, the last time: {fault}")
                    raise PublishError(last) from None
            wait = self.retry.delay(attempt, fault.retry_after)
            attempt += 1
            log.warning("%s: %s; again in %.1f s (%d of %d)", step, self.scrub(fault), wait, attempt, allowed)
            time.sleep(wait)

    def scrub(self, text: object) -> str:
        """The text without this caller's token."""
        return scrub(text, self.token)


def _bounded(client: Any, timeout: float) -> Any:
    """The HTTP client with a limit on every request, and with passing faults raised past the client's own retries."""
    from huggingface_hub.utils import httpx

    send, limits = client.send, dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    lost = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)

    def send_within(request: Any, **options: Any) -> Any:
        what = f"{request.method} {request.url.copy_with(query=None)}"
        request.extensions = {**request.extensions, "timeout": limits}  # some calls ask for no limit at all
        try:
            response = send(request, **options)
            if response.status_code in PASSING_STATUS:
                body = response.read().decode("utf-8", "replace")
        except httpx.TimeoutException:
            raise _Passing(f"no answer to {what} within {timeout:g} s") from None
        except lost as error:
            raise _Passing(f"{what}: {str(error) or type(error).__name__}") from None
        except httpx.RequestError as error:  # a protocol or an encoding that will not get better
            raise ValueError(f"{what}: {error}") from None
        if response.status_code in PASSING_STATUS:
            reason = f"HTTP {response.status_code} from {what} ({' '.join(body.split())[:200]})"
            raise _Passing(reason, retry_after=retry_after(response.headers))
        return response

    client.send = send_within
    return client


def _passing(error: BaseException) -> _Passing | None:
    """The passing fault behind an exception, or None where trying again is of no use."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, _Passing):
            return link
        link = link.__cause__
    # Xet transfers run in native code, past our client: it has made its own retries and raises bare built-ins.
    if type(error) in (ConnectionError, TimeoutError, RuntimeError) and error.__cause__ is None:
        hint = "; where Xet storage is out of reach, HF_HUB_DISABLE_XET=1 uploads over plain HTTP"
        return _Passing(f"{error}{hint}", tries=1)
    return None


def _explain(error: BaseException) -> str:
    """What a final error means and what to do about it, in one line."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps what broke an upload
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = " ".join(str(getattr(error, "server_message", None) or error).split())[:400]
    if status == 401:
        return f"the Hub refused the token (HTTP 401: {told}); log in again with `hf auth login` or renew HF_TOKEN"
    if status == 403:
        return f"the token has no right to do this (HTTP 403: {told}); it needs write access to the repository"
    if status == 412:
        return f"somebody else wrote to the revision meanwhile (HTTP 412: {told}); publish to another one"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set, which forbids every request; unset it to publish"
    return told if status is None else f"HTTP {status}: {told}"
