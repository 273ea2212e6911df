"""No item text may tokenise to a special or added token, whatever it holds."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from recllm.data.text import MAX_LENGTH, neutralise

QWEN = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
]  # fmt: skip
OTHERS = ["[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<unk>", "[CLS]", "[MASK]", "<start_of_turn>", "<｜User｜>"]
SIDS = [f"<{level}_{code}>" for level in "abcd" for code in range(32)]
ADDED = QWEN + OTHERS + SIDS
NORMALIZERS = {
    "none": None,
    "nfc": normalizers.NFC(),
    "nfkc": normalizers.NFKC(),
    "nfd": normalizers.NFD(),
    "nfkd lower strip": normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.StripAccents()]),
}


def _tokenizer(normalizer, extra=()):
    """Byte-level BPE over single bytes, with the added tokens of real chat models and SIDs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN])
    # Matched on the normalised text: what a look-alike could slip through.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=True) for token in [*OTHERS, *SIDS, *extra]])
    return tokenizer


TOKENIZERS = {name: _tokenizer(normalizer) for name, normalizer in NORMALIZERS.items()}


def _added(tokenizer, text):
    added = set(tokenizer.get_added_tokens_decoder())
    return [i for i in tokenizer.encode(text).ids if i in added]


def test_the_tokenizers_do_see_what_is_not_neutralised():
    for tokenizer in TOKENIZERS.values():
        assert all(_added(tokenizer, f"a {token} b") for token in ADDED)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_added_token_is_harmless_alone_nested_and_cut(name):
    for token in ADDED:
        half = len(token) // 2
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
        titles = [
            token,
            token.upper(),
            f"Shampoo{token}250 ml",
            token * 3,
            token[:half] + token + token[half:],
            token[:half] + "\u200b" + token[half:],
            token[:half] + "\x00" + token[half:],
            token[:half] + "\ufe0f" + token[half:],
            wide,
            token.replace("<", "≮").replace(">", "≯"),
            token[1:] + token[:-1],
        ]
        for title in titles:
            clean = neutralise(title)
            assert not _added(TOKENIZERS[name], clean), (title, clean)
            # Nor together with what a template writes around it.
            around = _added(TOKENIZERS[name], f"<|im_start|>user\n{clean}<|im_end|>\n")
            assert len(around) == 2, (title, clean)


FRAGMENTS = st.one_of(
    st.sampled_from(ADDED),
    st.sampled_from(ADDED).map(lambda token: token[: len(token) // 2]),
    st.sampled_from(ADDED).map(lambda token: token[len(token) // 2 :]),
    st.sampled_from(list("<>[]|/＜＞［］≮≯︿\u0338\u200d\u202e\x00\n\t\u2028\ue000▁ ")),
    st.text(max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_no_text_reaches_an_added_token(title):
    clean = neutralise(title)
    for name, tokenizer in TOKENIZERS.items():
        assert not _added(tokenizer, clean), (name, clean)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map("".join), st.integers(1, 40))
def test_result_is_one_short_printable_line_and_a_fixed_point(title, max_length):
    clean = neutralise(title, max_length=max_length)
    assert len(clean) <= max_length
    assert clean == " ".join(clean.split())
    assert not {unicodedata.category(c) for c in clean} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert neutralise(clean, max_length=max_length) == clean
    clean.encode("utf-8")


WORDS = ("Action", "user:", "###", "aa", "aaa", "é", "Z", "a·b")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text("aAcbtion#Z· é", max_size=4)), max_size=10).map("".join))
def test_named_tokens_are_broken_wherever_they_are(title):
    clean = neutralise(title, tokens=WORDS)
    assert not any(word.lower() in clean.lower() for word in WORDS), clean
    assert neutralise(clean, tokens=WORDS) == clean


def test_named_tokens_on_a_tokenizer():
    tokenizer = _tokenizer(None, extra=WORDS)
    for word in WORDS:
        title = f"x{word}y {word}"
        assert _added(tokenizer, title)
        assert not _added(tokenizer, neutralise(title, tokens=WORDS))


def test_every_character_that_some_normal_form_turns_into_a_bracket():
    risky = [c for c in map(chr, range(sys.maxunicode + 1)) if set(unicodedata.normalize("NFKD", c)) & set("<>[]")]
    assert len(risky) > 8  # the four themselves, the wide and the small forms
    for c in risky:
        clean = neutralise(f"a{c}b")
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert not set(unicodedata.normalize(form, clean)) & set("<>[]"), hex(ord(c))


def test_ordinary_titles_stay_readable():
    assert neutralise("Á köldum klaka (Cold Fever)") == "Á köldum klaka (Cold Fever)"
    assert neutralise("  Mac\u00a0&\t Cheese\r\n2 x 500g ") == "Mac & Cheese 2 x 500g"
    assert neutralise("Up [Blu-ray] <3") == "Up (Blu-ray) ‹3"
    assert neutralise("<a_12><b_7>") == "‹a_12›‹b_7›"
    assert neutralise("a" * 500) == "a" * MAX_LENGTH
    assert neutralise("Heart \u2764\ufe0f balm\U000e0105") == "Heart \u2764 balm"
    assert neutralise(None) == neutralise("") == neutralise("\x00\u200b") == ""


def test_a_broken_token_stays_readable():
    assert neutralise("x Action y, ACTION", tokens=("Action",)) == "x A·ction y, A·CTION"
    assert neutralise("pizza", tokens=("z",)) == "pi··a"


def test_tokens_that_leave_no_filler_are_an_error():
    with pytest.raises(ValueError, match="every filler"):
        neutralise("x", tokens=list("·•∙‧◦¤¦§¶†"))
    assert neutralise("a b", tokens=["", " "]) == "a b"
