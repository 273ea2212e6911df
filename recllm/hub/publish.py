"""Publish a finished run folder to a revision of its own on the Hub, privately, and never over anything else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recllm.hub.client import HubCaller, PublishError, Retry
from recllm.hub.revision import CARD_FILE, Push, Repository
from recllm.hub.selection import Selection, check_revision, select

# Before a run starts, a missing network is to be told at once.
_QUICK = Retry(retries=2, timeout=20.0)


@dataclass(frozen=True)
class PublishResult:
    """Where a folder landed: the revision's page, its name, and the commit that completed it."""

    url: str
    revision: str
    commit: str


@dataclass(frozen=True)
class PublishOutcome:
    """How the push at the end of a run went: a result, an error, or neither where none was asked for."""

    result: PublishResult | None = None
    error: str | None = None

    def exit_if_failed(self) -> None:
        """End the process with status 1 and the reason where the push failed; the last line of a recipe."""
        if self.error is not None:
            raise SystemExit(self.error)


def preflight(
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    *,
    private: bool = True,
    repo_type: str = "model",
    endpoint: str | None = None,
    retry: Retry = _QUICK,
) -> str:
    """Say before a run starts whether its result can be published; returns the user's name. Nothing is written.

    Raises:
        ValueError: the repository id or the revision is malformed.
        FileExistsError: the revision exists already and is not empty.
        PublishError: no token, one that may not write, no network, a namespace that is not the user's, or a public
            repository where a private one was asked for.
    """
    _check_repo_id(repo_id)
    if revision is not None:
        check_revision(revision)
    endpoint = _endpoint(endpoint)
    try:
        repository = Repository(HubCaller(endpoint, _token(token), retry), repo_id, repo_type)
        with repository.caller.session():
            user = repository.caller.call("asking whose the token is", repository.caller.api.whoami)
            _check_rights(user)
            info = repository.info()
            if info is None:
                _check_namespace(user, repo_id)
            else:
                repository.check_private(info, private)
                if revision is not None:
                    repository.check_free(revision)
    except PublishError as error:
        raise PublishError(
            f"publishing to {repo_id} at {endpoint} cannot work: {error}. Mend this, or run without push_to_hub and "
            "publish the folder later with recipes/publish.py"
        ) from None
    return str(user.get("name"))


def publish(
    folder: str | Path,
    repo_id: str,
    revision: str | None = None,
    private: bool = True,
    retries: int = 5,
    *,
    token: str | None = None,
    repo_type: str = "model",
    endpoint: str | None = None,
    allow_incomplete: bool = False,
    takes_over: bool = False,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    timeout: float = 120.0,
) -> PublishResult:
    """Publish a folder to a new revision; the same content pushed again goes on, or finds itself complete.

    Args:
        revision, allow_incomplete: as in `selection.select`.
        private: create the repository privately, and refuse one that is public.
        takes_over: begin anew where the revision has nothing but the beginning of a push of other content; for
            revisions whose name says what belongs there.
        retries, base_delay, max_delay, timeout: as in `client.Retry`, for each step and each file by itself.
        token: default is the one of `hf auth login` or HF_TOKEN. It reaches no message, log or exception.
        repo_type: model or dataset.
        endpoint: default is HF_ENDPOINT, then the public Hub.

    Raises:
        ValueError, FileNotFoundError: a bad folder, repository id or revision; nothing was sent.
        FileExistsError: the revision holds something else.
        PublishError: the Hub refused or stayed out of reach; the folder is kept and the same call goes on later.
    """
    chosen = select(folder, revision, allow_incomplete)
    _check_repo_id(repo_id)
    endpoint, token = _endpoint(endpoint), _token(token)
    chosen.check_no_secret(token)
    card = _card(chosen, repo_type)
    try:
        caller = HubCaller(endpoint, token, Retry(retries, base_delay, max_delay, timeout))
        repository = Repository(caller, repo_id, repo_type)
        with caller.session():
            repository.create(private)
            commit = Push(repository, chosen, card, chosen.content_id(card), takes_over).run()
    except PublishError as error:
        raise PublishError(_kept(chosen, repo_id, error)) from None
    prefix = "datasets/" if repo_type == "dataset" else ""
    url = f"{endpoint}/{prefix}{repo_id}/tree/{quote(chosen.revision, safe='')}"
    return PublishResult(url=url, revision=chosen.revision, commit=commit)


@contextmanager
def open_repository(
    repo_id: str, retries: int = 5, token: str | None = None, repo_type: str = "model", endpoint: str | None = None
) -> Iterator[Repository]:
    """A repository to look into, every request of the block bounded; errors as of `publish`."""
    _check_repo_id(repo_id)
    repository = Repository(HubCaller(_endpoint(endpoint), _token(token), Retry(retries)), repo_id, repo_type)
    with repository.caller.session():
        yield repository


def publish_with_outcome(
    folder: str | Path, repo_id: str | None, enabled: bool = True, **options: Any
) -> PublishOutcome:
    """Publish at the end of a run without losing the run: a failure is printed now and raised at the very end.

    `options` are those of `publish`. End the script with `outcome.exit_if_failed()`.
    """
    if not enabled:
        return PublishOutcome()
    try:
        result = publish(folder, repo_id or "", **options)
    except (PublishError, OSError, ValueError) as error:
        print(f"NOT PUBLISHED: {error}", flush=True)
        return PublishOutcome(error=f"the folder is kept but not published: {error}")
    print(f"published: {result.url} (commit {result.commit[:12]})", flush=True)
    return PublishOutcome(result=result)


def _kept(chosen: Selection, repo_id: str, error: PublishError) -> str:
    return (
        f"{chosen.folder} is not published to {repo_id} at {chosen.revision}: {error}. The folder is kept; to go on "
        f"where this stopped: python recipes/publish.py --folder {chosen.folder} --hub_model_id {repo_id} "
        f"--revision {chosen.revision}"
    )


def _card(chosen: Selection, repo_type: str) -> bytes:
    """The folder's own README.md, or one rendered from its records."""
    if CARD_FILE in chosen.files:
        return chosen.files[CARD_FILE].read_bytes()
    from recllm.hub.card import render_card, render_dataset_card

    render = render_dataset_card if repo_type == "dataset" else render_card
    return render(chosen.folder).encode()


def _endpoint(endpoint: str | None) -> str:
    # The client reads HF_ENDPOINT once, at import; reading it here makes a later change count.
    found = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not found.startswith(("https://", "http://")):
        raise ValueError(f"HF_ENDPOINT {found!r} must start with https:// (or http://)")
    return found


def _token(token: str | None) -> str:
    from huggingface_hub import get_token

    found = token or get_token()
    if not found:
        raise PublishError("there is no access token; log in with `hf auth login` or set HF_TOKEN")
    return found


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"hub_model_id {repo_id!r} is malformed: {error}") from None
    if repo_id.count("/") != 1:
        raise ValueError(f"hub_model_id {repo_id!r} must read namespace/name, as in my-team/my-model")


def _check_rights(user: dict[str, Any]) -> None:
    access = user.get("auth", {}).get("accessToken", {})
    fine = access.get("fineGrained")
    if access.get("role") == "read" or (fine is not None and "repo.write" not in str(fine)):
        raise PublishError("the token may only read; make one with write access in the Hub's settings")


def _check_namespace(user: dict[str, Any], repo_id: str) -> None:
    own = {user.get("name"), *(org.get("name") for org in user.get("orgs", []))}
    if repo_id.split("/")[0] not in own:
        raise PublishError(f"{repo_id} does not exist, and {user.get('name')} cannot create it in a foreign namespace")
