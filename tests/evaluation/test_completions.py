"""Completions: against transformers' own, against the sampled distribution, and independent of whatever runs beside."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, set_seed

from recllm.evaluation.completions import choose, complete

END, PAD, VOCABULARY = 1, 0, 24
TOKENIZER = SimpleNamespace(eos_token_id=END, pad_token_id=PAD)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "bos_token_id": None,
}


def make_model(kind: str = "qwen3", spread: float = 0.5):
    """Random weights so wide that the next token hangs on all tokens before it."""
    set_seed(3)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, initializer_range=spread)).eval()
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=spread)).eval()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def prompts():
    draw = np.random.default_rng(0)
    return [draw.integers(2, VOCABULARY, size=length).tolist() for length in (5, 1, 9, 3, 9, 2)]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_greedy_is_what_generate_writes(kind, prompts):
    model = make_model(kind)
    model.generation_config.eos_token_id = [END, 5, 6, 7, 8] if kind == "qwen3" else [END, 5]
    found = complete(model, TOKENIZER, prompts, samples=2, max_new_tokens=12, batch_size=4)
    lengths = set()
    for prompt, own in zip(prompts, found, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()[len(prompt) :]
        assert own == [expected, expected]
        lengths.add(len(expected))
    assert len(lengths) > 2 and max(lengths) == 12, "some end early, some are cut off"


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_completion_depends_on_nothing_beside_it(model, prompts, top_p):
    options = {"max_new_tokens": 12, "temperature": 1.2, "top_p": top_p, "seed": 7}
    expected = complete(model, TOKENIZER, prompts, samples=3, batch_size=64, **options)
    for batch_size in (1, 7):
        assert complete(model, TOKENIZER, prompts, samples=3, batch_size=batch_size, **options) == expected
    order = np.random.default_rng(1).permutation(len(prompts))
    shuffled = complete(model, TOKENIZER, [prompts[place] for place in order], samples=3, batch_size=9, **options)
    assert shuffled == [expected[place] for place in order]
    alone = complete(model, TOKENIZER, [prompts[2]], samples=3, **options)
    assert alone == [expected[2]]
    fewer = complete(model, TOKENIZER, prompts, samples=1, **options)
    assert fewer == [own[:1] for own in expected]
    shorter = complete(model, TOKENIZER, prompts, samples=3, **{**options, "max_new_tokens": 6})
    assert shorter == [[tokens[:6] for tokens in own] for own in expected]
    other = complete(model, TOKENIZER, prompts, samples=3, **{**options, "seed": 8})
    different = [one != two for a, b in zip(expected, other, strict=True) for one, two in zip(a, b, strict=True)]
    assert np.mean(different) > 0.8 and all(own[0] != own[1] for own in expected if len(own[0]) > 3)


def test_a_completion_ends_at_its_first_end_token(model, prompts):
    found = complete(model, TOKENIZER, prompts, samples=4, max_new_tokens=20, temperature=1.5)
    rows = [tokens for own in found for tokens in own]
    assert all(END not in tokens[:-1] and 1 <= len(tokens) <= 20 for tokens in rows)
    ended = [tokens[-1] == END for tokens in rows]
    assert np.mean(ended) > 0.2 and all(len(tokens) == 20 for tokens in rows if tokens[-1] != END)


def test_the_generation_config_may_name_more_ends(model, prompts):
    model.generation_config.eos_token_id = [END, 5, 6]
    try:
        found = complete(model, TOKENIZER, prompts, samples=4, max_new_tokens=20, temperature=1.5)
    finally:
        model.generation_config.eos_token_id = END
    rows = [tokens for own in found for tokens in own]
    assert {tokens[-1] for tokens in rows if len(tokens) < 20} > {END}
    assert all(not {END, 5, 6} & set(tokens[:-1]) for tokens in rows)


def test_samples_have_the_model_s_distribution(model):
    """Two tokens after one prompt: the joint distribution of 6,000 samples against the model's own probabilities."""
    prompt, draws = [4, 9, 2], 6000
    temperature = 2.0
    with torch.no_grad():
        first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(0)
        after = (model(torch.tensor([[*prompt, t] for t in range(VOCABULARY)])).logits[:, -1] / temperature).softmax(1)
    found = complete(model, TOKENIZER, [prompt], samples=draws, max_new_tokens=2, temperature=temperature)[0]
    counts = np.zeros((VOCABULARY, VOCABULARY))
    for tokens in found:
        counts[tokens[0], tokens[1] if len(tokens) > 1 else 0] += 1
    expected = (first[:, None] * after).numpy().astype(np.float64)
    expected[END] = 0
    expected[END, 0] = first[END]
    noise = 4.5 * np.sqrt(expected * (1 - expected) * draws) + 2
    assert (np.abs(counts - expected * draws) < noise).all() and expected.max() < 0.5


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.75, 0.9, 0.999, 1.0])
def test_choose_draws_the_nucleus_that_transformers_draws(top_p):
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits_RV = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * 3
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(0.7)(None, logits_RV)) if top_p < 1 else None
    share_RV = (logits_RV / 0.7 if warped is None else warped).softmax(1).numpy()
    grid = 4000
    uniform_G = (torch.arange(grid) + 0.5) / grid
    for row, share_V in zip(logits_RV, share_RV, strict=True):
        found_G = choose(row.expand(grid, -1), 0.7, top_p, uniform_G)
        counted_V = np.bincount(found_G.numpy(), minlength=40) / grid
        assert np.abs(counted_V - share_V).max() <= 1.01 / grid
    ends = choose(logits_RV, 0.7, top_p, torch.full((6,), 1.0))
    assert (share_RV[np.arange(6), ends] > 0).all(), "a number that rounds up to 1 still draws a possible token"


def test_temperature_0_takes_the_likeliest():
    assert choose(torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.9]]), 0.0, 1.0).tolist() == [1, 0]


def test_a_broken_model_is_told_of_and_does_not_stop_a_sweep(prompts):
    broken = make_model()
    broken.model.norm.weight.data[:] = math.nan
    with pytest.warns(UserWarning, match="not finite"):
        found = complete(broken, TOKENIZER, prompts[:3], samples=2, max_new_tokens=4, temperature=1.0)
    assert [[len(tokens) <= 4 for tokens in own] for own in found] == [[True, True]] * 3


def test_the_model_keeps_its_mode(prompts):
    model = make_model().train()
    complete(model, TOKENIZER, prompts[:1], max_new_tokens=1)
    assert model.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"prompts": [[3], []]}, "prompt 1 is empty"),
    ],
)
def test_bad_arguments_are_named(model, options, words):
    with pytest.raises(ValueError, match=words):
        complete(model, TOKENIZER, **{"prompts": [[3]], **options})


def test_no_prompts_no_completions(model):
    assert complete(model, TOKENIZER, [], samples=2) == []
