"""A small Hub on 127.0.0.1: it speaks the calls that the real client makes, keeps what it gets, and fails on request.

Spoken: whoami, create repo, repo info, refs, commits, tree, branch, validate-yaml, preupload, LFS batch + PUT +
verify, commit (NDJSON), resolve (download) and a Xet token endpoint that is never there. Faults are queued per
method and path with `fail`, one per request; `kill` stops answering altogether and `revive` comes back on the same
port with everything that was kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretABCDEFGHIJKLMNOPQRSTUVWXYZ"
WEIGHTS = (".safetensors", ".parquet", ".arrow")  # what the Hub's default .gitattributes send to LFS


@dataclass
class Commit:
    """One commit: `files` maps a path to its bytes, or to the sha256 of an LFS object."""

    oid: str
    title: str
    message: str
    files: dict[str, bytes | str]


@dataclass
class Repo:
    """A repository: branches (each a list of commits, oldest first) and whether it is private."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What to do with one request: answer `status`, or one of pass | reset | reset_after | stall | kill."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "scripted"}'
    do: str = "answer"


@dataclass
class Answer:
    """A reply: status, body and headers."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def _json(value: object, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


def git_blob_id(data: bytes) -> str:
    """Git's name for a blob with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeHub:
    """Start with `with FakeHub() as hub:`; `hub.url` is the endpoint, `hub.repos` what was received."""

    def __init__(self, user: str = "tester", role: str = "write") -> None:
        self.user, self.role = user, role
        self.permissions: list[str] = []  # of a fine-grained token
        self.repos: dict[str, Repo] = {}  # "models/x/y" -> Repo
        self.objects: dict[str, bytes] = {}  # sha256 -> bytes, the LFS store
        self.requests: list[tuple[str, str]] = []
        self.faults: list[tuple[str, str, Fault]] = []
        self.verify_uploads = False
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.port = 0
        self.server: ThreadingHTTPServer | None = None

    def __enter__(self) -> FakeHub:
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def revive(self) -> None:
        """Listen again, on the port of the first start."""
        self.stopping.clear()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Stop listening; open connections end with their next request."""
        self.stopping.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def fail(self, method: str, path: str, *faults: Fault | int, forever: bool = False) -> None:
        """Queue faults for requests whose method and path (a regular expression) match; a number is a status."""
        for fault in faults:
            fault = Fault(status=fault) if isinstance(fault, int) else fault
            for _ in range(1000 if forever else 1):
                self.faults.append((method, path, fault))

    def count(self, method: str, path: str) -> int:
        """How many requests of this method matched the path so far."""
        return sum(1 for seen, where in self.requests if seen == method and re.search(path, where))

    def files(self, repo: str, branch: str) -> dict[str, bytes]:
        """Path -> bytes of a branch, LFS pointers resolved; the Hub's own .gitattributes left out."""
        held = self.repos[repo].branches[branch][-1].files
        found = {path: data if isinstance(data, bytes) else self.objects[data] for path, data in held.items()}
        return {path: data for path, data in found.items() if path != ".gitattributes"}

    def add_repo(self, repo: str, private: bool = True, files: dict[str, bytes] | None = None) -> Repo:
        """Create a repository as the Hub does: one system commit with .gitattributes, then `files` on main."""
        made = self.repos[repo] = Repo(private)
        start = {".gitattributes": b"*.safetensors filter=lfs\n"}
        made.branches["main"] = [Commit(hashlib.sha1(repo.encode()).hexdigest(), "initial commit", "", start)]
        if files:
            self.commit(repo, "main", "add files", "", {**start, **files})
        return made

    def commit(self, repo: str, branch: str, title: str, message: str, files: dict[str, bytes | str]) -> Commit:
        """Append a commit that leaves `files` as the branch's whole tree."""
        history = self.repos[repo].branches[branch]
        oid = hashlib.sha1(f"{repo} {branch} {len(history)} {title}".encode()).hexdigest()
        history.append(Commit(oid, title, message, dict(files)))
        return history[-1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The next fault queued for this request, or None."""
        with self.lock:
            for index, (wanted, pattern, fault) in enumerate(self.faults):
                if wanted == method and re.search(pattern, path):
                    del self.faults[index]
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; waiting for an ACK in between costs 40 ms
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Quiet: the tests read `hub.requests`."""

    def do_any(self) -> None:
        body = self._read_body()
        if self.hub.stopping.is_set():
            return self._reset()
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        fault = self.hub.take_fault(self.command, path)
        if fault is None or fault.do == "pass":
            return self._send(self._answer(path, body))
        return self._misbehave(fault, path, body)

    do_GET = do_POST = do_PUT = do_HEAD = do_any

    def _misbehave(self, fault: Fault, path: str, body: bytes) -> None:
        if fault.do == "answer":
            named = fault.body.replace(b"{authorization}", self.headers.get("Authorization", "").encode())
            return self._send(Answer(fault.status, named, {"Content-Type": "application/json", **fault.headers}))
        if fault.do == "stall":  # headers and a first byte, then silence
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            self.wfile.flush()
            self.hub.stopping.wait(20)
            return self._reset()
        if fault.do == "reset_after":  # the work is done, but nobody hears of it
            self._answer(path, body)
        if fault.do == "kill":
            threading.Thread(target=self.hub.kill, daemon=True).start()
        return self._reset()

    def _reset(self) -> None:
        # Linger 0 turns the close into a RST, as a dying peer or a cut line does.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def finish(self) -> None:
        if not self.rfile.closed:
            super().finish()

    def _answer(self, path: str, body: bytes) -> Answer:
        if not path.startswith("/storage/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _json({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid credentials in token")
        with self.hub.lock:
            for method, pattern, route in _ROUTES:
                if method in (self.command, "ANY") and (match := re.fullmatch(pattern, path)):
                    return route(self.hub, body, **{k: unquote(v) for k, v in match.groupdict().items()})
        return _json({"error": "not found"}, 404)


def _whoami(hub: FakeHub, body: bytes) -> Answer:
    access: dict[str, object] = {"role": hub.role, "displayName": "test"}
    if hub.role == "fineGrained":
        scope = {"entity": {"type": "user", "name": hub.user}, "permissions": hub.permissions}
        access["fineGrained"] = {"global": [], "scoped": [scope]}
    who = {"name": hub.user, "type": "user", "orgs": [{"name": "team"}], "auth": {"accessToken": access}}
    return _json(who)


def _create(hub: FakeHub, body: bytes) -> Answer:
    wanted = json.loads(body)
    repo_id = f"{wanted.get('organization') or hub.user}/{wanted['name']}"
    repo = f"{wanted.get('type', 'model')}s/{repo_id}"
    url = f"{hub.url}/{repo_id}"
    if repo in hub.repos:
        return _json({"error": "You already created this repo", "url": url}, 409)
    if repo_id.split("/")[0] not in (hub.user, "team"):
        return _json({"error": "no rights in this namespace"}, 403)
    hub.add_repo(repo, private=wanted.get("visibility") == "private")
    return _json({"url": url, "id": repo_id})


def _known(route: Callable[..., Answer]) -> Callable[..., Answer]:
    """Answer 404 as the Hub does where the repository or the revision does not exist."""

    def checked(hub: FakeHub, body: bytes, repo: str, rev: str | None = None, **rest: str) -> Answer:
        if repo not in hub.repos:
            return _json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if rev is None:
            return route(hub, body, repo, hub.repos[repo], **rest)
        history = hub.repos[repo].branches.get(rev)
        for branch in hub.repos[repo].branches.values():
            history = history or next((branch[: i + 1] for i, c in enumerate(branch) if c.oid == rev), None)
        if not history:
            return _json({"error": f"Invalid rev id: {rev}"}, 404, X_Error_Code="RevisionNotFound")
        return route(hub, body, repo, hub.repos[repo], rev=rev, history=history, **rest)

    return checked


@_known
def _info(hub: FakeHub, body: bytes, repo: str, found: Repo) -> Answer:
    head = found.branches["main"][-1]
    return _json({"id": repo.split("/", 1)[1], "sha": head.oid, "private": found.private, "siblings": [], "tags": []})


@_known
def _info_rev(hub: FakeHub, body: bytes, repo: str, found: Repo, rev: str, history: list[Commit]) -> Answer:
    files = [{"rfilename": path} for path in history[-1].files]
    answer = {"id": repo.split("/", 1)[1], "sha": history[-1].oid, "private": found.private, "siblings": files}
    return _json(answer)


@_known
def _refs(hub: FakeHub, body: bytes, repo: str, found: Repo) -> Answer:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": history[-1].oid}
        for name, history in found.branches.items()
    ]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in found.tags.items()]
    return _json({"branches": branches, "tags": tags, "converts": []})


