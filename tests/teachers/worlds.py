"""Questions, teachers that answer by rule, and a chat endpoint on this machine with faults on request."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from recllm.teachers.protocol import Answer, Question, TeacherError

KEY = "sk-secretABCDEFGH"


def questions(count: int, kind: str = "why", start: int = 0) -> list[Question]:
    """Questions that all differ."""
    return [
        Question([{"role": "user", "content": f"Why item {n}? {'x' * (n % 7)}"}], {"item": n}, kind)
        for n in range(start, start + count)
    ]


@dataclass
class Ruled:
    """Answers `text N` to the question about item N, notes what it was asked, and fails at the items of `failing`."""

    name: str = "ruled"
    batch: int = 3
    failing: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)

    def answer(self, questions):
        answers = []
        for question in questions:
            item = question.facts["item"]
            self.asked.append(item)
            answers.append(None if item in self.failing else Answer(f"text {item}", 10 + item, 2, "stop"))
        if None in answers:
            raise TeacherError("the rule has an exception", answers)
        return answers


@dataclass
class Fault:
    """One reply out of the ordinary."""

    status: int = 200
    body: bytes = b'{"error": {"message": "scripted"}}'
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class FakeChat:
    """`with FakeChat() as chat:`; `chat.url` is the base URL. It repeats the last message's content as its answer,
    counts its words as prompt tokens, and takes one of `faults` a request, in order. `always` is for every request."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.delay = lambda content: 0.0
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.busy = self.busiest = 0
        self.lock = threading.Lock()

    def __enter__(self) -> FakeChat:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reply(self, request: dict) -> Fault:
        """What the next request gets."""
        content = request["messages"][-1]["content"]
        if self.always or self.faults:
            return self.always or self.faults.popleft()
        usage = {"prompt_tokens": len(content.split()), "completion_tokens": 3, "total_tokens": 0}
        choice = {"index": 0, "message": {"role": "assistant", "content": f"re: {content}"}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "model": request["model"], "choices": [choice], "usage": usage}
        return Fault(body=json.dumps(body).encode(), seconds=self.delay(content))


def _handler(chat: FakeChat) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with chat.lock:
                chat.requests.append({"path": self.path, **request})
                chat.times.append(time.monotonic())
                chat.keys.add(self.headers["Authorization"])
                chat.busy += 1
                chat.busiest = max(chat.busiest, chat.busy)
                reply = chat.reply(request)
            time.sleep(reply.seconds)
            with chat.lock:
                chat.busy -= 1
            self.send_response(reply.status)
            for name, text in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_) -> None:
            """Quiet."""

    return Handler
