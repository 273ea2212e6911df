"""Living needs in one chain: city, sid table, chats, small model, warm-up and GRPO, each with its smoke config.

The scripts run in this process, because importing TRL takes seconds. The patterns are the planted ones.
"""

import json
import runpy
from pathlib import Path

import pytest
from chains import ROOT, metrics, run_stage
from datasets import Dataset

from recllm.needs.vocabulary import NeedsVocabulary
from recllm.provenance import load_run

write_patterns = runpy.run_path(str(ROOT / "tests" / "needs" / "need_worlds.py"), run_name="worlds")["write_patterns"]
# Stage: script, smoke config, inputs by argument.
CHAIN = {
    "dataset": ("data_prep/needs_world.py", "needs_world/smoke", {}),
    "sid_table": ("recipes/train_sid_tokenizer.py", "train_sid_tokenizer/smoke", {"dataset": "dataset"}),
    "chats": ("data_prep/need_chats.py", "need_chats/smoke", ("dataset", "patterns", "sid_table")),
    "base": ("recipes/init_quickstart_lm.py", "init_quickstart_lm/smoke", ("dataset", "chats")),
    "base_with_sids": (
        *("recipes/extend_vocab.py", "extend_vocab/smoke"),
        {"base_model": "base", "sid_table": "sid_table", "dataset": "dataset"},
    ),
    "sft": ("recipes/sft.py", "sft/needs_smoke", {"model_name_or_path": "base_with_sids", "chats": "chats"}),
    "grpo": (
        *("recipes/grpo_needs.py", "grpo_needs/smoke"),
        {"model_name_or_path": "sft", "dataset": "dataset", "patterns": "patterns"},
    ),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def start(root: Path, stage: str, *more: str) -> None:
    path, config, inputs = CHAIN[stage]
    inputs = inputs if isinstance(inputs, dict) else dict(zip(inputs, inputs, strict=True))
    run_stage(root, stage, path, config, inputs, *more)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    for stage in CHAIN:
        start(root, stage)
        if stage == "dataset":
            write_patterns(root / "patterns", root / "dataset")
    return root


def test_every_stage_left_a_complete_run(outputs):
    records = {stage: load_run(outputs / stage) for stage in CHAIN}
    assert all(records.values()), [stage for stage, record in records.items() if not record]
    assert records["grpo"]["inputs"]["dataset"] == records["dataset"]["fingerprint"]


def test_the_chats_are_of_all_stages_and_the_tokenizer_knows_their_words(outputs):
    from transformers import AutoTokenizer

    found = metrics(outputs / "chats")
    assert found["rows/service"] == 60 and found["rows/need"] == found["rows/category"] == 12
    rows = Dataset.load_from_disk(str(outputs / "chats"))
    said = "\n".join(row["messages"][1]["content"] for row in rows if row["stage"] == "need")
    known, other = (AutoTokenizer.from_pretrained(outputs / name) for name in ("base", "base_with_sids"))
    assert len(known.tokenize(said)) < 0.55 * len(said)
    assert len(other.tokenize(said)) == len(known.tokenize(said))


def test_the_vocabulary_travels_from_the_chats_to_the_expert(outputs):
    first = NeedsVocabulary.load(outputs / "chats")
    assert NeedsVocabulary.load(outputs / "sft") == NeedsVocabulary.load(outputs / "grpo") == first
    assert len(first.types) > 5 and len(first.services) == 120 and len(first.dataset) == 64


def test_the_expert_went_through_all_stages_and_is_delivered(outputs):
    folder, found = outputs / "grpo", metrics(outputs / "grpo")
    assert found["steps"] == 4
    assert found["promotion/category/round"] == 1 and found["promotion/service/round"] == 2
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["need", "category", "service", "service"]
    for when in ("before", "after"):
        assert found[f"validation/{when}_format"] == 1.0
        low, mean, high = (found[f"validation/{when}_reward{end}"] for end in ("_lo", "", "_hi"))
        assert 0 <= low <= mean <= high <= 1.1
    assert found["validation/graded_targets"] == 8
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "README.md", "curves.png"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "sid_table").is_dir() and not list(folder.glob("checkpoint-*"))


def test_the_ablations_and_the_second_model_run_on_the_same_folders(outputs, capsys):
    for stage, more in {
        "chats": ("--stages", "category", "service", "--all_events=true"),
        "grpo": ("--joint=true", "--semantic=false", "--max_steps=1"),
    }.items():
        root = outputs / "more"
        root.mkdir(exist_ok=True)
        for name in ("dataset", "patterns", "sid_table", "sft"):
            if not (root / name).exists():
                (root / name).symlink_to(outputs / name)
        start(root, stage, *more)
    assert set(Dataset.load_from_disk(str(outputs / "more" / "chats"))["stage"]) == {"category", "service"}
    assert metrics(outputs / "more" / "chats")["events"] > metrics(outputs / "chats")["events"]
    assert not [name for name in metrics(outputs / "more" / "grpo") if name.startswith("promotion")]


def test_a_second_start_does_nothing(outputs, capsys):
    before = (outputs / "grpo" / "run.json").stat().st_mtime_ns
    start(outputs, "grpo")
    assert "is complete, nothing to do" in capsys.readouterr().out
    assert (outputs / "grpo" / "run.json").stat().st_mtime_ns == before
