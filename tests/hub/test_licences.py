"""What a merge may be passed on under: known pairs, unknown ones, and where a licence is read from."""

import json
import sys
from pathlib import Path

import pytest

from recllm.hub.licences import combined, group_of, licence_of
from recllm.provenance import RunRecord

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import TOKEN, FakeHub


@pytest.mark.parametrize(
    ("licence", "group"),
    [
        ("cc0-1.0", "public domain"),
        ("apache-2.0", "permissive"),
        ("mit", "permissive"),
        ("cc-by-4.0", "permissive"),
        ("gpl-3.0", "share alike"),
        ("agpl-3.0", "share alike"),
        ("cc-by-sa-4.0", "share alike"),
        ("llama3.1", "terms of use"),
        ("gemma", "terms of use"),
        ("cc-by-nc-4.0", "non-commercial or without derivatives"),
        ("cc-by-nc-sa-4.0", "non-commercial or without derivatives"),
        ("cc-by-nd-4.0", "non-commercial or without derivatives"),
        ("other", "unknown"),
        ("my-own", "unknown"),
        ("unknown", "unknown"),
    ],
)
def test_groups(licence, group):
    assert group_of(licence) == group


@pytest.mark.parametrize(
    ("one", "other", "name", "notes"),
    [
        ("mit", "mit", "mit", []),
        ("mit", "apache-2.0", "apache-2.0", ["The parents' licences differ (apache-2.0, mit)"]),
        (
            "mit",
            "gpl-3.0",
            "gpl-3.0",
            ["B is under gpl-3.0 (share alike), more restrictive than mit of A", "read"],
        ),
        ("gemma", "llama3", None, ["gemma and llama3 restricts what", "The parents' licences differ (gemma, llama3)"]),
        *(
            (one, other, None, [f"{one} and {other} restricts", f"The parents' licences differ ({one}, {other}): the"])
            for one, other in (
                ("cc-by-nc-4.0", "llama3"),
                ("gpl-3.0", "llama3"),
                ("cc-by-nc-4.0", "cc-by-sa-4.0"),
                ("agpl-3.0", "gpl-3.0"),
            )
        ),
        ("gpl-3.0", "gpl-3.0", "gpl-3.0", ["gpl-3.0 restricts"]),
        ("mit", "unknown", None, ["The licence of B is not known (unknown): ask"]),
        ("gpl-3.0", "foo", None, ["The licence of B is not known (foo): ask", "gpl-3.0 restricts"]),
    ],
)
def test_the_more_restrictive_licence_rules_and_is_told(one, other, name, notes):
    found = combined({"A": one, "B": other})
    assert found.name == name
    assert len(found.notes) == len(notes)
    for note, beginning in zip(found.notes, notes, strict=True):
        assert beginning in note
    assert combined({"B": other, "A": one}).name == name


def test_a_licence_is_read_from_the_card_else_from_the_record(tmp_path):
    record = RunRecord.start(tmp_path / "run", "sft", {"seed": 1})
    record.extra["assets"] = {"smollm2": {"kind": "model", "name": "smollm2", "licence": "Apache-2.0"}}
    record.finish({})
    assert licence_of(None, tmp_path / "run") == "apache-2.0"
    card = tmp_path / "run" / "README.md"
    for text, expected in {
        "---\nlicense: MIT\n---\n# x\n": "mit",
        "---\nlicense: other\n---\n": "apache-2.0",
        "---\nlicense:\n- mit\n- gpl\n---\n": "apache-2.0",
        "---\nlicense: 'ev[il](x)'\n---\n": "apache-2.0",
        "---\n: [\n---\n": "apache-2.0",
        "no front matter": "apache-2.0",
    }.items():
        card.write_text(text)
        assert licence_of(None, tmp_path / "run") == expected, text
    assert licence_of(None, tmp_path) == "unknown"
    # A parent that was made ready elsewhere: the first folder that states anything.
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert licence_of(None, tmp_path, tmp_path / "ready") == "gemma"


def test_the_card_of_a_hub_id_is_asked_and_no_hub_means_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    with FakeHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.add_repo("models/tester/model", files={"README.md": b"---\nlicense: gemma\n---\n"})
        hub.add_repo("models/tester/bare", files={"config.json": json.dumps({}).encode()})
        assert licence_of("tester/model", tmp_path) == "gemma"
        assert licence_of("tester/bare", tmp_path) == "unknown"
        assert licence_of("tester/nothing", tmp_path) == "unknown"
        monkeypatch.chdir(tmp_path)
        asked = len(hub.requests)
        assert licence_of(None, "tester/model") == "unknown", "a folder that is called like a stranger's repository"
        assert len(hub.requests) == asked
