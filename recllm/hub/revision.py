"""One push to one revision: never over anything else, and going on where an earlier try of the same push stopped.

A push is three steps on a branch of its own: a first commit with the card, whose title names the content that is
coming; the large files; and one last commit with everything else, `run.json` included. A branch that ends in the
first commit is an interrupted push: the same content goes on there, any other is refused unless it takes over. Then
it begins anew on top, and the interrupted push, should it still be at work, finds the branch ahead and fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recllm.hub.client import HubCaller, PublishError
from recllm.hub.selection import Selection

CARD_FILE = "README.md"
_OF_THE_HUB = {".gitattributes"}  # in every new repository
_DONE = "recllm push"  # how the titles of commits begin
_BEGIN = f"{_DONE} begin"


def _is_done(title: str) -> bool:
    return title.startswith(f"{_DONE} ") and not title.startswith(f"{_BEGIN} ")


@dataclass(frozen=True)
class Repository:
    """A repository seen through a caller; `repo_type` is model or dataset."""

    caller: HubCaller
    repo_id: str
    repo_type: str

    @property
    def where(self) -> dict[str, str]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    def info(self) -> Any | None:
        """What the Hub says of the repository, or None where it does not exist or is not for us to see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        absent = (RepositoryNotFoundError,)
        try:
            return self.caller.call(
                "looking up the repository", lambda: self.caller.api.repo_info(**self.where), absent
            )
        except absent:
            return None

    def create(self, private: bool) -> None:
        """Create the repository where it is absent; a public one is refused where a private one was asked for."""
        api = self.caller.api
        self.caller.call(
            "creating the repository", lambda: api.create_repo(**self.where, private=private, exist_ok=True)
        )
        self.check_private(self.info(), private)

    def check_private(self, info: Any | None, private: bool) -> None:
        """Raise `PublishError` where a private repository was asked for and this one is public."""
        if private and info is not None and not info.private:
            raise PublishError(f"{self.repo_id} is public; make it private, or publish openly with --private false")

    def has(self, revision: str) -> bool:
        """Whether a branch or a tag has this name."""
        refs = self.caller.call("reading the revisions", lambda: self.caller.api.list_repo_refs(**self.where))
        return any(ref.name == revision for ref in (*refs.branches, *refs.tags, *refs.converts))

    def commits(self, revision: str) -> list[Any]:
        """The revision's commits, newest first."""
        api = self.caller.api
        return self.caller.call("reading the history", lambda: api.list_repo_commits(**self.where, revision=revision))

    def files(self, revision: str) -> set[str]:
        """Paths in the revision, without the Hub's own."""
        api = self.caller.api
        held = self.caller.call("listing the revision", lambda: api.list_repo_files(**self.where, revision=revision))
        return set(held) - _OF_THE_HUB

    def complete_branches(self) -> set[str]:
        """Branches whose last commit completes a push."""
        refs = self.caller.call("reading the revisions", lambda: self.caller.api.list_repo_refs(**self.where))
        return {ref.name for ref in refs.branches if _is_done(self.commits(ref.name)[0].title)}

    def check_free(self, revision: str) -> None:
        """Raise `FileExistsError` where the revision exists and holds anything."""
        if self.has(revision) and self.files(revision):
            raise FileExistsError(self.taken(revision))

    def taken(self, revision: str) -> str:
        """The message for a revision that is not to be overwritten."""
        return f"{self.repo_id} has a revision {revision} with other content, which is never overwritten; name another"


@dataclass(frozen=True)
class Push:
    """The push of one selection; `card` is its README.md, `content_id` names exactly what is pushed.

    takes_over: begin anew where the revision ends in the beginning of a push of other content.
    """

    repository: Repository
    selection: Selection
    card: bytes
    content_id: str
    takes_over: bool = False

    def run(self) -> str:
        """Do what is left to do of the push; returns the commit that completes the revision.

        Raises:
            FileExistsError: the revision holds something else.
            PublishError: a step failed for good.
        """
        begin, done = f"{_BEGIN} {self.content_id}", f"{_DONE} {self.content_id}"
        head = self._open(begin, done)
        if head.title == done:
            return head.commit_id
        parent = head.commit_id if head.title == begin else self._commit(begin, self._additions(False), head.commit_id)
        additions = self._additions(True)
        for number, addition in enumerate(additions, 1):
            self._upload(addition, f"uploading {addition.path_in_repo} ({number} of {len(additions)})")
        commit = self._commit(done, additions + self._removals(), parent)
        absent = {addition.path_in_repo for addition in additions} - self.repository.files(self._revision)
        if absent:
            raise PublishError(f"the Hub left out {', '.join(sorted(absent))}; look for a .gitignore in the repository")
        return commit

    @property
    def _revision(self) -> str:
        return self.selection.revision

    @property
    def _target(self) -> dict[str, str]:
        return {**self.repository.where, "revision": self._revision}

    def _open(self, begin: str, done: str) -> Any:
        """The revision's last commit; where there is no such revision it is made first, from the very first commit."""
        repository, api = self.repository, self.repository.caller.api
        start = None
        if not repository.has(self._revision):
            start = repository.commits("main")[-1].commit_id
            repository.caller.call(
                f"creating revision {self._revision}",
                lambda: api.create_branch(**repository.where, branch=self._revision, revision=start, exist_ok=True),
            )
        commits = repository.commits(self._revision)
        ours = commits[0].title in (begin, done) or commits[0].commit_id == start
        ours = ours or (self.takes_over and commits[0].title.startswith(f"{_BEGIN} "))
        if not ours and (len(commits) > 1 or repository.files(self._revision)):
            raise FileExistsError(repository.taken(self._revision))
        return commits[0]

    def _additions(self, everything: bool) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        card = CommitOperationAdd(CARD_FILE, self.card)
        if not everything:
            return [card]
        return [
            card,
            *(CommitOperationAdd(path, str(p)) for path, p in self.selection.files.items() if path != CARD_FILE),
        ]

    def _removals(self) -> list[Any]:
        """Files that the revision inherited from the repository's first commit and that are none of ours."""
        from huggingface_hub import CommitOperationDelete

        strange = self.repository.files(self._revision) - {CARD_FILE, *self.selection.files}
        return [CommitOperationDelete(path) for path in sorted(strange)]

    def _upload(self, addition: Any, step: str) -> None:
        """Bring one file's content to the Hub's store; small files wait for the commit."""
        api = self.repository.caller.api
        self.repository.caller.call(
            step, lambda: api.preupload_lfs_files(**self._target, additions=[addition], free_memory=False)
        )

    def _commit(self, title: str, operations: list[Any], parent: str) -> str:
        """Commit onto `parent`, once: a commit whose answer got lost is found again by its title."""
        api, tries = self.repository.caller.api, []

        def once() -> str:
            if tries:
                head = api.list_repo_commits(**self._target)[0]
                if head.title == title:
                    return head.commit_id
            tries.append(title)
            made = api.create_commit(**self._target, operations=operations, commit_message=title, parent_commit=parent)
            return made.oid

        return self.repository.caller.call("committing", once)
