"""Publishing, with the real client against a small Hub on this machine that fails on request.

Large files go through LFS or Xet, which the client chooses when it is imported: those tests run in child processes.
Small files need neither, so every other test runs here.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import _http

from recllm.hub import client
from recllm.hub.client import PublishError, Retry, retry_after, scrub
from recllm.hub.publish import preflight, publish, publish_with_outcome
from recllm.hub.selection import check_revision, select
from recllm.provenance import REQUEST_FILE, RunRecord

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import TOKEN, FakeHub, Fault

REPO, HELD = "tester/planner", "models/tester/planner"
FAST = {"base_delay": 0.01, "max_delay": 0.05, "timeout": 5.0}
WEIGHTS = b"weights" * 3000
CARD = "---\nlicense: mit\n---\n\n# A card\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with FakeHub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def make_run(folder: Path, weights: bytes | None = None, **files: str) -> Path:
    """A finished run with a card, and weights where asked."""
    run = RunRecord.start(folder, recipe="sft", config={"seed": 1})
    (folder / "README.md").write_text(CARD)
    (folder / "sid_table").mkdir()
    (folder / "sid_table" / "sid_table.json").write_text('{"levels": 3}')
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    for name, text in files.items():
        (folder / name).write_text(text)
    run.finish({"ndcg@10": 0.1})
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def delivered(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != REQUEST_FILE)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def titles(hub: FakeHub, revision: str) -> list[str]:
    return [commit.title.split()[:3] for commit in hub.repos[HELD].branches[revision]]


CHILD = """
import json, logging, sys
if "--debug" in sys.argv:
    logging.basicConfig(level=logging.DEBUG)
