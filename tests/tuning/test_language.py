"""Models that are asked: over the wire with the real client, and from transcripts of what they said."""

import json
import runpy
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from recllm.teachers.endpoint import Endpoint
from recllm.teachers.protocol import Sampling, TeacherError
from recllm.tuning.language.language import Ask, EndpointModel, Recorder, Transcript, load_language_model

WORLDS = Path(__file__).parents[1] / "teachers" / "worlds.py"
SCHEMA = {"anyOf": [{"type": "object", "properties": {"value": {"enum": [1, 2]}}, "required": ["value"]}]}


@pytest.fixture(scope="module")
def worlds():
    """The chat endpoint of the teachers' tests; dataclasses look their module up by its name, so it has one."""
    module = ModuleType("tuning_worlds")
    sys.modules[module.__name__] = module
    vars(module).update(runpy.run_path(str(WORLDS), run_name=module.__name__))
    return module


@pytest.fixture
def chat(worlds, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with worlds.FakeChat() as server:
        yield server


def model(chat, **more):
    return EndpointModel(Endpoint("m", Sampling(**{"temperature": 0.7} | more), base_url=chat.url, retries=0))


def asks(count, seed=5):
    return [Ask(({"role": "user", "content": f"word{n}"},), SCHEMA, seed + n) for n in range(count)]


def test_the_schema_and_the_seed_travel_with_each_ask(chat):
    assert model(chat).reply(asks(3)) == ["re: word0", "re: word1", "re: word2"]
    sent = {request["messages"][0]["content"]: request for request in chat.requests}
    for number in range(3):
        request = sent[f"word{number}"]
        assert request["seed"] == 5 + number and request["temperature"] == 0.7
        assert request["response_format"]["type"] == "json_schema"
        assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    assert model(chat, temperature=0.0).reply(asks(1)) == ["re: word0"]
    assert "seed" not in chat.requests[-1]  # nothing is drawn
    assert model(chat).reply([]) == []


def test_a_server_that_does_not_know_schemas_is_asked_without(chat, worlds):
    one = model(chat)
    refuse = worlds.Fault(status=400, body=b'{"error": {"message": "response_format is not supported"}}')
    answer = chat.reply
    chat.reply = lambda request: refuse if "response_format" in request else answer(request)
    assert one.reply(asks(2)) == ["re: word0", "re: word1"]
    before = len(chat.requests)
    assert one.reply(asks(2)) == ["re: word0", "re: word1"]
    assert len(chat.requests) == before + 2 and "response_format" not in chat.requests[-1]


def test_what_is_wrong_without_a_schema_too_is_an_error_and_no_verdict_on_schemas(chat, worlds):
    one = model(chat)
    chat.always = worlds.Fault(status=400, body=b'{"error": {"message": "too long a prompt"}}')
    with pytest.raises(TeacherError, match="too long a prompt"):
        one.reply(asks(1))
    chat.always = worlds.Fault(status=401)
    before = len(chat.requests)
    with pytest.raises(TeacherError, match="HTTP 401"):
        one.reply(asks(1))
    assert len(chat.requests) == before + 1  # a refused key is no refused schema
    chat.always = None
    one.reply(asks(1))
    assert "response_format" in chat.requests[-1]


def test_answers_beside_a_refusal_are_kept(chat, worlds, tmp_path):
    answer = chat.reply
    refuse = worlds.Fault(status=400)
    chat.reply = lambda request: refuse if request["messages"][0]["content"] == "word1" else answer(request)
    one = Recorder(model(chat), tmp_path / "t.jsonl")
    with pytest.raises(TeacherError):
        one.reply(asks(2))
    chat.reply = answer
    before = len(chat.requests)
    assert one.reply(asks(2)) == ["re: word0", "re: word1"]
    assert [request["messages"][0]["content"] for request in chat.requests[before:]] == ["word1"]


def test_a_transcript_says_what_was_recorded_and_nothing_is_paid_for_twice(chat, tmp_path):
    path = tmp_path / "study" / "transcript.jsonl"
    recorder = Recorder(model(chat), path)
    assert recorder.reply(asks(2)) == ["re: word0", "re: word1"]
    assert recorder.reply(asks(3)) == ["re: word0", "re: word1", "re: word2"]
    assert len(chat.requests) == 3 and recorder.name == model(chat).name and recorder.style == "full"
    replay = load_language_model(f"transcript:{path}")
    assert replay.reply(asks(3)[::-1]) == ["re: word2", "re: word1", "re: word0"] and len(chat.requests) == 3
    assert replay.style == "full" and recorder.name in replay.name
    other = Ask(asks(1)[0].messages, {"anyOf": []}, 5)
    for unknown in (asks(1, seed=6)[0], other, asks(4)[3]):
        with pytest.raises(TeacherError, match=r"has no reply to the ask [0-9a-f]{12} with seed \d.*word\d"):
            replay.reply([asks(1)[0], unknown])


def test_a_torn_transcript_is_read_and_goes_on(chat, tmp_path):
    path = tmp_path / "transcript.jsonl"
    Recorder(model(chat), path).reply(asks(3))
    whole = path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1]) - 1):
        path.write_bytes(whole[:-cut])
        assert Transcript(path).reply(asks(2)) == ["re: word0", "re: word1"]
        with pytest.raises(TeacherError, match="word2"):
            Transcript(path).reply(asks(3))
        assert Recorder(model(chat), path).reply(asks(3))[2] == "re: word2"
        assert Transcript(path).reply(asks(3))[2] == "re: word2"


def test_workers_take_turns_at_a_transcript(chat, tmp_path):
    chat.delay = lambda content: 0.05
    recorders = [Recorder(model(chat), tmp_path / "t.jsonl") for _ in range(3)]
    said: dict[int, list[str]] = {}
    threads = [threading.Thread(target=lambda n=n: said.update({n: recorders[n].reply(asks(3)[n:])})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == {n: [f"re: word{k}" for k in range(n, 3)] for n in range(3)} and len(chat.requests) == 3


def test_what_is_no_transcript_is_named(chat, tmp_path):
    path = tmp_path / "t.jsonl"
    with pytest.raises(FileNotFoundError, match=r"t\.jsonl"):
        Transcript(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"t\.jsonl holds no reply"):
        Transcript(path)
    Recorder(model(chat), path).reply(asks(1))
    rows = path.read_text()
    Recorder(model(chat, max_tokens=9), path).reply(asks(1))
    with pytest.raises(ValueError, match=r"replies of 2 models: .*max_tokens=9"):
        Transcript(path)
    path.write_text(rows.replace('"kind": "tuning full"', '"kind": "why"'))
    with pytest.raises(ValueError, match=r"no transcript of a tuning study.*'why'"):
        Transcript(path)
    path.write_text(json.dumps({"key": "1"}) + "\n")
    with pytest.raises(ValueError, match="line 1 is no row"):
        Transcript(path)


@pytest.mark.parametrize("spec", ["", "gpt", "local:", "endpoint", "tuner:", "smollm2:x", "transcript:"])
def test_an_unknown_spec_says_what_there_is(spec):
    with pytest.raises(ValueError, match="is unknown; give endpoint:MODEL, local:"):
        load_language_model(spec)
