import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from recllm.tools.cost import LMCost

SHAPE = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
COST = LMCost(matmul_parameters=1000, head_parameters=160, layers=2, width=8)


def test_parameters_by_hand():
    model = Qwen3ForCausalLM(Qwen3Config(head_dim=4, tie_word_embeddings=True, **SHAPE))
    # q 8 x 8, k and v 8 x 4, o 8 x 8; three times 8 x 12; two layer norms of 8 and two head norms of 4.
    layer = 64 + 32 + 32 + 64 + 3 * 96 + 16 + 8
    body = 2 * layer + 8
    assert LMCost.of(model) == LMCost(body, 8 * 20, 2, 8)


def test_an_untied_head_is_counted_once_as_a_head():
    tied = LMCost.of(LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **SHAPE)))
    untied = LMCost.of(LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **SHAPE)))
    assert tied == untied
    assert tied.head_parameters == 160


def test_wide_heads_cost_what_they_multiply():
    """Qwen3-0.6B has 16 heads of 128 in a width of 1024: its attention multiplies 2048 numbers a token, not 1024."""
    narrow = LMCost.of(Qwen3ForCausalLM(Qwen3Config(head_dim=4, **SHAPE)))
    wide = LMCost.of(Qwen3ForCausalLM(Qwen3Config(head_dim=16, **SHAPE)))
    per_key = [cost.decode(1, 101) - cost.decode(1, 100) for cost in (narrow, wide)]
    # Two layers, two heads: query times key and weight times value, a multiply and an add each.
    assert per_key == [2 * 2 * 4 * 4, 2 * 2 * 4 * 16]


def test_prefill_and_decode_by_hand():
    # Token i attends to i keys: 1 + 2 + 3; a key costs 4 x width x layers = 64.
    assert COST.prefill(3) == 2 * 1000 * 3 + 2 * 160 + 64 * (1 + 2 + 3)
    assert COST.decode(2, 5) == 2 * 1160 * 2 + 64 * (6 + 7)
    assert COST.prefill(1) == COST.decode(1, 0)
    assert COST.decode(0, 9) == 0


@pytest.mark.parametrize("context", [0, 1, 2, 17])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_decoding_tokens_is_the_sum_of_single_steps(tokens, context):
    assert COST.decode(tokens, context) == sum(COST.decode(1, context + step) for step in range(tokens))


@pytest.mark.parametrize("prompt", [1, 2, 5, 12])
@pytest.mark.parametrize("more", [0, 1, 4])
def test_reading_and_writing_cost_the_same_but_for_the_head(prompt, more):
    """A text costs the same body and attention whether it is read or written; the head runs once, or once a token."""
    heads_saved = 2 * COST.head_parameters * more
    assert COST.prefill(prompt) + COST.decode(more, prompt) == COST.prefill(prompt + more) + heads_saved
    assert COST.prefill(prompt) + 2 * COST.head_parameters * (prompt - 1) == COST.decode(prompt, 0)


def test_a_beam_reads_its_first_code_off_the_prompt():
    assert COST.beam(5, 1, 30) == 0
    assert COST.beam(5, 3, 30) == 5 * (COST.decode(1, 30) + COST.decode(1, 31))
    assert COST.beam(1, 4, 30) == COST.decode(3, 30)


def test_costs_are_whole_numbers_that_rise():
    values = [COST.prefill(tokens) for tokens in range(1, 40)]
    assert all(type(value) is int for value in values) and values == sorted(set(values))


def test_the_cost_tracks_the_products_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = LlamaForCausalLM(LlamaConfig(attn_implementation="eager", **SHAPE)).eval()
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    cost = LMCost.of(model)
    for tokens in (1, 6):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
        # Torch counts the full square of the attention and no norms; the cost counts the lower triangle.
        square = 4 * 2 * 8 * (tokens * tokens - tokens * (tokens + 1) // 2)
        assert counter.get_total_flops() - square == pytest.approx(cost.prefill(tokens) - 2 * norms * tokens, rel=0.02)
