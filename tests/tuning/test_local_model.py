"""A local model's replies: legal whatever its weights, the same in any batch, of the right distribution."""

import json

import numpy as np
import pytest
import torch
from part_spaces import part_space
from studies import DATA, small_space, study

from recllm.evaluation.completions import choose
from recllm.teachers.local import Local
from recllm.teachers.protocol import Sampling, TeacherError, digest
from recllm.tuning.language.language import Ask, load_language_model
from recllm.tuning.language.local_model import LocalModel
from recllm.tuning.language.prompt import proposal_text
from recllm.tuning.language.proposer import ask_of, propose
from recllm.tuning.spaces.backbones import backbone_space
from recllm.tuning.study.proposal import Proposal, proposal_schema
from recllm.tuning.study.trial import Situation

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = part_space("sasrec")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WARM = Sampling(temperature=1.0, max_tokens=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights, wide enough for scores to differ clearly."""
    from recllm.training.tiny_lm import build_model, train_tokenizer

    texts = [proposal_text(Proposal("why it helps", axis.name, axis.default, "up", "none")) for axis in SPACE.axes]
    tokenizer = train_tokenizer(texts, 500)
    tokenizer.chat_template = TEMPLATE
    model = build_model(tokenizer, 32, 2, 4, 2048, seed=0)
    for weight in model.parameters():
        weight.data *= 2
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def situations(count, length=6, space=SPACE):
    return [Situation(study(space, length, seed), DATA, 9) for seed in range(count)]


def asked(model, count, **more):
    return [ask_of(one, model, seed) for seed, one in enumerate(situations(count, **more))]


def test_random_weights_propose_what_is_legal_and_new(folder):
    model = LocalModel.load(folder, WARM, "brief", text=30, batch=8)
    for space, length in ((SPACE, 20), (small_space(), 5), (backbone_space("hstu"), 3)):
        ones = situations(6, length, space)
        found = propose(model, ones, range(6))
        # A range cannot leave out what was tried, nor the present value; all else is legal at once.
        assert [proposed.source for proposed in found] == ["model"] * 6
        for one, proposed in zip(ones, found, strict=True):
            assert space.key(proposed.config) not in one.history.tried
            assert max(len(text) for text in (proposed.proposal.hypothesis, proposed.proposal.risk)) <= 30
        assert len({proposed.proposal.hypothesis for proposed in found}) > 3


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=400), WARM], ids=["greedy", "warm"])
def test_a_reply_does_not_depend_on_its_batch(folder, sampling):
    model = LocalModel.load(folder, sampling, "brief", text=20, batch=5)
    ones = [ask for length in (1, 5, 14) for ask in asked(model, 2, length=length)]
    alone = [model.reply([one])[0] for one in ones]
    assert len(set(alone)) > 3
    assert model.reply(ones) == alone
    assert model.reply(ones[::-1]) == alone[::-1]
    assert model.reply([ones[3], ones[3]]) == [alone[3]] * 2


def slow_reply(local, one, sampling, style, text):
    """One token at a time over the whole text so far, without a cache and without skipping what is forced."""
    import llguidance.hf

    model, tokenizer = local.model, local.tokenizer
    tokens = llguidance.hf.from_tokenizer(tokenizer, model.config.vocab_size, sorted(local.ends()))
    schema = json.loads(json.dumps(one.schema).replace('"maxLength": 240', f'"maxLength": {text}'))
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    matcher, written = llguidance.LLMatcher(tokens, grammar), []
    rng = np.random.default_rng(int(digest(one.question(style), f"seed {sampling.seed}"), 16))
    prompt = local.prompts([one.messages])[0]
    while not matcher.is_stopped():
        if forced := matcher.compute_ff_tokens():
            next_ = forced[0]
        else:
            with torch.no_grad():
                logits_V = model(torch.tensor([prompt + written])).logits[0, -1]
            legal = [t for t in range(len(logits_V)) if matcher.deep_copy().try_consume_tokens([t]) == 1]
            uniform = torch.tensor([rng.random()], dtype=torch.float32) if sampling.temperature else None
            next_ = legal[int(choose(logits_V[legal][None], sampling.temperature, sampling.top_p, uniform))]
        assert matcher.consume_token(next_)
        written.append(next_)
    return tokenizer.decode(written)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=400), WARM], ids=["greedy", "warm"])
def test_the_fast_decoder_writes_what_the_slow_one_does(folder, sampling):
    local = Local.load(folder, sampling, batch=4)
    model = LocalModel(local, "brief", text=12)
    ones = asked(model, 4)
    assert model.reply(ones) == [slow_reply(local, one, sampling, "brief", 12) for one in ones]


def test_forced_tokens_cost_no_pass_of_their_own(folder):
    model = LocalModel.load(folder, WARM, "brief", text=10)
    passes = []
    model._local.model.register_forward_hook(lambda *_: passes.append(1))
    reply = model.reply(asked(model, 1))[0]
    tokens = len(model._local.tokenizer(reply)["input_ids"])
    assert len(passes) < 0.9 * tokens


def test_what_training_writes_is_what_the_decoder_can_write(folder):
    import llguidance.hf

    local = Local.load(folder, WARM)
    tokens = llguidance.hf.from_tokenizer(local.tokenizer, local.model.config.vocab_size)
    for space in (SPACE, backbone_space("sasrec"), backbone_space("hstu"), small_space()):
        rng = np.random.default_rng(0)
        for config in (space.default, space.sample(rng)):
            schema = proposal_schema(space, config)
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            start = llguidance.LLMatcher(tokens, grammar)
            for branch in schema["anyOf"]:
                axis = space.by_name[branch["properties"]["changed_dimension"]["const"]]
                for value in branch["properties"]["value"].get("enum", [axis.from_unit(x) for x in (0, 0.3, 0.9)]):
                    text = proposal_text(Proposal('it "may" help: é', axis.name, value, "up", "none"))
                    ids, matcher = local.tokenizer(text)["input_ids"], start.deep_copy()
                    assert matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting(), text


def test_seeds_and_sampling_seeds_change_the_draws(folder):
    model = LocalModel.load(folder, WARM, "brief", text=30)
    one = asked(model, 1)[0]
    seeds = [Ask(one.messages, one.schema, seed) for seed in range(4)]
    assert len(set(model.reply(seeds))) == 4
    other = LocalModel.load(folder, Sampling(temperature=1.0, max_tokens=400, seed=1), "brief", text=30)
    assert other.reply([one]) != model.reply([one]) and other.name != model.name


def test_a_reply_is_cut_off_at_its_tokens_and_refused(folder):
    model = LocalModel.load(folder, Sampling(temperature=1.0, max_tokens=20), "brief")
    ones = situations(2)
    reply = model.reply([ask_of(ones[0], model, 0)])[0]
    assert 0 < len(model._local.tokenizer(reply)["input_ids"]) <= 20 and not reply.endswith("}")
    found = propose(model, ones, [0, 1])
    assert [proposed.source for proposed in found] == ["random"] * 2
    assert found[0].refusals[0].reason == "not_json"


def test_what_does_not_fit_the_context_or_is_no_schema_is_an_error(folder):
    model = LocalModel.load(folder, Sampling(max_tokens=2000), "full")
    with pytest.raises(TeacherError, match="exceeds the context of 2048"):
        model.reply(asked(model, 1))
    with pytest.raises(ValueError, match="llguidance does not take the schema"):
        LocalModel.load(folder, WARM).reply([Ask(({"role": "user", "content": "a"},), {"type": "nothing"})])


def test_specs_of_folders_differ_in_style_and_name(folder):
    general, tuner = load_language_model(f"local:{folder}"), load_language_model(f"tuner:{folder}", text=50)
    assert (general.style, tuner.style) == ("full", "brief")
    assert folder.name in general.name and "text=50" in tuner.name and general.name != tuner.name
    # A tuner is drawn from colder, and no warmer than asked for.
    assert "temperature=0.7" in general.name and "temperature=0.3" in tuner.name
    assert "greedy" in load_language_model(f"tuner:{folder}", Sampling(temperature=0.0)).name
