"""Evaluators of maths: what is right, what thinks, how long it is; GSM8K's files; options that are refused."""

import gzip
import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from tokenizers import AddedToken
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

from recllm.evaluation import maths
from recllm.evaluation.arithmetic import ArithmeticWorld
from recllm.evaluation.maths import arithmetic_evaluator, gsm8k_evaluator, plain_text, whole_number
from recllm.training.tiny_lm import train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
OPENED = PLAIN + "{% if add_generation_prompt %}<think>{% endif %}"
FEW = {"questions": 6, "samples": 2, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(["3+4=7 #### 12 the answer is"] * 20, 300, single_digits=True)
    made.chat_template = PLAIN
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=320, num_key_value_heads=2, head_dim=8, initializer_range=0.5, **sizes)
    config.eos_token_id = tokenizer.eos_token_id
    return Qwen3ForCausalLM(config)


@pytest.fixture
def says(monkeypatch, tokenizer):
    """Make every model complete the prompts with these texts; returns what was asked."""
    asked = {}

    def use(*texts):
        def complete(model, _, prompts, samples, *drawing):
            asked.update(prompts=[tokenizer.decode(prompt) for prompt in prompts], samples=samples, drawing=drawing)
            rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            return [rows for _ in prompts]

        monkeypatch.setattr(maths, "complete", complete)
        return asked

    return use


@pytest.fixture
def problems(tmp_path):
    """Write problems as GSM8K has them and give the path."""

    def write(rows, name="test.jsonl"):
        path = tmp_path / name
        if path.suffix == ".parquet":
            pl.DataFrame(rows).write_parquet(path)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return str(path)

    return write


def test_right_wrong_tokens_and_thoughts(says, tokenizer):
    evaluator = arithmetic_evaluator({"questions": 3, "samples": 5})
    right = str(evaluator.gold[0])
    end = tokenizer.eos_token
    asked = says(
        f"{right}{end}", f"<think>1+1=2 2*{right}</think>{right}{end}", f"<think>{right}", f"{right}1{end}", ""
    )
    samples = evaluator(None, tokenizer)
    assert samples.value_QS[0].tolist() == [1, 1, 0, 0, 0]
    assert samples.thinks_QS[0].tolist() == [False, True, True, False, False]
    digits = len(right)
    assert samples.tokens_QS[0].tolist() == [digits + 1, 2 + 8 + 2 * digits + 1, 1 + digits, digits + 2, 0]
    chain = ArithmeticWorld().questions(3, 0)[0]
    assert asked["prompts"][0] == f"{chain.question}\n" and asked["drawing"][:4] == (64, 0.6, 0.95, 0)
    hits = (samples.value_QS == 1) == (np.array([g == evaluator.gold[0] for g in evaluator.gold])[:, None])
    assert hits[:, 0].all(), "each question has its own answer"


def test_a_template_may_open_the_thought(says, tokenizer, monkeypatch):
    evaluator = arithmetic_evaluator({"questions": 1, "samples": 3})
    right = str(evaluator.gold[0])
    says(f"1+1=2</think>{right}", f"</think>{right}", right)
    monkeypatch.setattr(tokenizer, "chat_template", OPENED)
    samples = evaluator(None, tokenizer)
    assert samples.value_QS[0].tolist() == [1, 1, 0] and samples.thinks_QS[0].tolist() == [True, False, True]


def test_a_real_model_is_asked(model, tokenizer):
    evaluator = arithmetic_evaluator(FEW)
    samples = evaluator(model, tokenizer)
    assert samples.value_QS.shape == (6, 2) and (samples.tokens_QS >= 1).all() and (samples.tokens_QS <= 8).all()
    again = arithmetic_evaluator({**FEW, "batch_size": 3})
    assert again.fingerprint == evaluator.fingerprint
    assert (again(model, tokenizer).tokens_QS == samples.tokens_QS).all()
    reseeded = arithmetic_evaluator({**FEW, "seed": 1})
    assert reseeded.chats != evaluator.chats


@pytest.mark.parametrize(
    "change",
    [
        *({"questions": 7}, {"samples": 3}, {"max_new_tokens": 9}, {"temperature": 0.7}, {"top_p": 0.9}, {"seed": 1}),
        *({"largest": 10}, {"operand": 8}, {"least": 1}, {"most": 3}),
    ],
)
def test_whatever_may_change_a_result_changes_the_fingerprint(change):
    assert arithmetic_evaluator({**FEW, **change}).fingerprint != arithmetic_evaluator(FEW).fingerprint


