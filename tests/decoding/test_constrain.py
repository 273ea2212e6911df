import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

from recllm.decoding.constrain import SidLogitsProcessor
from recllm.decoding.trie import SidTrie
from recllm.sid.table import SidTable

# Ids 0..9 are text (0 pads, 1 ends), then the levels: a = 10..13, b = 14..17, c = 18..20. Code 3 of level a is unused.
PAD, END, VOCABULARY = 0, 1, 24
IDS = [np.arange(10, 14), np.arange(14, 18), np.arange(18, 21)]
TABLE = SidTable(np.array([[0, 0, 0], [0, 0, 1], [0, 2, 2], [1, 0, 0], [2, 3, 1]]), (4, 4, 3))
TRIE = SidTrie.from_table(TABLE, IDS)
SIDS = {tuple(int(IDS[level][code]) for level, code in enumerate(row)) for row in TABLE.codes_NL}
ALPHABET = set(range(10, 21))
TEXT = set(range(VOCABULARY)) - ALPHABET
STARTS = {10, 11, 12}


def allowed(processor: SidLogitsProcessor, *rows: list[int]) -> list[set[int]]:
    scores = processor(torch.tensor(rows), torch.randn(len(rows), VOCABULARY))
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in scores]


def brute_force(tokens: list[int], sids: set[tuple[int, ...]], alphabet: set[int], text: set[int]) -> set[int]:
    """Read from the left, one token at a time, with nothing but the set of sids."""
    prefixes = {sid[:length] for sid in sids for length in range(len(sid) + 1)}
    follow = {p: {sid[len(p)] for sid in sids if sid[: len(p)] == p and len(sid) > len(p)} for p in prefixes}
    state: tuple[int, ...] = ()
    for token in tokens:
        if token in follow[state]:
            state = (*state, token)
        else:
            state = (token,) if token in follow[()] else ()
        if not follow[state]:
            state = ()
    outside = text | follow[()]
    if state == ():
        return outside
    return follow[state] | (outside if state in sids else set())


def test_text_is_free_and_a_sid_is_not() -> None:
    processor = SidLogitsProcessor(TRIE)
    cases = {
        (5, 6): TEXT | STARTS,
        (5, 10): {14, 16},
        (10, 14): {18, 19},
        (10, 14, 18): TEXT | STARTS,
        (10, 14, 18, 12): {17},
        (12, 17): {19},
        (10, 15): TEXT | STARTS,  # a prompt that spells no sid is text
        (10, 11): {14},  # and the last start counts
        (14, 18): TEXT | STARTS,
    }
    for tokens, expected in cases.items():
        assert allowed(processor, list(tokens)) == [expected], tokens
    assert END in allowed(processor, [10, 14, 18])[0] and END not in allowed(processor, [10, 14])[0]


def test_open_scores_are_left_as_they_are() -> None:
    scores = torch.randn(2, VOCABULARY)
    given_scores = scores.clone()
    out = SidLogitsProcessor(TRIE)(torch.tensor([[5, 10], [5, 5]]), scores)
    open_BV = out.isfinite()
    assert torch.equal(out[open_BV], given_scores[open_BV]) and (out[~open_BV] == -torch.inf).all()
    assert torch.equal(scores, given_scores)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 5, *range(10, 21)]), min_size=8, max_size=8), min_size=1, max_size=5))
def test_batches_equal_reading_from_the_left(rows: list[list[int]]) -> None:
    assert allowed(SidLogitsProcessor(TRIE), *rows) == [brute_force(row, SIDS, ALPHABET, TEXT) for row in rows]


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.lists(st.integers(10, 14), min_size=1, max_size=4).map(tuple), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(8, 15), min_size=9, max_size=9), min_size=1, max_size=4),
)
def test_ids_at_several_places_and_sids_that_begin_sids(sids: set[tuple[int, ...]], rows: list[list[int]]) -> None:
    trie = SidTrie.from_sequences([np.array(sid) for sid in sorted(sids)])
    alphabet = {token for sid in sids for token in sid}
    text = set(range(VOCABULARY)) - alphabet
    assert allowed(SidLogitsProcessor(trie), *rows) == [brute_force(row, sids, alphabet, text) for row in rows]


def test_an_id_that_starts_one_sid_and_ends_another_is_read_from_the_left() -> None:
    processor = SidLogitsProcessor(SidTrie.from_sequences([np.array([10, 11]), np.array([11, 12])]))
    outside = set(range(VOCABULARY)) - {12}
    cases = {(5, 11): {12}, (10, 11): outside, (5, 10, 11): outside, (10, 11, 11): {12}, (11, 12, 10, 11): outside}
    for tokens, expected in cases.items():
        assert allowed(processor, list(tokens)) == [expected], tokens


