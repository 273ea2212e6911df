"""The stacks against transformers' T5 with the same weights."""

import pytest
import torch
from transformers import T5Config, T5Model

from recllm.backbones.t5 import Decoder, Encoder, padding_bias, position_buckets

WIDTH, HEADS, HEAD, HIDDEN, LAYERS = 12, 3, 5, 20, 2


def make_peer() -> T5Model:
    torch.manual_seed(0)
    shape = {"d_model": WIDTH, "num_heads": HEADS, "d_kv": HEAD, "d_ff": HIDDEN, "num_layers": LAYERS}
    peer = T5Model(T5Config(vocab_size=9, dropout_rate=0.0, **shape)).eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return peer


def copy_stack(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Give our stack the weights of a stack of transformers."""
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    with torch.no_grad():
        bias = theirs.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        ours.position.table.weight.copy_(bias)
        ours.norm.weight.copy_(theirs.final_layer_norm.weight)
        for layer, block in zip(ours.layers, theirs.block, strict=True):
            pairs = [(layer.norm, layer.attention, block.layer[0].layer_norm, block.layer[0].SelfAttention)]
            if len(block.layer) == 3:
                crossing = block.layer[1]
                pairs.append((layer.cross_norm, layer.cross, crossing.layer_norm, crossing.EncDecAttention))
            for norm, attention, their_norm, their_attention in pairs:
                norm.weight.copy_(their_norm.weight)
                for own, other in parts.items():
                    getattr(attention, own).weight.copy_(getattr(their_attention, other).weight)
            layer.last_norm.weight.copy_(block.layer[-1].layer_norm.weight)
            layer.feed_forward.up.weight.copy_(block.layer[-1].DenseReluDense.wi.weight)
            layer.feed_forward.down.weight.copy_(block.layer[-1].DenseReluDense.wo.weight)


@pytest.fixture(scope="module")
def stacks():
    peer, shape = make_peer(), (LAYERS, WIDTH, HEADS, HEAD, HIDDEN, 0.0)
    encoder, decoder = Encoder(*shape), Decoder(*shape)
    copy_stack(encoder, peer.encoder)
    copy_stack(decoder, peer.decoder)
    return peer, encoder, decoder


def test_buckets_are_those_of_t5(stacks):
    attention = stacks[0].encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(-300, 301)
    for both_ways in (True, False):
        theirs = attention._relative_position_bucket(distance, both_ways, 32, 128)
        assert torch.equal(position_buckets(distance, both_ways), theirs)


def test_encoder_and_decoder_give_the_states_of_t5(stacks):
    peer, encoder, decoder = stacks
    generator = torch.Generator().manual_seed(1)
    history_BTD = torch.randn(3, 40, WIDTH, generator=generator)
    real_BT = torch.arange(40)[None] < torch.tensor([[40], [7], [1]])
    written_BSD = torch.randn(3, 4, WIDTH, generator=generator)
    with torch.no_grad():
        theirs = peer(inputs_embeds=history_BTD, attention_mask=real_BT.long(), decoder_inputs_embeds=written_BSD)
        read_BTD = encoder(history_BTD, real_BT)
        torch.testing.assert_close(read_BTD[real_BT], theirs.encoder_last_hidden_state[real_BT], atol=1e-4, rtol=1e-4)
        memory, bias = decoder.memory(read_BTD), padding_bias(real_BT)
        ours, _ = decoder(written_BSD[:, None], memory, bias)
        torch.testing.assert_close(ours[:, 0], theirs.last_hidden_state, atol=1e-4, rtol=1e-4)
        # Step by step with a past, and several groups at once, gives the same states.
        past, steps = None, []
        for step in range(4):
            state, past = decoder(written_BSD[:, None, step : step + 1], memory, bias, past)
            steps.append(state[:, 0, 0])
        torch.testing.assert_close(torch.stack(steps, 1), ours[:, 0], atol=1e-5, rtol=1e-5)
        twice, _ = decoder(torch.stack([written_BSD.flip(1), written_BSD], 1), memory, bias)
        torch.testing.assert_close(twice[:, 1], ours[:, 0], atol=1e-5, rtol=1e-5)


def test_weights_begin_as_t5s():
    """Unscaled attention lives by it: queries begin smaller by the root of a head's width."""
    torch.manual_seed(0)
    width, head = 256, 64
    decoder = Decoder(1, width, 4, head, 512, 0.0)
    layer = decoder.layers[0]
    for attention in (layer.attention, layer.cross):
        expected = {
            "query": (width * head) ** -0.5,
            "key": width**-0.5,
            "value": width**-0.5,
            "out": (4 * head) ** -0.5,
        }
        for name, std in expected.items():
            assert getattr(attention, name).weight.std().item() == pytest.approx(std, rel=0.03), name
    assert layer.feed_forward.up.weight.std().item() == pytest.approx(width**-0.5, rel=0.03)
    assert layer.feed_forward.down.weight.std().item() == pytest.approx(512**-0.5, rel=0.03)


@pytest.mark.parametrize("sublayer", ["attention", "cross", "feed_forward"])
def test_dropout_falls_on_what_each_sublayer_adds(sublayer):
    """With p = 1 in training a layer adds nothing: what goes in comes out, whatever the sublayer holds."""
    torch.manual_seed(0)
    layer = Decoder(1, WIDTH, HEADS, HEAD, HIDDEN, 0.0).layers[0].train()
    for name in {"attention", "cross", "feed_forward"} - {sublayer}:
        part = getattr(layer, name)
        torch.nn.init.zeros_((part.down if name == "feed_forward" else part.out).weight)
    x_BGSD, memory_BTD = torch.randn(2, 1, 3, WIDTH), torch.randn(2, 4, WIDTH)
    given = torch.zeros(HEADS, 3, 3), None, layer.cross.keys_values(memory_BTD), torch.zeros(2, 1, 1, 4), None
    added = (layer(x_BGSD, *given)[0] - x_BGSD).abs().max()
    layer.drop.p = 1.0
    assert added > 1e-3 and torch.equal(layer(x_BGSD, *given)[0], x_BGSD)