def test_gsm8k_problems_in_every_layout(problems, says, tokenizer):
    rows = [
        {"question": " Two and two? ", "answer": "2+2=<<2+2=4>>4\n#### 4", "idx": 0},
        {"question": "A thousand?", "answer": "#### 1,000", "idx": 1},
        {"question": "Owed?", "answer": "He owes.\n#### -$2.50", "idx": 2},
    ]
    fingerprints = set()
    for name in ("test.jsonl", "test.jsonl.gz", "test.parquet"):
        evaluator = gsm8k_evaluator({"path": problems(rows, name), "samples": 2})
        assert evaluator.gold == [4, 1000, Fraction(-5, 2)] and evaluator.name == "gsm8k"
        fingerprints.add(evaluator.fingerprint)
    assert len(fingerprints) == 1, "a problem is a problem, however it is stored"
    asked = says("So <think>it is 5</think> The answer is $1,000.", "1000 is what I thought, but: \\boxed{4}")
    samples = evaluator(None, tokenizer)
    assert samples.value_QS.tolist() == [[0, 1], [1, 0], [0, 0]] and samples.thinks_QS[:, 0].all()
    assert asked["prompts"][0].startswith("Two and two?\nPlease reason") and asked["samples"] == 2
    fewer = gsm8k_evaluator({"path": problems(rows), "questions": 2, "seed": 5, "instruction": ""})
    texts = [chat[0]["content"] for chat in fewer.chats]
    assert len(texts) == 2 and texts == [t for t in ("Two and two?", "A thousand?", "Owed?") if t in texts]
    assert len(gsm8k_evaluator({"path": problems(rows), "questions": 99}).gold) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "x", "answer": "#### 1"}, {"question": "y", "answer": "no mark 5"}], "row 1"),
        ([{"question": "x", "answer": "#### none"}], "row 0"),
        ([{"question": " ", "answer": "#### 1"}], "row 0"),
        ([{"question": None, "answer": "#### 1"}], "row 0"),
        ([{"question": "x", "answer": None}], "row 0"),
        ([{"question": "x"}], "row 0"),
        ([], "no row"),
    ],
)
def test_a_row_that_is_no_problem_is_named(problems, rows, words):
    with pytest.raises(ValueError, match=words):
        gsm8k_evaluator({"path": problems(rows)})


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_text('{"question": "x", "answer": "#### 1"}\n{"question": "y", "ans')
    with pytest.raises(ValueError, match=r"torn\.jsonl, line 2"):
        gsm8k_evaluator({"path": str(path)})


def test_parquet_without_the_columns_is_named(problems):
    with pytest.raises(ValueError, match="no column answer"):
        gsm8k_evaluator({"path": problems([{"question": "x"}], "a.parquet")})


def test_a_missing_file_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("RECLLM_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="RECLLM_DATA"):
        gsm8k_evaluator({})
    monkeypatch.setenv("RECLLM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"gsm8k/test\.jsonl\.gz"):
        gsm8k_evaluator({})
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        gsm8k_evaluator({"path": str(tmp_path / "nothing.jsonl")})


def test_the_real_gsm8k(recllm_data):
    if not (recllm_data / "gsm8k" / "test.jsonl.gz").is_file():
        pytest.skip("RECLLM_DATA has no gsm8k")
    evaluator = gsm8k_evaluator({})
    assert len(evaluator.gold) == 1319 and evaluator.gold[:3] == [18, 3, 70000]
    assert all(number.denominator == 1 for number in evaluator.gold)


@pytest.mark.parametrize("factory", [arithmetic_evaluator, gsm8k_evaluator])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"question": 5}, "did you mean questions"),
        ({"zzz": 5}, "known: "),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": "two"}, "samples must be of type int"),
        ({"samples": True}, "samples must be of type int"),
        ({"samples": 2.0}, "samples must be of type int"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "finite"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"questions": 0}, "questions"),
        ({"max_new_tokens": None}, "max_new_tokens must be of type int"),
    ],
)
def test_bad_options_are_named(factory, options, words):
    with pytest.raises(ValueError, match=words):
        factory(options)


def test_a_world_without_so_many_questions_is_named():
    with pytest.raises(ValueError, match="hardly more"):
        arithmetic_evaluator({"questions": 500, "least": 1, "most": 1})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("12", 12), (" 12\n", 12), ("12 ", 12), ("007", 7)),
        *(("1 2", None), ("-1", None), ("12=12", None), ("", None), ("\u0663", None), ("9" * 50, None)),
    ],
)
def test_whole_number(text, number):
    assert whole_number(text) == number


def test_special_tokens_go_but_the_marks_of_a_thought_stay(tokenizer):
    text = "<|im_start|><think>3</think>4<|im_end|><|endoftext|>"
    assert plain_text(tokenizer, tokenizer(text)["input_ids"]) == "<think>3</think>4"
    contents = {0: "<eos>", 5: "<think>", 6: "</think>"}
    special = SimpleNamespace(
        added_tokens_decoder={place: AddedToken(text, special=True) for place, text in contents.items()},
        decode=lambda ids: " ".join(map(str, ids)),
    )
    assert plain_text(special, [0, 5, 3, 6, 4, 0]) == "5 3 6 4"
