"""The grammar of answers: a model may write answers only, in the tokens that training spells them in."""

import json

import numpy as np
import pytest
import torch

from recllm.needs.constrain import State, allowed_tokens_fn, build_grammars, free_text
from recllm.needs.schema import STAGES, Answer, ServiceNames, read_answer, render
from recllm.sid.table import SidTable
from recllm.training.tiny_lm import build_model, train_tokenizer

# Names that begin others, that end in punctuation, that JSON escapes, that are not ASCII.
CATEGORIES = ["Bar", "Bar / Pub", "Barber Shop", "Café", "Coffee Shop", "Shop (Used)", 'The "Old" Inn', "Gym"]
TYPES = ["body", "body/food", "esteem/fitness"]
# 1 begins 11, 12 and 110.
CANDIDATES = [1, 2, 3, 5, 8, 11, 12, 13, 20, 21, 55, 110, 111]
NEEDS = ["a quick lunch", "somewhere warm to sit.", "a run; then rest", "café by the river?"]
TABLE = SidTable(np.array([(item % 7, item // 7) for item in range(112)]), (7, 16))
BUDGET = 6


@pytest.fixture(scope="module")
def tokenizer():
    words = [*NEEDS, *TYPES, *CATEGORIES]
    texts = [json.dumps({"need": word, "need_type": word, "category": word, "services": CANDIDATES}) for word in words]
    texts += [json.dumps(word, ensure_ascii=False) for word in words] * 3
    tokenizer = train_tokenizer(texts, 420)
    tokenizer.add_tokens(TABLE.tokens())
    return tokenizer


@pytest.fixture(scope="module", params=["ids", "sids"])
def world(request, tokenizer):
    names = ServiceNames(TABLE if request.param == "sids" else None)
    return names, build_grammars(tokenizer, TYPES, CATEGORIES, CANDIDATES, names, BUDGET)


def answers(count: int, seed: int = 0) -> list[Answer]:
    rng = np.random.default_rng(seed)
    return [
        Answer(
            str(rng.choice(NEEDS)),
            str(rng.choice(TYPES)),
            CATEGORIES[i % len(CATEGORIES)],
            tuple(map(int, rng.permutation(CANDIDATES)[:10])),
        )
        for i in range(count)
    ]


def check_read(text: str, stage: str, names: ServiceNames) -> Answer:
    reading = read_answer(text, stage, names)
    assert reading.problem is None, (reading.problem, text)
    answer = reading.answer
    assert answer.need_type in TYPES
    if stage != "need":
        assert answer.category in CATEGORIES
    if stage == "service":
        assert set(answer.services) <= set(CANDIDATES) and len(set(answer.services)) == 10
    return answer


@pytest.mark.parametrize("stage", ["need", "service"])
def test_whatever_a_random_model_writes_is_an_answer(world, tokenizer, stage):
    names, grammars = world
    grammar, rows = grammars[stage], 6
    model = build_model(tokenizer, 16, 1, 2, 256, seed=3).eval()
    prompt_RT = torch.tensor([tokenizer("Now: Friday")["input_ids"]] * rows)
    torch.manual_seed(0)
    grown_RT = model.generate(
        prompt_RT,
        attention_mask=torch.ones_like(prompt_RT),
        do_sample=True,
        top_k=0,
        max_new_tokens=grammar.longest,
        prefix_allowed_tokens_fn=allowed_tokens_fn([grammar] * rows, prompt_RT.shape[1]),
    )
    written = [tokenizer.decode(ids, skip_special_tokens=True) for ids in grown_RT[:, prompt_RT.shape[1] :]]
    assert len(set(written)) == rows
    for text in written:
        check_read(text, stage, names)


def test_rows_of_different_stages_and_beams_are_told_apart(world, tokenizer):
    names, grammars = world
    stages = ["need", "service", "category"]
    model = build_model(tokenizer, 16, 1, 2, 256, seed=4).eval()
    prompt_RT = torch.tensor([tokenizer("Now: Friday")["input_ids"]] * 3)
    grown_RT = model.generate(
        prompt_RT,
        attention_mask=torch.ones_like(prompt_RT),
        num_beams=2,
        do_sample=False,
        max_new_tokens=grammars["service"].longest,
        prefix_allowed_tokens_fn=allowed_tokens_fn([grammars[stage] for stage in stages], prompt_RT.shape[1]),
    )
    for ids_T, stage in zip(grown_RT[:, prompt_RT.shape[1] :], stages, strict=True):
        check_read(tokenizer.decode(ids_T, skip_special_tokens=True), stage, names)


@pytest.mark.parametrize("stage", STAGES)
def test_an_answer_as_the_tokenizer_writes_it_is_in_the_grammar(world, tokenizer, stage):
    """Else a model would be drawn away from the very tokens that it was fine-tuned on."""
    names, grammars = world
    grammar = grammars[stage]
    for answer in answers(40):
        ids = [*tokenizer(render(answer, stage, names))["input_ids"], tokenizer.eos_token_id]
        assert len(ids) <= grammar.longest
        state = State()
        for token in ids:
            assert token in grammar.allowed(state).tolist()
            state = grammar.step(state, token)
        assert state.part == len(grammar.parts)
        assert grammar.allowed(state).tolist() == [tokenizer.eos_token_id]


def test_the_open_tokens_of_names_are_those_of_a_plain_search(world, tokenizer):
    """Twin: at every step of an answer the names that are still possible, by comparing whole spellings."""
    names, grammars = world
    grammar = grammars["service"]
    quote = "" if names.table is None else '"'
    for answer in answers(6, seed=1):
        state, taken = State(), []
        for token in tokenizer(render(answer, "service", names))["input_ids"]:
            state = state if state.part == 4 else grammar.step(state, token)
        for place, service in enumerate(answer.services):
            spelled = {}
            for item in CANDIDATES:
                body = json.dumps(names.write(item))
                text = body.removeprefix(quote) + "," if place == 0 else f" {body}" + ("," if place < 9 else "]}")
                spelled[item] = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * (place == 9)
            for at, token in enumerate(spelled[service]):
                left = [ids for item, ids in spelled.items() if item not in taken and ids[:at] == spelled[service][:at]]
                assert grammar.allowed(state).tolist() == sorted({ids[at] for ids in left})
                state = grammar.step(state, token)
            taken.append(service)


def test_the_need_is_free_text_up_to_its_budget(world, tokenizer):
    _, grammars = world
    grammar = grammars["need"]
    begun = grammar.walk(tokenizer('{"need": "')["input_ids"])
    spelled = {token: tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))}
    starts = {spelled[token] for token in grammar.allowed(begun).tolist()}
    assert {"a", "Z", "7", " quick"} <= starts and not {" ", ".", '",', ""} & starts
    word = tokenizer(" a")["input_ids"][0]
    state = grammar.step(begun, tokenizer("a")["input_ids"][0])
    within = {spelled[token] for token in grammar.allowed(state).tolist()}
    assert {" ", ".", "!", " quick", '",', "]"} <= within
    # Nothing ends a string early, escapes, opens a marker or is a part of a character.
    assert all(not set(text.removesuffix('",')) & set('"\\<>�\n') and text for text in within)
    for _ in range(BUDGET - 1):
        state = grammar.step(state, word)
    closers = grammar.allowed(state).tolist()
    assert closers and all(spelled[token].endswith('",') for token in closers)
    with pytest.raises(KeyError, match="after 6 tokens"):
        grammar.step(state, word)


def test_drawn_tokens_are_those_with_an_alternative(world, tokenizer):
    names, grammars = world
    answer = Answer("a quick lunch", "esteem/fitness", "Gym", (*CANDIDATES[:9], 110))
    ids = [*tokenizer(render(answer, "service", names))["input_ids"], tokenizer.eos_token_id]
    drawn = grammars["service"].drawn(ids)
    opening, need = len(tokenizer('{"need": "')["input_ids"]), len(tokenizer("a quick lunch")["input_ids"])
    assert drawn[:opening] == [0] * opening and drawn[opening : opening + need + 1] == [1] * (need + 1)
    # The rest of `", "need_type": "`, and the end.
    close = len(tokenizer('", "need_type": "')["input_ids"]) - 1
    assert drawn[opening + need + 1 :][:close] == [0] * close and drawn[-1] == 0
    assert sum(drawn) >= need + 1 + 2 + 9


def test_a_taken_service_and_other_tokens_leave_the_grammar(world, tokenizer):
    names, grammars = world
    good = render(answers(1)[0], "service", names)
    first, second = (json.dumps(names.write(item)) for item in answers(1)[0].services[:2])
    twice = good.replace(f" {second},", f" {first},")
    assert twice != good
    for text in (twice, "Lunch", good.replace('"need"', '"Need"'), good.replace("Bar", "Zoo"), good[:-1] + ",", "[1]"):
        with pytest.raises(KeyError):
            grammars["service"].walk(tokenizer(text)["input_ids"])


def test_grammars_that_could_not_be_kept_are_refused(tokenizer):
    ids = ServiceNames()
    with pytest.raises(ValueError, match="10 services, and the catalogue 9"):
        build_grammars(tokenizer, TYPES, CATEGORIES, CANDIDATES[:9], ids)
    with pytest.raises(ValueError, match=r"category '<a_1>' cannot stand in an answer"):
        build_grammars(tokenizer, TYPES, ["Bar", "<a_1>"], CANDIDATES, ids)
    with pytest.raises(ValueError, match="need_budget is 0"):
        build_grammars(tokenizer, TYPES, CATEGORIES, CANDIDATES, ids, 0)
    with pytest.raises(ValueError, match="a trie needs token id sequences: none"):
        build_grammars(tokenizer, [], CATEGORIES, CANDIDATES, ids)
    with pytest.raises(ValueError, match="0 that end one"):
        free_text(tokenizer, "no token ends like this")
