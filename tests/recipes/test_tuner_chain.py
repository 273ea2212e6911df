"""The tuner in one chain: surfaces, chats, small model, warm-up and GRPO, each with its smoke config."""

import runpy
from pathlib import Path

import pytest
from chains import ROOT, metrics, run_stage
from datasets import Dataset

from recllm.provenance import load_run

made = runpy.run_path(str(ROOT / "tests" / "tuning" / "made_surfaces.py"), run_name="made")
CHAIN = {
    "chats": ("data_prep/tuner_chats.py", "tuner_chats/smoke", {"surfaces": "surfaces"}, "--leave_out=three"),
    "base": ("recipes/init_quickstart_lm.py", "init_quickstart_lm/smoke", {"chats": "chats"}, "--max_length=1024"),
    "sft": ("recipes/sft.py", "sft/tuner_smoke", {"model_name_or_path": "base", "chats": "chats"}),
    "grpo": ("recipes/grpo_tuner.py", "grpo_tuner/smoke", {"model_name_or_path": "sft", "chats": "chats"}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def start(root: Path, stage: str) -> None:
    run_stage(root, stage, *CHAIN[stage])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    for place in range(3):
        made["write_made_surface"](root / "surfaces", place)
    for stage in CHAIN:
        start(root, stage)
    return root


def test_every_stage_left_a_complete_run(outputs):
    records = {stage: load_run(outputs / stage) for stage in CHAIN}
    assert all(records.values()), [stage for stage, record in records.items() if not record]
    assert metrics(outputs / "chats") == {"rows": 60, "situations": 60, "surfaces": 2}
    assert len(list((outputs / "chats" / "memories").glob("*/rules.jsonl"))) == 2


def test_the_tuner_is_graded_before_and_after_on_situations_that_it_was_not_trained_on(outputs):
    found = metrics(outputs / "grpo")
    assert found["steps"] == 3 and found["graded/prompts"] == 4 and found["prompts"] == 56
    for when in ("before", "after"):
        low, mean, high = (found[f"graded/{when}_reward{end}"] for end in ("_lo", "", "_hi"))
        # Two steps of warm-up teach no JSON: every reply is refused, and the reward says so.
        assert -1 <= low <= mean <= high <= 1
    assert -1 <= found["reward/first"] <= 1


def test_the_proposer_loads_it(outputs):
    from recllm.tuning.language.local_model import LocalModel

    rows = Dataset.load_from_disk(str(outputs / "chats"))
    assert set(rows.column_names) == {"messages", "space", "config", "masked", "tried", "worths"}
    assert LocalModel.load(outputs / "grpo", style="brief").style == "brief"


def test_a_second_start_does_nothing(outputs, capsys):
    before = (outputs / "grpo" / "run.json").stat().st_mtime_ns
    start(outputs, "grpo")
    assert "is complete, nothing to do" in capsys.readouterr().out
    assert (outputs / "grpo" / "run.json").stat().st_mtime_ns == before
