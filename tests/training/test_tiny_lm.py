import json

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from recllm.data.catalog import Catalog
from recllm.training.tiny_lm import build_model, train_tokenizer, training_texts

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CATALOG = Catalog(
    pl.DataFrame(
        {
            "item_id": [0, 1, 2],
            "title": ["Am\u00e9lie (2001)", "Seven Samurai (1954)", ""],
            "categories": [["Comedy", "Romance"], ["Action"], []],
        },
        schema_overrides={"item_id": pl.Int32},
    )
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(training_texts(CATALOG), 320)


@pytest.fixture(scope="module")
def chatty():
    """A tokenizer of its own with the lean template. The import of TRL takes seconds."""
    from recllm.training.chat import set_chat_template

    tokenizer = train_tokenizer(training_texts(CATALOG, ['{"name": "retrieve", "arguments": {"k": 10}}']), 320)
    set_chat_template(tokenizer, "lean")
    return tokenizer


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_string_comes_back(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "  two  spaces , and a dot .",
        "tabs\tand\r\nlines\n\n",
        "e\u0301 is not \u00e9",
        "\U0001f3ac\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u4e03\u4eba\u306e\u4f8d \u0627\u0644\u0641\u064a\u0644\u0645",
        "\x00\x07\ufeff\u2028",
        "I 'm don 't <a_1><b_2>",
        "",
    ],
)
def test_difficult_strings_come_back_after_saving_too(tokenizer, tmp_path, text):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert encode(again, text) == encode(tokenizer, text) and again.decode(encode(again, text)) == text
    assert (again.padding_side, again.eos_token, again.pad_token) == ("left", "<|im_end|>", "<|endoftext|>")


