"""Packed weights multiply like the plain ones, and nothing stays changed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from recllm.decoding.packed_linears import WORTHWHILE, packed_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
SHAPE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 40), (17, 9), (64, 128)])
def test_products_equal_the_plain_ones(rows, bias, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(*shape, bias=bias)
    for lead in ((rows,), (2, rows), (rows, 1, 3)):
        x = torch.randn(*lead, shape[0])
        with torch.no_grad(), packed_linears(layer, rows, WORTHWHILE):
            assert "forward" in vars(layer), "it is to be packed"
            found = layer(x)
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


def test_a_model_with_adapters_answers_alike_and_is_left_as_it_was():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **SHAPE))
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    ids = torch.randint(0, 40, (3, 7))
    with torch.no_grad():
        wanted = model(ids).logits
        with packed_linears(model, 3, WORTHWHILE):
            changed = sum("forward" in vars(module) for module in model.modules())
            torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)
        assert changed > 20
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.equal(model(ids).logits, wanted)


def test_weights_come_back_even_where_decoding_fails():
    layer = torch.nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="boom"), packed_linears(layer, 1, WORTHWHILE):
        raise RuntimeError("boom")
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("change", ["few", "bfloat16", "own forward", "subclass"])
def test_what_it_does_not_know_stays_as_it_is(change):
    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = (Doubling if change == "subclass" else torch.nn.Linear)(4, 4)
    layer = layer.bfloat16() if change == "bfloat16" else layer
    own = (lambda x: x) if change == "own forward" else None
    if own:
        layer.forward = own
    with packed_linears(layer, 1, WORTHWHILE - 1 if change == "few" else WORTHWHILE):
        assert vars(layer).get("forward") is own
