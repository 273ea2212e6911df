"""The arithmetic world in one chain: chats, a small model without any data set, two parents, and what they score.

The scripts run in this process, because importing TRL takes seconds.
"""

import runpy
from collections import Counter
from pathlib import Path

import pytest
import yaml
from chains import ROOT, metrics, run_stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from recllm.evaluation.arithmetic import ArithmeticWorld
from recllm.evaluation.maths import ArithmeticOptions, arithmetic_evaluator
from recllm.provenance import load_run
from recllm.training.arguments import parse
from recllm.training.sft import load_chats

# Stage: script, smoke config, inputs by argument, further words.
CHAIN = {
    "chats": ("data_prep/arithmetic_world.py", "arithmetic_world/smoke", {}, ()),
    "direct_chats": ("data_prep/arithmetic_world.py", "arithmetic_world/smoke", {}, ("--thinking=0", "--seed=1")),
    "untrained": (
        *("recipes/init_quickstart_lm.py", "init_quickstart_lm/smoke", {"chats": "chats"}),
        ("--single_digits=true",),
    ),
    "base": ("recipes/sft.py", "sft/smoke", {"model_name_or_path": "untrained", "chats": "chats"}, ()),
    "direct": ("recipes/sft.py", "sft/smoke", {"model_name_or_path": "base", "chats": "direct_chats"}, ()),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def start(root: Path, stage: str) -> None:
    *script, more = CHAIN[stage]
    run_stage(root, stage, *script, *more)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    for stage in CHAIN:
        start(root, stage)
    return root


def test_chats_of_both_styles_and_of_one(outputs):
    assert metrics(outputs / "chats") == {"rows": 300, "rows/direct": 150, "rows/thinking": 150}
    assert metrics(outputs / "direct_chats") == {"rows": 300, "rows/direct": 300}
    rows = load_chats(outputs / "chats")
    assert rows.column_names == ["messages", "style", "operations"]
    assert {role for chat in rows["messages"] for role in (message["role"] for message in chat)} == {
        "user",
        "assistant",
    }
    asked = {chat[0]["content"] for chat in rows["messages"]}
    assert not asked & {chain.question for chain in ArithmeticWorld().questions(500, seed=0)}
    assert asked != {chat[0]["content"] for chat in load_chats(outputs / "direct_chats")["messages"]}
    assert sorted(Counter(rows["operations"])) == [2, 3, 4]


def test_the_tokenizer_reads_numbers_digit_by_digit(outputs):
    tokenizer = AutoTokenizer.from_pretrained(outputs / "untrained")
    chat = load_chats(outputs / "chats")[0]["messages"]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([token]) for token in ids]
    assert "".join(pieces) == text and {"user", "assistant"} <= set(pieces)
    assert all(sum(letter.isdigit() for letter in piece) <= 1 for piece in pieces)
    assert len(tokenizer("1234567890", add_special_tokens=False)["input_ids"]) == 10


def test_a_parent_can_be_asked_and_has_learned_its_style(outputs):
    tokenizer = AutoTokenizer.from_pretrained(outputs / "direct")
    model = AutoModelForCausalLM.from_pretrained(outputs / "direct")
    samples = arithmetic_evaluator({"questions": 8, "max_new_tokens": 6})(model, tokenizer)
    assert samples.value_QS.shape == (8, 2) and samples.tokens_QS.max() <= 6
    assert load_run(outputs / "direct")["recipe"] == "sft"


def test_a_model_needs_some_text_to_learn_from(tmp_path):
    scope = runpy.run_path(str(ROOT / "recipes/init_quickstart_lm.py"))
    with pytest.raises(ValueError, match="data set, or of chats"):
        scope["main"](*parse(scope["Arguments"], argv=[f"--output_dir={tmp_path}"]))


def test_the_sweep_asks_the_world_that_the_parents_were_taught():
    """Evaluator and data have defaults of their own: they must be of one world, in the pipelines' configs, too."""
    scope = runpy.run_path(str(ROOT / "data_prep/arithmetic_world.py"))
    (taught,) = parse(scope["Arguments"], argv=["--output_dir=x"])
    asked = ArithmeticOptions()
    bounds = ("least", "most", "operand", "largest")
    assert [getattr(taught, name) for name in bounds] == [getattr(asked, name) for name in bounds]
    config = yaml.safe_load((ROOT / "recipes/configs/merge_sweep/quickstart.yaml").read_text())
    data = yaml.safe_load((ROOT / "recipes/configs/arithmetic_world/quickstart.yaml").read_text())
    assert not set(bounds) & (set(config.get("evaluator_options", {})) | set(data))


@pytest.mark.parametrize("name", ["thinking_spectrum", "thinking_spectrum_divergent"])
def test_the_sweeps_are_as_wide_as_they_claim(name):
    from recllm.merging.space import Space

    stages = yaml.safe_load((ROOT / f"recipes/pipelines/{name}.yaml").read_text())["stages"]
    (sweep,) = [stage for stage in stages if stage["script"] == "recipes/merge_sweep.py"]
    space = Space.of_entries(yaml.safe_load((ROOT / sweep["config"]).read_text())["grid"])
    assert len(space.points) >= 30 and len({point.method for point in space.points}) >= 5