def test_forced_answers_end_where_they_may() -> None:
    processor = SidLogitsProcessor(TRIE, only_sids=True, eos_token_id=END, max_items=2)
    one, two = [10, 14, 18], [11, 14, 18]
    assert allowed(processor, [5, 5]) == [STARTS], "not one sid yet"
    assert allowed(processor, [5, 10]) == [{14, 16}]
    assert allowed(processor, [5, *one], [5, 5, 5, 10]) == [STARTS | {END}, {14, 16}]
    assert allowed(processor, [5, *one, *two]) == [{END}]
    assert allowed(processor, [*one, *two, 5, *one]) == [STARTS | {END}], "sids before a text token are the prompt's"
    assert allowed(SidLogitsProcessor(TRIE, True, END), [5, *one * 9]) == [STARTS | {END}], "no limit"
    assert allowed(SidLogitsProcessor(TRIE, True, [END, 2], min_items=0), [5, 5]) == [STARTS | {END, 2}]
    after_prompt = SidLogitsProcessor(TRIE, True, END, max_items=1, prompt_length=6)
    assert allowed(after_prompt, [*one, *two], [5, 5, 5, *one]) == [STARTS] * 2
    assert allowed(after_prompt, [*one, *two, *one]) == [{END}]


def test_a_longer_sid_counts_once() -> None:
    trie = SidTrie.from_sequences([np.array([10]), np.array([10, 11]), np.array([12])])
    processor = SidLogitsProcessor(trie, True, END, max_items=2)
    assert allowed(processor, [5, 10]) == [{10, 11, 12, END}], "complete, or the beginning of the longer one"
    assert allowed(processor, [5, 10, 11]) == [{10, 12, END}]
    assert allowed(processor, [5, 12, 10]) == [{11, END}]
    assert allowed(processor, [5, 10, 11, 12]) == [{END}]


def test_a_sid_that_does_not_fit_is_not_begun() -> None:
    assert allowed(SidLogitsProcessor(TRIE, max_length=5), [5, 5]) == [TEXT | STARTS]
    assert allowed(SidLogitsProcessor(TRIE, max_length=4), [5, 5]) == [TEXT]
    assert allowed(SidLogitsProcessor(TRIE, max_length=4), [5, 10]) == [{14, 16}]
    assert allowed(SidLogitsProcessor(TRIE, True, END, max_length=4), [5, 5]) == [{END}]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="eos_token_id"):
        SidLogitsProcessor(TRIE, only_sids=True)
    with pytest.raises(ValueError, match="token 12 is both"):
        SidLogitsProcessor(TRIE, eos_token_id=[END, 12])
    with pytest.raises(ValueError, match="min_items"):
        SidLogitsProcessor(TRIE, True, END, min_items=2, max_items=1)
    with pytest.raises(ValueError, match="no room"):
        SidLogitsProcessor(TRIE)(torch.tensor([[5]]), torch.zeros(1, 20))


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


def spells_only_sids(tokens: list[int]) -> bool:
    """Whether every sid token of a completion belongs to a whole sid of the catalogue."""
    place = 0
    while place < len(tokens):
        if tuple(tokens[place : place + 3]) in SIDS:
            place += 3
        elif tokens[place] in ALPHABET:
            return False
        else:
            place += 1
    return True


PROMPTS = torch.tensor([[PAD, PAD, 5, 6], [5, 10, 14, 18], [PAD, 12, 17, 3]])
PROMPT_MASK = (PROMPTS != PAD).long()
NEW = 8


def complete(model: Qwen3ForCausalLM, *processors: SidLogitsProcessor, **options) -> list[list[int]]:
    out = model.generate(
        PROMPTS,
        attention_mask=PROMPT_MASK,
        max_new_tokens=NEW,
        logits_processor=LogitsProcessorList(processors),
        **options,
    )
    return out[:, PROMPTS.shape[1] :].tolist()


def test_sampled_completions_are_always_valid_and_free_ones_are_not(model: Qwen3ForCausalLM) -> None:
    limit = PROMPTS.shape[1] + NEW
    free, held, mentions = [], [], 0
    for seed in range(50):
        torch.manual_seed(seed)
        free += [spells_only_sids(tokens) for tokens in complete(model, do_sample=True)]
        torch.manual_seed(seed)
        top_k = (0, 1, 3)[seed % 3]
        completions = complete(model, SidLogitsProcessor(TRIE, max_length=limit), do_sample=True, top_k=top_k)
        held += [spells_only_sids(tokens) for tokens in completions]
        mentions += sum(token in STARTS for tokens in completions for token in tokens)
    assert np.mean(held) == 1.0 and np.mean(free) < 0.5
    assert mentions > 20, "valid not for want of sids"


def test_forced_sampled_answers_are_sids_and_then_the_end(model: Qwen3ForCausalLM) -> None:
    processor = SidLogitsProcessor(TRIE, True, END, max_items=2, prompt_length=PROMPTS.shape[1])
    for seed in range(8):
        torch.manual_seed(seed)
        for tokens in complete(model, processor, do_sample=True, num_return_sequences=3):
            answer = tokens[: tokens.index(END)]
            assert len(answer) in (3, 6) and spells_only_sids(answer), tokens
            assert set(tokens[len(answer) + 1 :]) <= {PAD}


@pytest.mark.parametrize("beams", [1, 4])
def test_beams_return_distinct_items(model: Qwen3ForCausalLM, beams: int) -> None:
    processor = SidLogitsProcessor(TRIE, True, END, max_items=1, prompt_length=PROMPTS.shape[1])
    answers = complete(model, processor, num_beams=beams, num_return_sequences=beams, do_sample=False)
    assert all(tuple(tokens[:3]) in SIDS and tokens[3] == END for tokens in answers)
    for prompt in range(len(PROMPTS)):
        assert len({tuple(tokens) for tokens in answers[prompt * beams : (prompt + 1) * beams]}) == beams