from recllm.hub.publish import publish
print(json.dumps(publish(**json.loads(sys.argv[1])).__dict__))
"""


def start_child(folder: Path, *, xet: bool = False, debug: bool = False, **options) -> subprocess.Popen:
    """`publish` in a process of its own, where the client is imported with or without Xet."""
    env = {**os.environ, "HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    argument = json.dumps({"folder": str(folder), "repo_id": REPO, **FAST, **options})
    command = [sys.executable, "-c", CHILD, argument, *(["--debug"] if debug else [])]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def child(folder: Path, **options) -> tuple[dict | None, str, str]:
    """(result or None, standard output, standard error) of `publish` in a child process."""
    process = start_child(folder, **options)
    out, err = process.communicate(timeout=60)
    return (json.loads(out.splitlines()[-1]) if process.returncode == 0 else None), out, err


# What goes up.


def test_a_folder_arrives_byte_for_byte_through_lfs_and_downloads_again(hub, tmp_path):
    run = make_run(tmp_path / "run", WEIGHTS)
    for left in ("optimizer.pt", "training_args.bin", "checkpoint-3/model.safetensors", "logs/a.txt", ".cache/x"):
        (run / left).parent.mkdir(exist_ok=True)
        (run / left).write_bytes(b"left behind")
    hub.verify_uploads = True
    result, _, err = child(run)
    assert result, err
    revision = f"run-{json.loads((run / 'run.json').read_text())['fingerprint'][:12]}"
    assert result["revision"] == revision
    assert result["url"] == f"{hub.url}/{REPO}/tree/{revision}"
    expected = {path: data for path, data in delivered(run).items() if data != b"left behind"}
    assert hub.files(HELD, revision) == expected
    assert hub.repos[HELD].private
    assert hub.files(HELD, "main") == {}, "main is nobody's revision"
    assert hub.count("POST", "lfs/objects/batch") == hub.count("PUT", "storage") == hub.count("POST", "verify") == 1
    assert result["commit"] == hub.repos[HELD].branches[revision][-1].oid

    from huggingface_hub import snapshot_download

    where = snapshot_download(
        REPO, revision=revision, endpoint=hub.url, token=TOKEN, local_dir=tmp_path / "got", max_workers=1
    )
    got = {path: data for path, data in delivered(Path(where)).items() if not path.startswith((".cache", ".gitattr"))}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in got.items()} == {
        path: hashlib.sha256(data).hexdigest() for path, data in expected.items()
    }


def test_the_last_commit_brings_everything_at_once(hub, run):
    """Nobody can meet a revision with half its files but the card."""
    publish(run, REPO, "v1", **FAST)
    history = hub.repos[HELD].branches["v1"]
    assert [sorted(commit.files) for commit in history[:-1]] == [[".gitattributes"], [".gitattributes", "README.md"]]
    assert {"run.json", "metrics.json", "sid_table/sid_table.json"} <= set(history[-1].files)
    assert titles(hub, "v1")[1:] == [["recllm", "push", "begin"], history[-1].title.split()[:3]]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "sub/x.PKL", "old.ckpt", "y.pth", "z.joblib"])
def test_pickled_weights_are_refused_by_name(hub, run, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{name}.*safetensors"):
        publish(run, REPO, **FAST)
    assert hub.requests == []


def test_an_unfinished_folder_is_refused_unless_asked_for(hub, run):
    (run / "run.json").write_text('{"schema": 1')
    with pytest.raises(ValueError, match=r"no valid run\.json"):
        publish(run, REPO, **FAST)
    assert hub.requests == []
    assert publish(run, REPO, "as-it-is", allow_incomplete=True, **FAST).revision == "as-it-is"
    with pytest.raises(FileNotFoundError):
        publish(run / "nowhere", REPO)
    (run / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing"):
        select(run / "empty", allow_incomplete=True)


def test_nothing_from_outside_the_folder_goes_up(run, tmp_path):
    (tmp_path / "id_rsa").write_text("private")
    (run / "notes.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        select(run)
    (run / "notes.txt").unlink()
    (run / "other").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="other"):
        select(run)
    (run / "other").unlink()
    (run / "copy.json").symlink_to(run / "run.json")  # inside: what it points to goes up anyway
    assert "copy.json" in select(run).files


def test_a_file_with_the_token_in_it_is_refused(hub, run):
    (run / "config.json").write_text(json.dumps({"hub": TOKEN}))
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        publish(run, REPO, **FAST)
    assert TOKEN not in str(caught.value)
    assert hub.requests == []


def test_a_folder_without_a_card_gets_one(hub, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "README.md").unlink()
    publish(run, REPO, "v1", **FAST)
    assert b"`ndcg@10` | 0.1000" in hub.files(HELD, "v1")["README.md"]
    assert not (run / "README.md").exists()


def test_a_data_set_goes_to_a_data_set_repository(hub, run):
    result = publish(run, REPO, "v1", repo_type="dataset", **FAST)
    assert result.url == f"{hub.url}/datasets/{REPO}/tree/v1"
    assert hub.files("datasets/tester/planner", "v1") == delivered(run)


def test_selection_names_what_stays_and_prints_its_sizes(run, capsys):
    (run / "trainer_state.json").write_text("{}")
    chosen = select(run, "v1")
    chosen.show(REPO)
    shown = capsys.readouterr().out
    assert chosen.left == [REQUEST_FILE, "trainer_state.json"]
    assert "tester/planner at revision v1" in shown
    assert f"{len(CARD):>14,}  README.md" in shown
    assert "stays here  trainer_state.json" in shown


def test_the_content_id_is_that_of_every_byte_and_every_name(tmp_path):
    one = select(make_run(tmp_path / "a"), "v1").content_id()
    same = make_run(tmp_path / "b")
    (same / "run.json").write_bytes((tmp_path / "a" / "run.json").read_bytes())
    assert select(same, "v2").content_id() == one
    (same / "sid_table" / "sid_table.json").rename(same / "sid_table.json")
    assert select(same).content_id() != one


# Never over anything else.


def state(hub: FakeHub) -> dict[str, list[str]]:
    return {name: [commit.oid for commit in history] for name, history in hub.repos[HELD].branches.items()}


def test_the_same_push_again_changes_nothing(hub, run):
    first = publish(run, REPO, "v1", **FAST)
    before, sent = state(hub), hub.count("POST", "/planner/")
    assert publish(run, REPO, "v1", **FAST) == first
    assert state(hub) == before
    assert hub.count("POST", "/planner/") == sent


def test_other_content_never_lands_on_a_revision_that_exists(hub, run):
    publish(run, REPO, "v1", **FAST)
    before = state(hub)
    (run / "metrics.json").write_text('{"ndcg@10": 0.9}')
    with pytest.raises(FileExistsError, match=r"v1.*never overwritten"):
        publish(run, REPO, "v1", **FAST)
    assert state(hub) == before
    assert publish(run, REPO, "v2", **FAST).revision == "v2"
    assert state(hub)["v1"] == before["v1"]


def test_what_others_put_there_stays(hub, run):
    found = hub.add_repo(HELD, files={"model.safetensors": b"theirs"})
    found.tags["v0"] = found.branches["main"][-1].oid
    before = state(hub)
    for revision in ("main", "v0"):
        with pytest.raises((FileExistsError, PublishError)):
            publish(run, REPO, revision, retries=0, **FAST)
    assert state(hub) == before


def test_a_revision_holds_the_folder_and_nothing_that_was_there_before(hub, run):
    found = hub.add_repo(HELD)
    found.branches["main"][0].files["old.safetensors"] = b"squashed history"
    publish(run, REPO, "v1", **FAST)
    assert hub.files(HELD, "v1") == delivered(run)
    assert hub.files(HELD, "main") == {"old.safetensors": b"squashed history"}


def test_a_public_repository_is_not_filled_by_accident(hub, run):
    hub.add_repo(HELD, private=False)
    with pytest.raises(PublishError, match="is public"):
        publish(run, REPO, "v1", **FAST)
    assert list(hub.repos[HELD].branches) == ["main"]
    publish(run, REPO, "v1", private=False, **FAST)
    assert hub.files(HELD, "v1") == delivered(run)


def test_somebody_elses_commit_in_between_is_not_run_over(hub, run):
    theirs = Fault(status=412, body=b'{"error": "the branch has moved"}')
    hub.fail("POST", "/commit/", theirs)
    with pytest.raises(PublishError, match="somebody else"):
        publish(run, REPO, "v1", **FAST)
    assert hub.count("POST", "/commit/") == 1


# Faults that pass, and faults that do not.

STEPS = [
    ("POST", "repos/create"),
    ("GET", "/planner$"),
    ("GET", "/refs"),
    ("GET", "/commits/main"),
    ("POST", "/branch/"),
    ("GET", "/commits/v1"),
    ("GET", "/tree/"),
    ("POST", "validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/commit/"),
]
FAULTS = {
    "500": Fault(status=500),
    "502 html": Fault(status=502, body=b"<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
    "503": Fault(status=503),
    "504": Fault(status=504),
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "reset": Fault(do="reset"),
    "reset after": Fault(do="reset_after"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_step_outlives_a_passing_fault(hub, run, fault):
    for method, path in STEPS:
        hub.fail(method, path, *[FAULTS[fault]] * (2 if path == "/commit/" else 1))
    publish(run, REPO, "v1", **FAST)
    assert hub.faults == [], "every fault was met"
    assert hub.files(HELD, "v1") == delivered(run)
    assert len(hub.repos[HELD].branches["v1"]) == 3, "a lost answer makes no second commit"


def test_a_silent_server_is_left_after_the_time_limit(hub, run):
    for path in ("repos/create", "/commit/"):
        hub.fail("POST", path, Fault(do="stall"))
    started = time.monotonic()
    publish(run, REPO, "v1", **{**FAST, "timeout": 0.2})
    assert 0.4 < time.monotonic() - started < 5
    assert hub.files(HELD, "v1") == delivered(run)


def test_uploads_of_large_files_are_retried_one_by_one(hub, tmp_path):
    run = make_run(tmp_path / "run", WEIGHTS)
    (run / "other.safetensors").write_bytes(b"other" * 1000)
    hub.fail("POST", "objects/batch", 503)
    hub.fail("PUT", "storage", 500, Fault(do="reset"), Fault(do="stall"), Fault(do="reset_after"))
    result, _, err = child(run, revision="v1", timeout=0.3, retries=5)
    assert result, err
    assert hub.files(HELD, "v1") == delivered(run)


def test_it_gives_up_with_the_last_cause_and_what_to_do(hub, run):
    hub.fail("POST", "/preupload/", 503, 500, Fault(status=502, body=b'{"error": "the very last"}'))
    with pytest.raises(PublishError) as caught:
        publish(run, REPO, "v1", retries=2, **FAST)
    message = str(caught.value)
    assert "failed 3 times" in message
    assert "HTTP 502" in message
    assert "the very last" in message
    assert f"python recipes/publish.py --folder {run} --hub_model_id {REPO} --revision v1" in message
    assert hub.count("POST", "/preupload/") == 3
    assert (run / "run.json").exists()


@pytest.mark.parametrize(("status", "words"), [(401, "refused the token"), (403, "write access"), (400, "HTTP 400")])
def test_a_refusal_is_not_tried_again(hub, run, status, words):
    hub.fail("POST", "/preupload/", status)
    with pytest.raises(PublishError, match=words):
        publish(run, REPO, "v1", **FAST)
    assert hub.count("POST", "/preupload/") == 1


def waits(monkeypatch) -> list[float]:
    """Replace the waiting by a list of what would have been waited, in seconds."""
    slept = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=slept.append, time=time.time))
    return slept


def test_retry_after_is_obeyed_up_to_the_ceiling(hub, run, monkeypatch):
    slept = waits(monkeypatch)
    asked = [{"Retry-After": "7"}, {"Retry-After": "3600"}, {"ratelimit": '"api";r=0;t=9'}, {"Retry-After": "soon"}]
    for headers in asked:
        hub.fail("POST", "/preupload/", Fault(status=429, headers=headers))
    publish(run, REPO, "v1", base_delay=1.0, max_delay=30.0)
    assert 7 <= slept[0] <= 8
    assert slept[1] == 30
    assert 9 <= slept[2] <= 10
    assert 4 <= slept[3] <= 8, "an unreadable wish leaves the usual wait of the fourth try"


def test_waits_double_up_to_the_ceiling(hub, run, monkeypatch):
    slept = waits(monkeypatch)
    hub.fail("POST", "repos/create", 500, forever=True)
    with pytest.raises(PublishError, match="failed 8 times"):
        publish(run, REPO, "v1", retries=7, base_delay=1.0, max_delay=20.0)
    assert len(slept) == 7
    for wait, full in zip(slept, [1, 2, 4, 8, 16, 20, 20], strict=True):
        assert full / 2 <= wait <= full
    assert len({wait / full for wait, full in zip(slept, [1, 2, 4, 8, 16, 20, 20], strict=True)}) > 1, "jitter"


def test_retry_after_reads_seconds_dates_and_rate_limits():
    assert retry_after({"retry-after": "12"}) == 12
    assert 50 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) < 61
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0
    assert retry_after({"ratelimit": '"api";r=0;t=55'}) == 55
    assert retry_after({"ratelimit": '"api";r=3;t=55'}) is None
    assert retry_after({}) is None
    assert Retry(base_delay=1, max_delay=5).delay(0, 100) == 5


def test_the_processes_own_client_comes_back(hub, run):
    before = _http._GLOBAL_CLIENT_FACTORY
    publish(run, REPO, "v1", **FAST)
    hub.fail("POST", "repos/create", 403)
    with pytest.raises(PublishError):
        publish(run, REPO, "v2", **FAST)
    assert _http._GLOBAL_CLIENT_FACTORY is before
    assert "send" not in vars(_http.get_session()), "no time limit of ours is left behind"


# Interrupted pushes.


def test_a_push_cut_off_before_its_last_commit_goes_on(hub, tmp_path):
    run = make_run(tmp_path / "run", WEIGHTS)
    hub.fail("POST", "/commit/", Fault(status=200, do="pass"), Fault(do="kill"))
    result, _, err = child(run, revision="v1", retries=1)
    assert result is None
    assert "is not published" in err
    assert len(hub.objects) == 1, "the weights had arrived"
    assert "run.json" not in hub.files(HELD, "v1"), "and the revision is not complete"

    hub.revive()
    with pytest.raises(FileExistsError):
        publish(make_run(tmp_path / "other"), REPO, "v1", **FAST)
    result, _, err = child(run, revision="v1")
    assert result, err
    assert hub.files(HELD, "v1") == delivered(run)
    assert hub.count("PUT", "storage") == 1, "what had arrived is not sent again"
    assert len(hub.repos[HELD].branches["v1"]) == 3


def test_the_beginning_of_another_push_is_taken_over_only_where_asked_for_and_what_is_whole_never_is(
    hub, run, tmp_path
):
    hub.fail("POST", "/commit/", Fault(do="pass"), 403)
    with pytest.raises(PublishError):
        publish(run, REPO, "v1", **FAST)
    assert set(hub.files(HELD, "v1")) == {"README.md"}
    before, other = state(hub), make_run(tmp_path / "other")
    (other / "metrics.json").write_text('{"ndcg@10": 0.9}')
    with pytest.raises(FileExistsError):
        publish(other, REPO, "v1", **FAST)
    assert state(hub) == before
    publish(other, REPO, "v1", takes_over=True, **FAST)
    assert hub.files(HELD, "v1") == delivered(other)
    before = state(hub)
    with pytest.raises(FileExistsError):
        publish(run, REPO, "v1", takes_over=True, **FAST)
    assert state(hub) == before


def test_a_killed_process_leaves_a_push_that_goes_on(hub, tmp_path):
    run = make_run(tmp_path / "run", WEIGHTS)
    hub.fail("PUT", "storage", Fault(do="stall"))
    process = start_child(run, revision="v1", timeout=30)
    limit = time.monotonic() + 30
    while not hub.count("PUT", "storage") and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "run.json" not in hub.files(HELD, "v1")
    result, _, err = child(run, revision="v1")
    assert result, err
    assert hub.files(HELD, "v1") == delivered(run)


def test_an_empty_revision_left_before_the_first_commit_goes_on(hub, run):
    hub.fail("GET", "/commits/v1", 403)
    with pytest.raises(PublishError):
        publish(run, REPO, "v1", **FAST)
    assert hub.files(HELD, "v1") == {}
    publish(run, REPO, "v1", **FAST)
    assert hub.files(HELD, "v1") == delivered(run)


@pytest.mark.parametrize("status", [404, 500])
def test_with_xet_a_failing_token_endpoint_is_tried_again_and_then_explained(hub, tmp_path, status):
    run = make_run(tmp_path / "run", WEIGHTS)
    hub.fail("GET", "xet-write-token", status, forever=True)
    result, out, err = child(run, xet=True, revision="v1")
    assert result is None
    last = err.strip().splitlines()[-1]
    assert "PublishError" in last
    assert "uploading model.safetensors" in last
    assert "failed 2 times" in last
    assert str(status) in last
    assert "HF_HUB_DISABLE_XET=1" in last
    assert hub.count("GET", "xet-write-token") >= 2
    assert TOKEN not in out + err
    if status == 404:  # the advice works, and goes on where this stopped
        assert child(run, revision="v1")[0]
        assert hub.files(HELD, "v1") == delivered(run)


# Secrets.

ECHO = b'{"error": "who sent {authorization}?"}'


@pytest.mark.parametrize("status", [500, 403, 400, 401])
def test_the_token_is_in_no_exception_log_or_output(hub, run, caplog, capfd, status):
    hub.fail("POST", "/preupload/", Fault(status=status, body=ECHO), forever=True)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PublishError) as caught:
        publish(run, REPO, "v1", retries=2, **FAST)
    outcome = publish_with_outcome(run, REPO, revision="v1", retries=1, **FAST)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert "who sent" in shown, "the server's words are told"
    assert TOKEN not in shown + repr(caught.value) + outcome.error


def test_the_token_is_in_no_output_of_a_child_with_every_log_on(hub, tmp_path):
    run = make_run(tmp_path / "run", WEIGHTS)
    hub.fail("PUT", "storage", Fault(status=500, body=ECHO))
    hub.fail("POST", "objects/batch", Fault(status=403, body=ECHO))
    result, out, err = child(run, revision="v1", debug=True)
    assert result is None
    assert "who sent" in err
    assert TOKEN not in out + err
    assert "secretABC" not in out + err


def test_scrub_hides_tokens_and_signed_queries():
    text = f"Bearer abc.def {TOKEN} hf_AbCdEfGhIjKl my-own https://s3.aws/x?X-Amz-Signature=1&y=2 ok?"
    clean = scrub(text, "my-own")
    assert clean == "Bearer *** hf_*** hf_*** *** https://s3.aws/x ok?"
    assert scrub("no secrets", None, "") == "no secrets"


def test_the_token_is_not_in_the_callers_repr():
    assert TOKEN not in repr(client.HubCaller("http://127.0.0.1:1", TOKEN, Retry()))


# Before the run.

QUICK = Retry(retries=1, base_delay=0.01, timeout=2.0)


def test_preflight_passes_and_writes_nothing(hub):
    assert preflight(REPO, "v1", retry=QUICK) == "tester"
    hub.add_repo(HELD, files={"a": b"b"})
    assert preflight(REPO, "v1", TOKEN, retry=QUICK) == "tester"
    assert {method for method, _ in hub.requests} == {"GET"}


def test_preflight_outlives_a_passing_fault(hub):
    hub.fail("GET", "whoami", 503)
    hub.fail("GET", "/planner$", Fault(do="reset"))
    assert preflight(REPO, retry=QUICK) == "tester"


@pytest.mark.parametrize(
    ("repo_id", "revision", "words"),
    [
        ("planner", None, "namespace/name"),
        ("a/b/c", None, "malformed"),
        ("tester/bad--name", None, "malformed"),
        ("tester/../x", None, "malformed"),
        ("", None, "malformed"),
        (REPO, "two words", "branch name"),
        (REPO, "a..b", "branch name"),
        (REPO, "refs/pr/1", "branch name"),
    ],
)
def test_preflight_knows_malformed_names_without_asking(hub, repo_id, revision, words):
    with pytest.raises(ValueError, match=words):
        preflight(repo_id, revision, retry=QUICK)
    assert hub.requests == []


def test_good_branch_names_pass():
    for name in ("run-0123456789ab", "v1.0", "seed/3", "a_b"):
        check_revision(name)
    for name in ("", "/a", "a/", "a.lock", ".a", "a/.b", "-a", "a~1", "HEAD", "x" * 201, "a\n"):
        with pytest.raises(ValueError, match="branch name"):
            check_revision(name)


def test_preflight_says_what_is_missing(hub, monkeypatch):
    def refused(words, *arguments, **options):
        with pytest.raises(PublishError, match=words) as caught:
            preflight(*(arguments or (REPO, "v1")), retry=QUICK, **options)
        assert "cannot work" in str(caught.value)
        assert "recipes/publish.py" in str(caught.value)

    refused("refused the token", REPO, "v1", "hf_wrongwrongwrong")
    refused("cannot create it in a foreign namespace", "strangers/planner")
    hub.role = "read"
    refused("may only read")
    hub.role = "fineGrained"
    hub.permissions = ["repo.content.read"]
    refused("may only read")
    hub.permissions = ["repo.content.read", "repo.write"]
    assert preflight(REPO, retry=QUICK) == "tester"
    hub.role = "write"
    hub.add_repo(HELD, private=False)
    refused("is public")
    assert preflight(REPO, private=False, retry=QUICK) == "tester"
    hub.kill()
    refused("asking whose the token is failed 2 times.*[Rr]efused")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    refused("no access token")


def test_preflight_refuses_a_revision_that_is_taken(hub, run):
    publish(run, REPO, "v1", **FAST)
    with pytest.raises(FileExistsError, match="v1"):
        preflight(REPO, "v1", retry=QUICK)
    assert preflight(REPO, "v2", retry=QUICK) == "tester"


def test_preflight_knows_that_the_client_was_told_to_stay_offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE"):
        preflight(REPO, retry=QUICK)
    assert hub.requests == []


def test_an_endpoint_that_is_no_address_is_named(monkeypatch, run):
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(ValueError, match=r"HF_ENDPOINT 'huggingface\.co'"):
        publish(run, REPO, token="hf_xxxxxxxxxx")


# At the end of a run.


def test_a_failed_push_keeps_the_run_and_ends_with_status_1_at_the_end(hub, run, capsys):
    before = delivered(run)
    hub.kill()
    outcome = publish_with_outcome(run, REPO, revision="v1", retries=0, **FAST)
    assert outcome.result is None
    assert "NOT PUBLISHED" in capsys.readouterr().out
    assert delivered(run) == before
    with pytest.raises(SystemExit) as caught:
        outcome.exit_if_failed()
    assert "kept but not published" in str(caught.value.code)
    assert TOKEN not in str(caught.value.code)

    hub.revive()
    outcome = publish_with_outcome(run, REPO, revision="v1", **FAST)
    outcome.exit_if_failed()
    assert hub.url in capsys.readouterr().out
    assert hub.files(HELD, "v1") == before


def test_an_outcome_takes_bad_names_and_folders_for_failures_too(hub, run):
    assert "namespace" in publish_with_outcome(run, "planner").error
    assert "malformed" in publish_with_outcome(run, None).error
    assert "run.json" in publish_with_outcome(run / "sid_table", REPO).error
    assert publish_with_outcome(run, None, enabled=False).error is None
    assert hub.requests == []