@_known
def _commits(hub: FakeHub, body: bytes, repo: str, found: Repo, rev: str, history: list[Commit]) -> Answer:
    date = "2026-01-01T00:00:00.000Z"
    listed = [
        {"id": c.oid, "title": c.title, "message": c.message, "date": date, "authors": [{"user": hub.user}]}
        for c in reversed(history)
    ]
    return _json(listed)


@_known
def _tree(hub: FakeHub, body: bytes, repo: str, found: Repo, rev: str, history: list[Commit]) -> Answer:
    listed = []
    for path, data in history[-1].files.items():
        if isinstance(data, bytes):
            listed.append({"type": "file", "path": path, "size": len(data), "oid": git_blob_id(data)})
        else:
            size = len(hub.objects[data])
            lfs = {"oid": data, "size": size, "pointerSize": 134}
            listed.append({"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs})
    return _json(listed)


@_known
def _branch(hub: FakeHub, body: bytes, repo: str, found: Repo, branch: str) -> Answer:
    if branch in found.branches:
        return _json({"error": f"Reference already exists: {branch}"}, 409)
    start = json.loads(body or b"{}").get("startingPoint", "main")
    for history in found.branches.values():
        for index, commit in enumerate(history):
            if start == commit.oid:
                found.branches[branch] = history[: index + 1]
                return _json({}, 201)
    found.branches[branch] = list(found.branches[start])
    return _json({}, 201)


def _validate_yaml(hub: FakeHub, body: bytes) -> Answer:
    content = json.loads(body)["content"]
    if content.startswith("---\n") and "\n---" in content[4:]:
        return _json({"errors": [], "warnings": []})
    return _json({"errors": [{"message": "no metadata block"}], "warnings": []}, 400)


@_known
def _preupload(hub: FakeHub, body: bytes, repo: str, found: Repo, rev: str, history: list[Commit]) -> Answer:
    answers = []
    for entry in json.loads(body)["files"]:
        mode = "lfs" if entry["path"].endswith(WEIGHTS) else "regular"
        held = history[-1].files.get(entry["path"])
        oid = git_blob_id(held) if isinstance(held, bytes) else held
        answers.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return _json({"files": answers})


def _lfs_batch(hub: FakeHub, body: bytes, repo: str) -> Answer:
    answers = []
    for entry in json.loads(body)["objects"]:
        answer = {"oid": entry["oid"], "size": entry["size"]}
        if entry["oid"] not in hub.objects:
            answer["actions"] = {"upload": {"href": f"{hub.url}/storage/{entry['oid']}?X-Amz-Signature=signature"}}
            if hub.verify_uploads:
                answer["actions"]["verify"] = {"href": f"{hub.url}/api/verify"}
        answers.append(answer)
    return _json({"transfer": "basic", "objects": answers})


def _store(hub: FakeHub, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return _json({"error": "content does not match its oid"}, 400)
    hub.objects[oid] = body
    return Answer(200, b"")


def _verify(hub: FakeHub, body: bytes) -> Answer:
    named = json.loads(body)
    held = hub.objects.get(named["oid"], b"")
    return _json({}, 200 if len(held) == named["size"] else 404)


@_known
def _commit(hub: FakeHub, body: bytes, repo: str, found: Repo, rev: str, history: list[Commit]) -> Answer:
    header, files = {}, dict(history[-1].files)
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            header = value
        elif entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                return _json({"error": f"LFS object {value['oid']} was not uploaded"}, 400)
            files[value["path"]] = value["oid"]
        elif entry["key"] == "deletedFile":
            files.pop(value["path"])
    if header.get("parentCommit", history[-1].oid) != history[-1].oid:
        return _json({"error": "the branch has moved"}, 412)
    made = hub.commit(repo, rev, header["summary"], header["description"], files)
    return _json({"commitUrl": f"{hub.url}/{repo}/commit/{made.oid}", "commitOid": made.oid})


@_known
def _resolve(hub: FakeHub, body: bytes, repo: str, found: Repo, rev: str, history: list[Commit], path: str) -> Answer:
    held = history[-1].files.get(path)
    if held is None:
        return _json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
    data = held if isinstance(held, bytes) else hub.objects[held]
    etag = git_blob_id(data) if isinstance(held, bytes) else held
    return Answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": history[-1].oid})


_REPO = r"/api/(?P<repo>(?:models|datasets)/[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", r"/api/whoami-v2", _whoami),
    ("POST", r"/api/repos/create", _create),
    ("POST", r"/api/validate-yaml", _validate_yaml),
    ("POST", r"/api/verify", _verify),
    ("GET", _REPO, _info),
    ("GET", _REPO + r"/refs", _refs),
    ("GET", _REPO + r"/revision/(?P<rev>[^/]+)", _info_rev),
    ("GET", _REPO + r"/commits/(?P<rev>[^/]+)", _commits),
    ("GET", _REPO + r"/tree/(?P<rev>[^/]+)", _tree),
    ("POST", _REPO + r"/branch/(?P<branch>[^/]+)", _branch),
    ("POST", _REPO + r"/preupload/(?P<rev>[^/]+)", _preupload),
    ("POST", _REPO + r"/commit/(?P<rev>[^/]+)", _commit),
    ("POST", r"/(?P<repo>.+)\.git/info/lfs/objects/batch", _lfs_batch),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", _store),
]
for _method in ("GET", "HEAD"):
    _ROUTES.append(
        (
            _method,
            r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
            lambda hub, body, repo, **rest: _resolve(hub, body, f"models/{repo}", **rest),
        )
    )
