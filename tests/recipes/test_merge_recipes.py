"""recipes/merge_report.py and merge_deliver.py: from a sweep to a report, a checkpoint, and branches at the Hub.

mergekit runs in this process here; that it runs in one of its own is tests/merging/test_deliver.py's to show.
"""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import recllm.merging.deliver as deliver_module
from recllm.merging.checkpoint import Weights
from recllm.merging.engine import MergeEngine
from recllm.merging.space import Point
from recllm.provenance import load_run
from recllm.training.arguments import parse

ROOT = Path(__file__).resolve().parents[2]
for folder in ("merging", "hub"):
    sys.path.insert(0, str(ROOT / "tests" / folder))
from fake_hub import TOKEN, FakeHub, Fault  # noqa: E402
from sweeps import constant, write  # noqa: E402
from worlds import family  # noqa: E402

DIRECT, THINKING = Point.of("linear", strength=0.0), Point.of("linear", strength=1.0)
HALF, TIES, BAD = Point.of("linear", strength=0.5), Point.of("ties", strength=0.7, density=0.5), Point.of("karcher")
#           accuracy, tokens: the front is DIRECT, HALF, TIES
TABLE = {DIRECT: (0.4, 5), HALF: (0.6, 20), TIES: (0.9, 50), THINKING: (0.8, 90), BAD: (0.3, 70)}
FRONT = (DIRECT, HALF, TIES)
HELD = "models/tester/merged"


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folders = family(tmp_path_factory.mktemp("parents"))
    for role, licence in (("direct", "mit"), ("thinking", "llama3.1"), ("base", "apache-2.0")):
        (folders[role] / "README.md").write_text(f"---\nlicense: {licence}\n---\n# {role}\n")
    return folders


@pytest.fixture(scope="module")
def sweep(parents, tmp_path_factory):
    accuracy, tokens = ({point: row[i] for point, row in TABLE.items()} for i in range(2))
    folder = tmp_path_factory.mktemp("made") / "sweep"
    return write(folder, TABLE, constant(accuracy, tokens, 40), parents)


@pytest.fixture
def merges(monkeypatch):
    """mergekit in this process; the list of what it was asked for."""
    from recllm.merging.write import write as merge

    asked = []

    def run(command, **_):
        config, folder, *seed = command[3:]
        asked.append(Path(config).read_text(encoding="utf-8").splitlines()[0])
        merge(Path(config), Path(folder), int(seed[0]) if seed else None)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(deliver_module, "subprocess", SimpleNamespace(run=run))
    return asked


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with FakeHub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture(scope="module")
def recipe():
    scripts = {name: runpy.run_path(str(ROOT / "recipes" / f"{name}.py")) for name in ("merge_report", "merge_deliver")}

    def run(name: str, *argv: str) -> None:
        scripts[name]["main"](*parse(scripts[name]["Arguments"], argv=list(map(str, argv))))

    run.arguments = {name: script["Arguments"] for name, script in scripts.items()}
    return run


def deliver(recipe, sweep, folder, *argv):
    recipe("merge_deliver", "--sweep", sweep, "--output_dir", folder, *argv)
    return folder


def config(name: str) -> str:
    return str(ROOT / "recipes" / "configs" / name / "smoke.yaml")


def assert_is_point(folder: Path, point: Point, parents) -> None:
    engine = MergeEngine({role: Weights(path) for role, path in parents.items()})
    written, expected = Weights(folder), dict(engine.tensors(point))
    assert set(written) == set(expected)
    assert all(torch.equal(written.tensor(name), tensor) for name, tensor in expected.items())


