"""The harness as an evaluator: a clear error without the package; the log of lm-eval 0.4 becomes samples."""

import importlib.util
import sys
from types import ModuleType

import pytest

from recllm.evaluation.lm_harness import LmEvalOptions, lm_eval_evaluator, pick_rows
from recllm.training.tiny_lm import train_tokenizer


def row(doc_id, text, value, name="strict-match"):
    return {
        **{"doc_id": doc_id, "doc": {}, "target": "1", "resps": [[text]], "filtered_resps": ["1"]},
        **{"filter": name, "metrics": ["exact_match"], "exact_match": value},
    }


@pytest.fixture
def harness(monkeypatch):
    """A package in lm-eval's place that logs these rows and notes how it was called."""
    calls = []

    def install(*runs):
        package, models, hugging = ModuleType("lm_eval"), ModuleType("lm_eval.models"), ModuleType("huggingface")

        def simple_evaluate(**settings):
            calls.append(settings)
            return {"samples": {"gsm8k": runs[len(calls) - 1]}}

        package.simple_evaluate, hugging.HFLM = simple_evaluate, lambda **parts: parts
        monkeypatch.setitem(sys.modules, "lm_eval", package)
        monkeypatch.setitem(sys.modules, "lm_eval.models", models)
        monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", hugging)
        return calls

    return install


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_package_the_remedy_is_named():
    with pytest.raises(ValueError, match=r"pip install 'lm-eval\[hf\]"):
        lm_eval_evaluator({"task": "gsm8k"})


def test_the_log_becomes_samples(harness):
    tokenizer = train_tokenizer(["a b"], 256)
    first = [row(1, "<think>ab</think>7", 0.0), row(0, "1", 1.0), row(0, "1", 0.0, "flexible-extract")]
    first.append(row(1, "x", 1.0, "flexible-extract"))
    second = [row(0, "abc", 0.0), row(1, "", 1.0), *first[2:]]
    calls = harness(first, second)
    options = {"task": "gsm8k", "filter": "strict-match", "samples": 2, "questions": 2, "seed": 7, "shots": 0}
    samples = lm_eval_evaluator(options)("the model", tokenizer)
    assert samples.value_QS.tolist() == [[1, 0], [0, 1]]
    assert samples.tokens_QS.tolist() == [[2, 4], [6, 1]] and samples.thinks_QS.tolist() == [[0, 0], [1, 0]]
    assert len({call["torch_random_seed"] for call in calls}) == 2 and calls[0]["limit"] == 2
    assert calls[0]["gen_kwargs"] == "do_sample=True,temperature=0.6,top_p=0.95,max_gen_toks=2048"
    assert calls[0]["model"] == {"pretrained": "the model", "tokenizer": tokenizer, "batch_size": 8}


def test_no_two_runs_share_a_seed_and_what_was_cut_off_has_no_end(harness):
    calls = harness([row(0, "a b c d", 1.0)], *[[row(0, "1", 1.0)]] * 5)
    tokenizer, options = train_tokenizer(["a b c"], 256), {"task": "gsm8k", "samples": 2}
    whole = len(tokenizer("a b c d", add_special_tokens=False)["input_ids"])
    [tokens] = lm_eval_evaluator({**options, "max_new_tokens": whole})(None, tokenizer).tokens_QS.tolist()
    assert tokens == [whole, 2]
    for seed in (0, 1):
        lm_eval_evaluator({**options, "seed": seed})(None, tokenizer)
    assert len({call["torch_random_seed"] for call in calls[2:]}) == 4


def test_greedy_does_not_sample(harness):
    calls = harness([row(0, "1", 1.0)])
    lm_eval_evaluator({"task": "gsm8k", "temperature": 0})(None, train_tokenizer(["a"], 256))
    assert calls[0]["gen_kwargs"].startswith("do_sample=False,max")


def test_what_the_log_lacks_is_named():
    rows = [row(0, "1", 1.0), row(0, "1", 1.0, "flexible-extract")]
    with pytest.raises(ValueError, match="flexible-extract, strict-match; got None"):
        pick_rows(rows, LmEvalOptions("gsm8k"))
    with pytest.raises(ValueError, match="got 'strict'"):
        pick_rows(rows, LmEvalOptions("gsm8k", filter="strict"))
    with pytest.raises(ValueError, match="no metric 'acc'; it has exact_match"):
        pick_rows(rows[:1], LmEvalOptions("gsm8k", metric="acc"))
    with pytest.raises(ValueError, match="no document"):
        pick_rows([], LmEvalOptions("gsm8k"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "task is missing"),
        ({"task": "gsm8k", "taskk": 1}, "did you mean task"),
        ({"task": 5}, "task must be of type str"),
        ({"task": "gsm8k", "questions": 0}, "questions"),
        ({"task": "gsm8k", "top_p": 0}, "top_p"),
        ({"task": "gsm8k", "shots": -1}, "shots"),
    ],
)
def test_bad_options_are_named(harness, options, words):
    harness()
    with pytest.raises(ValueError, match=words):
        lm_eval_evaluator(options)


def test_the_fingerprint_knows_what_may_change_a_result(harness):
    harness()
    mark = lm_eval_evaluator({"task": "gsm8k"}).fingerprint
    for change in (
        {"batch_size": 2},
        {"questions": 5},
        {"metric": "acc"},
        {"temperature": 0.0},
        {"samples": 2},
        {"shots": 1},
    ):
        assert lm_eval_evaluator({"task": "gsm8k", **change}).fingerprint != mark