def test_markers_are_regular_tokens_and_turn_ends_are_special(tokenizer):
    for text in (*MARKERS, *SPECIAL):
        assert len(encode(tokenizer, text)) == 1
    ids = encode(tokenizer, "<|im_start|>a<think>b</think><tool_call>c</tool_call><|im_end|><|endoftext|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b</think><tool_call>c</tool_call>"
    assert set(tokenizer.all_special_tokens) <= set(SPECIAL)


def test_the_vocabulary_counts_all_but_the_added_tokens(tokenizer):
    assert len(tokenizer) == 320 + len(MARKERS) + len(SPECIAL)
    assert len(encode(tokenizer, "The user wants")) <= 4, "trained on what the prompts say"


def test_training_texts_hold_titles_categories_and_prompts():
    texts = training_texts(CATALOG, ["extra"])
    assert texts[0] == "Am\u00e9lie (2001) Comedy, Romance" and texts[-1] == "extra"
    joined = "\n".join(texts)
    for part in ("Seven Samurai", "<think>The user wants Comedy, Romance.</think>", "wants anything", "History: "):
        assert part in joined
    assert "<a_" not in joined, "sids come later"


def test_the_model_fits_its_tokenizer(tokenizer, tmp_path):
    model = build_model(tokenizer, hidden_size=24, num_layers=2, num_heads=3, max_length=128, seed=5)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0 and len(tokenizer) <= rows < len(tokenizer) + 64
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config = model.generation_config
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    again = build_model(tokenizer, 24, 2, 3, 128, seed=5).state_dict()
    other = build_model(tokenizer, 24, 2, 3, 128, seed=6).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(other["lm_head.weight"], again["lm_head.weight"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    ids_BT = torch.tensor([encode(tokenizer, "The user wants Drama")])
    with torch.no_grad():
        loss = loaded(ids_BT, labels=ids_BT).loss.item()
    assert abs(loss - torch.log(torch.tensor(float(rows))).item()) < 1.5, "starts near uniform"


def call(name: str, **arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CHATS = {
    "answer": [
        {"role": "user", "content": "History: <a_1>"},
        {"role": "assistant", "content": "<think>The user wants Action.</think><a_2>"},
    ],
    "calls": [
        {"role": "user", "content": "Length 3."},
        {"role": "assistant", "content": "", "tool_calls": [call("retrieve", k=10)]},
        {"role": "tool", "content": "margin 3"},
        {"role": "assistant", "tool_calls": [call("rank", m=50, n=10), call("reason", n=5)]},
        {"role": "tool", "content": "same"},
        {"role": "tool", "content": "new 4"},
        {"role": "assistant", "content": "Done."},
    ],
    "thought and call": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Length 9."},
        {
            "role": "assistant",
            "reasoning_content": "A long history.",
            "content": "",
            "tool_calls": [call("reason", n=3)],
        },
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Done again."},
    ],
}


@pytest.mark.parametrize("name", CHATS)
def test_a_message_renders_the_same_whatever_follows(chatty, name):
    chat = CHATS[name]
    whole = chatty.apply_chat_template(chat, tokenize=False)
    for length in range(1, len(chat) + 1):
        part = chatty.apply_chat_template(chat[:length], tokenize=False)
        assert whole.startswith(part)
        if length < len(chat) and chat[length]["role"] == "assistant":
            asked = chatty.apply_chat_template(chat[:length], tokenize=False, add_generation_prompt=True)
            assert whole.startswith(asked) and asked == part + "<|im_start|>assistant\n"
    ids = chatty.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert ids == encode(chatty, whole)


@pytest.mark.parametrize("name", CHATS)
def test_what_the_assistant_wrote_is_read_back(chatty, name):
    chat = CHATS[name]
    for place, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        asked = chatty.apply_chat_template(chat[:place], tokenize=False, add_generation_prompt=True)
        told = chatty.apply_chat_template(chat[: place + 1], tokenize=False)
        completion = told.removeprefix(asked).removesuffix("\n")
        assert completion.endswith("<|im_end|>")
        parsed = chatty.parse_response(encode(chatty, completion), prefix=encode(chatty, asked))
        assert parsed["role"] == "assistant"
        assert parsed.get("tool_calls", []) == message.get("tool_calls", [])
        content = message.get("content") or ""
        thought = message.get("reasoning_content", "")
        if "</think>" in content:
            thought, content = content.removeprefix("<think>").split("</think>")
        assert (parsed.get("content") or "") == content
        assert (parsed.get("reasoning_content") or "") == thought


@pytest.mark.parametrize(
    "arguments", [{}, {"k": 10}, {"q": 'a "b" \\ {c}\n'}, {"q": "Am\u00e9lie <b>&'"}, {"l": [1, {"x": None}]}]
)
def test_arguments_survive_as_objects_and_as_text(chatty, arguments):
    for given_arguments in (arguments, json.dumps(arguments)):
        message = {"role": "assistant", "content": "", "tool_calls": [call("reason", **arguments)]}
        message["tool_calls"][0]["function"]["arguments"] = given_arguments
        told = chatty.apply_chat_template([{"role": "user", "content": "x"}, message], tokenize=False)
        completion = told.split("<|im_start|>assistant\n")[1].removesuffix("\n")
        parsed = chatty.parse_response(encode(chatty, completion), prefix="<|im_start|>assistant\n")
        assert parsed["tool_calls"] == [call("reason", **arguments)]


@pytest.mark.parametrize("name", CHATS)
def test_the_assistant_mask_covers_what_the_assistant_wrote(chatty, name):
    chat = CHATS[name]
    encoded = chatty.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    expected: list[int] = []
    before = ""
    for place, message in enumerate(chat):
        whole = chatty.apply_chat_template(chat[: place + 1], tokenize=False)
        told, before = whole.removeprefix(before), whole
        if message["role"] == "assistant":
            head, body = told.split("<|im_start|>assistant\n")
            assert head == "" and body.endswith("<|im_end|>\n")
            expected += [0] * len(encode(chatty, "<|im_start|>assistant\n"))
            expected += [1] * len(encode(chatty, body.removesuffix("\n"))) + [0] * len(encode(chatty, "\n"))
        else:
            expected += [0] * len(encode(chatty, told))
    assert len(ids) == len(expected)
    assert mask == expected


def test_the_template_travels_with_the_tokenizer(chatty, tmp_path):
    from recllm.training.chat import set_chat_template

    chatty.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    set_chat_template(again, "keep")
    chat = CHATS["calls"]
    assert again.apply_chat_template(chat, tokenize=False) == chatty.apply_chat_template(chat, tokenize=False)
    written = encode(again, '<tool_call>\n{"name": "rank", "arguments": {"m": 5}}\n</tool_call><|im_end|>')
    assert again.parse_response(written, prefix="<|im_start|>assistant\n")["tool_calls"] == [call("rank", m=5)]


def test_templates_without_tools_and_unknown_names_are_refused(tokenizer):
    from recllm.training.chat import set_chat_template

    with pytest.raises(ValueError, match="'fat' is unknown; choose one of keep, lean, qwen3"):
        set_chat_template(tokenizer, "fat")
    plain = train_tokenizer(["a b"], 260)
    plain.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match="cannot render tool calls"):
        set_chat_template(plain, "keep")
    set_chat_template(plain, "qwen3")
    assert "<tool_call>" in plain.apply_chat_template(CHATS["calls"], tokenize=False)