def test_a_report_of_a_sweep_and_of_a_table(recipe, sweep, tmp_path, capsys):
    recipe("merge_report", "--config", config("merge_report"), "--sweep", sweep, "--output_dir", tmp_path / "report")
    shown = capsys.readouterr().out
    assert "at most 20 tokens" in shown
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (metrics["front"], metrics["budget_60/key"]) == (3, TIES.key)
    assert (metrics["over_thinking/improve"], metrics["over_direct/improve"]) == (1, 0)
    assert metrics["divergence/all/sigma"] > 0
    assert load_run(tmp_path / "report")["inputs"].keys() == {"sweep"}
    written = (tmp_path / "report" / "report.md").stat().st_mtime_ns
    recipe("merge_report", "--config", config("merge_report"), "--sweep", sweep, "--output_dir", tmp_path / "report")
    assert (tmp_path / "report" / "report.md").stat().st_mtime_ns == written
    assert "nothing to do" in capsys.readouterr().out

    table = tmp_path / "report" / "results.csv"
    recipe("merge_report", "--table", table, "--output_dir", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (again["front"], again["hypervolume"]) == (3, pytest.approx(metrics["hypervolume"]))
    assert (tmp_path / "again" / "curve.png").is_file()


def test_the_chosen_point_is_a_checkpoint_with_its_card(recipe, sweep, parents, merges, tmp_path):
    folder = deliver(recipe, sweep, tmp_path / "chosen", "--config", config("merge_deliver"))
    assert_is_point(folder, TIES, parents)
    record, card = load_run(folder), (folder / "README.md").read_text()
    fields = yaml.safe_load(card.split("---")[1])
    assert fields["license"] == "llama3.1"
    assert {"merge", "mergekit", "recllm"} <= set(fields["tags"])
    assert fields["library_name"] == "transformers"
    assert "![Accuracy against tokens" in card and (folder / "curve.png").stat().st_size > 10_000
    assert "(terms of use), more restrictive than mit of" in card.replace("\\", "")
    for role, licence in (("direct", "mit"), ("thinking", "llama3.1"), ("base", "apache-2.0")):
        name = f"./{role}/{role}"
        assert f"| `{role}` | `{name}` | `{licence}` |" in card
    # The recipe in the card is the one that was run, with the parents' names for paths, and so is the file.
    shown = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert shown == yaml.safe_load((folder / "mergekit_config.yml").read_text())
    assert shown["merge_method"] == "ties"
    assert [model["model"].split("/")[-1] for model in shown["models"]] == ["direct", "thinking"]
    assert shown["parameters"]["density"] == 0.5
    for file in ("README.md", "mergekit_config.yml", "config.json"):
        assert str(tmp_path.parent) not in (folder / file).read_text(), file
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert metrics["held_out/n"] == 20
    assert record["merge"]["point"]["key"] == TIES.key
    assert "chosen on one half of the questions and read on the other" in record["merge"]["why"]
    assert merges == [f"# {TIES.label} ({TIES.key})"]

    deliver(recipe, sweep, folder, "--config", config("merge_deliver"))
    assert len(merges) == 1
    # Killed after the merge: the card is written again, the merge is not.
    (folder / "run.json").unlink()
    (folder / "README.md").unlink()
    deliver(recipe, sweep, folder, "--config", config("merge_deliver"))
    assert len(merges) == 1
    assert load_run(folder)["fingerprint"] == record["fingerprint"]
    # Another point in the same folder: nothing of the first is left.
    deliver(recipe, sweep, folder, "--key", HALF.key[:8])
    assert_is_point(folder, HALF, parents)
    assert load_run(folder)["merge"]["why"] == "asked for by its key"
    assert len(merges) == 2
    assert "base" not in [entry["role"] for entry in load_run(folder)["merge"]["parents"]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say which point"),
        (["--best", "true", "--budget", "20"], "say which point"),
        (["--budget", "3"], "no point has at most 3 tokens; the shortest has 5"),
        (["--key", "ffff"], "0 points with the key 'ffff'"),
        (["--best", "true", "--push_to_hub", "true"], "push_to_hub needs hub_model_id"),
    ],
)
def test_what_cannot_be_delivered_is_said(recipe, sweep, merges, tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        deliver(recipe, sweep, tmp_path / "out", *argv)
    assert merges == []


def test_other_parents_than_the_swept_ones_are_refused_and_moved_ones_are_taken(recipe, merges, tmp_path):
    folders = family(tmp_path / "parents")
    accuracy, tokens = ({point: row[i] for point, row in TABLE.items()} for i in range(2))
    folder = write(tmp_path / "sweep", TABLE, constant(accuracy, tokens, 40), folders)
    moved = tmp_path / "moved"
    folders["thinking"].rename(moved)
    with pytest.raises(ValueError, match=r"the thinking parent of the sweep is not there.*--thinking PATH"):
        deliver(recipe, folder, tmp_path / "out", "--key", HALF.key)
    with pytest.raises(ValueError, match=r"has the fingerprint .* was swept"):
        deliver(recipe, folder, tmp_path / "out", "--key", HALF.key, "--thinking", str(folders["direct"]))
    assert merges == []
    deliver(recipe, folder, tmp_path / "out", "--key", HALF.key, "--thinking", str(moved))
    assert_is_point(tmp_path / "out", HALF, {**folders, "thinking": moved})


def test_only_a_parent_that_the_sweep_had_from_the_hub_is_one_of_the_hub(recipe, merges, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name, licence in (("one/final", "gpl-3.0"), ("two/final", "gpl-3.0"), ("tester/thinking", "mit")):
        hub.add_repo(f"models/{name}", files={"README.md": f"---\nlicense: {licence}\n---\n".encode()})
    made = family(tmp_path / "parents")
    folders = {"direct": Path("one/final"), "thinking": Path("two/final")}
    for role, folder in folders.items():  # two relative folders, called as a stranger's repositories are
        folder.parent.mkdir()
        made[role].rename(folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    accuracy, tokens = ({point: row[i] for point, row in TABLE.items()} for i in range(2))
    swept = write(tmp_path / "sweep", TABLE, constant(accuracy, tokens, 40), folders)

    def card(output: str) -> tuple[dict, list[str]]:
        text = (deliver(recipe, swept, tmp_path / output, "--key", HALF.key) / "README.md").read_text()
        recipe_text = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
        return yaml.safe_load(text.split("---")[1]), [model["model"] for model in recipe_text["models"]]

    fields, models = card("local")
    assert "base_model" not in fields
    assert fields["license"] == "apache-2.0"
    assert models == ["./direct/final", "./thinking/final"]
    assert not [path for _, path in hub.requests if "final" in path]

    content = json.loads((swept / "sweep.json").read_text())
    content["parents"]["thinking"]["hub_id"] = "tester/thinking@main"
    content["parents"]["direct"]["hub_id"] = None
    (swept / "sweep.json").write_text(json.dumps(content))
    fields, models = card("hub")
    assert fields["base_model"] == ["tester/thinking"]
    assert models == ["./direct/final", "tester/thinking@main"]
    assert load_run(tmp_path / "hub")["merge"]["parents"][1]["licence"] == "mit"


def test_a_chosen_point_arrives_at_the_hub(recipe, sweep, merges, hub, tmp_path, capsys):
    push = ["--push_to_hub", "true", "--hub_model_id", "tester/merged", "--hub_revision", "v1", "--retries", "0"]
    hub.fail("POST", "lfs/objects/batch", 403)
    with pytest.raises(SystemExit, match="kept but not published"):
        deliver(recipe, sweep, tmp_path / "out", "--key", HALF.key, *push)
    assert load_run(tmp_path / "out"), "the run is complete all the same"
    deliver(recipe, sweep, tmp_path / "out", "--key", HALF.key, *push)
    assert len(merges) == 1
    files = hub.files(HELD, "v1")
    local = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert set(files) == local >= {"README.md", "model.safetensors", "curve.png", "point.json", "run.json"}
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hub.repos[HELD].private
    assert "published" in capsys.readouterr().out


def branches(hub) -> dict[str, list[str]]:
    return {name: [commit.oid for commit in history] for name, history in hub.repos[HELD].branches.items()}


def test_a_family_is_a_branch_each_and_goes_on_where_it_stopped(recipe, sweep, parents, merges, hub, tmp_path):
    argv = ["--family", "true", "--push_to_hub", "true", "--hub_model_id", "tester/merged", "--retries", "0"]
    # The second point's weights do not get through.
    hub.fail("POST", "lfs/objects/batch", Fault(do="pass"), Fault(status=403))
    with pytest.raises(SystemExit, match="not published"):
        deliver(recipe, sweep, tmp_path / "out", *argv)
    assert len(merges) == 2
    assert load_run(tmp_path / "out") is None
    before = branches(hub)
    # The second is made again, at another time: its branch has the beginning of a push of another card.
    (begun,) = [name for name, commits in before.items() if len(commits) == 2]
    shutil.rmtree(tmp_path / "out" / "points" / begun)

    deliver(recipe, sweep, tmp_path / "out", *argv)
    assert len(merges) == 4, "the second was gone, the first is up"
    after = branches(hub)
    assert len(after) == 4
    done = [name for name, commits in before.items() if name != "main" and len(commits) == 3]
    assert len(done) == 1 and after[done[0]] == before[done[0]]
    names = {name.rsplit("-", 1)[0]: name for name in after if name != "main"}
    assert set(names) == {"linear-0", "linear-0.5", "ties-0.7"}
    for point, name in zip(FRONT, ("linear-0", "linear-0.5", "ties-0.7"), strict=True):
        files = hub.files(HELD, names[name])
        assert json.loads(files["point.json"])["key"] == point.key
        assert {"README.md", "model.safetensors", "curve.png", "run.json", "tokenizer.json"} <= set(files)
        shown = json.loads(files["README.md"].decode().split("```json")[1].split("```")[0])
        assert shown == {"sweep": "sweep", "key": point.key, "output_dir": names[name]}
        recipe.arguments["merge_deliver"](**shown)  # the card's command takes it
    page = hub.files(HELD, "main")
    assert set(page) == {"README.md", "curve.png", "curve.svg"}
    text = page["README.md"].decode()
    assert [text.index(f"`{names[name]}`") for name in ("linear-0", "linear-0.5", "ties-0.7")] == sorted(
        text.index(f"`{name}`") for name in names.values()
    )
    assert "| `thinking` |" not in text and "| thinking | " in text
    assert not list((tmp_path / "out" / "points").iterdir()), "pushed folders are not kept"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"points": 3, "up_before": 1}

    # From a folder that knows nothing: nothing is merged, nothing is sent but the question what is up.
    sent = hub.count("POST", "commit|lfs|branch")
    deliver(recipe, sweep, tmp_path / "elsewhere", *argv)
    assert len(merges) == 4
    assert branches(hub) == after
    assert hub.count("POST", "commit|lfs|branch") == sent


def test_a_family_leaves_a_foreign_main_alone(recipe, sweep, merges, hub, tmp_path):
    hub.add_repo(HELD, files={"README.md": b"mine"})
    argv = ["--family", "true", "--push_to_hub", "true", "--hub_model_id", "tester/merged", "--keep", "true"]
    deliver(recipe, sweep, tmp_path / "out", *argv)
    assert hub.files(HELD, "main") == {"README.md": b"mine"}
    lists = [name for name in hub.repos[HELD].branches if name.startswith("family-")]
    assert len(lists) == 1
    assert b"A family of merges" in hub.files(HELD, lists[0])["README.md"]
    assert len(list((tmp_path / "out" / "points").iterdir())) == 3


def test_a_hub_that_cannot_work_is_told_before_anything_is_merged(recipe, sweep, merges, hub, tmp_path):
    hub.role = "read"
    with pytest.raises(Exception, match="the token may only read"):
        deliver(recipe, sweep, tmp_path / "out", "--family", "true", "--push_to_hub", "true", "--hub_model_id", "a/b")
    assert merges == []
    assert not (tmp_path / "out").exists()


def test_the_scripts_answer_for_help():
    command = [sys.executable, str(ROOT / "recipes" / "merge_deliver.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--family" in done.stdout
