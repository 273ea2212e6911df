"""The model's answers against a twin that reads every text from its beginning, one at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from recllm.decoding.trie import ROOT
from recllm.needs.constrain import allowed_tokens_fn
from recllm.needs.model import NeedsModel
from recllm.needs.vocabulary import NeedsVocabulary
from recllm.sid.table import SidTable
from recllm.training.chat import set_chat_template
from recllm.training.tiny_lm import build_model, train_tokenizer

# Names of one token and of many, some the beginning of others.
CATEGORIES = [
    "Bar",
    "Bar / Pub",
    "Barber Shop",
    "Café",
    "Coffee Shop",
    "Shop (Used)",
    "Gym",
    "Spa",
    "Zoo",
    "Inn",
    "Deli",
]
TYPES = ["body", "body/food", "esteem/fitness"]
SERVICES = [1, 2, 3, 5, 8, 11, 12, 13, 20, 21, 55, 110, 111]
NEEDS = ["a quick lunch", "somewhere warm to sit.", "a run; then rest", "café by the river?"]
TABLE = SidTable(np.array([(item % 7, item // 7) for item in range(112)]), (7, 16))
ASKED = ["Now: Friday. Need?", "Now?", "Now: Monday 8h, rain. Recent: Bar; Gym; Bar. Need, category, services?", "Hm"]
CHATS = [[{"role": "user", "content": text}] for text in ASKED]


@pytest.fixture(scope="module")
def tokenizer():
    words = [*NEEDS, *TYPES, *CATEGORIES, *ASKED]
    texts = [json.dumps({"need": word, "need_type": word, "category": word, "services": SERVICES}) for word in words]
    texts += [json.dumps(word, ensure_ascii=False) for word in words] * 3
    tokenizer = train_tokenizer(texts, 420)
    tokenizer.add_tokens(TABLE.tokens())
    set_chat_template(tokenizer, "lean")
    return tokenizer


@pytest.fixture(scope="module", params=["ids", "sids"])
def needs_model(request, tokenizer, one_thread):
    table = TABLE if request.param == "sids" else None
    # Weights large enough that the answers differ from prompt to prompt.
    model = build_model(tokenizer, 32, 2, 2, 512, seed=5).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    vocabulary = NeedsVocabulary(tuple(TYPES), tuple(CATEGORIES), tuple(SERVICES))
    return NeedsModel(model, tokenizer, vocabulary, table, beams=200)


def greedy(needs_model: NeedsModel, prompt: list[int]) -> list[int]:
    """Tokens as far as the type, by transformers' own search."""
    grammar = needs_model.grammars["service"]
    ids_1T = torch.tensor([prompt])
    out = needs_model.model.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        do_sample=False,
        max_new_tokens=grammar.longest,
        prefix_allowed_tokens_fn=allowed_tokens_fn([grammar], len(prompt)),
    )[0, len(prompt) :].tolist()
    state_of = [grammar.walk(out[:end]).part for end in range(len(out) + 1)]
    return out[: state_of.index(3)]


@torch.no_grad()
def log_probabilities(needs_model: NeedsModel, trie, tokens: list[int]) -> np.ndarray:
    """Of every sequence of the trie behind some tokens, each read from the beginning."""
    found = np.zeros(len(trie.items_N))
    for item in range(len(found)):
        node, read = ROOT, list(tokens)
        while trie.item(node) is None:
            open_A = trie.children(node)
            logits_A = needs_model.model(torch.tensor([read])).logits[0, -1][open_A].double()
            on_way = [token for token in open_A.tolist() if trie.step(node, token) in trie.path_NL[item]]
            found[item] += float(logits_A.log_softmax(0)[open_A.tolist().index(on_way[0])])
            node, read = trie.step(node, on_way[0]), [*read, on_way[0]]
    return found


def tokens_to(trie, item: int) -> list[int]:
    return [int(trie.tokens_E[node - 1]) for node in trie.path_NL[item].tolist() if node >= 0]


@pytest.mark.parametrize("categories", [1, 3])
def test_the_answers_are_those_of_reading_every_text_alone(needs_model, tokenizer, categories):
    needs_model = replace(needs_model, categories=categories)
    answers = needs_model.answer(CHATS, batch_size=3)
    of_categories, of_services = needs_model.tries
    for row, prompt in enumerate(needs_model.prompts(CHATS)):
        written = greedy(needs_model, prompt)
        text = tokenizer.decode(written)
        assert text == f'{{"need": "{answers.needs[row]}", "need_type": "{answers.types[row]}", "category": "'
        scores_K = log_probabilities(needs_model, of_categories, prompt + written)
        best_K = np.argsort(-scores_K)
        assert answers.categories_EK[row] == [sorted(CATEGORIES)[i] for i in best_K[:10]]
        total_C = np.zeros(len(SERVICES))
        for category in best_K[:categories]:
            behind = prompt + written + tokens_to(of_categories, category)
            total_C += np.exp(scores_K[category] + log_probabilities(needs_model, of_services, behind))
        assert answers.services_EK[row].tolist() == [SERVICES[i] for i in np.argsort(-total_C)[:10]]
    assert len({tuple(row) for row in answers.services_EK.tolist()}) > 1, "the prompts should matter"


def test_batches_do_not_matter(needs_model):
    together, alone = needs_model.answer(CHATS, batch_size=4), needs_model.answer(CHATS, batch_size=1)
    assert together.needs == alone.needs and together.categories_EK == alone.categories_EK
    assert np.array_equal(together.services_EK, alone.services_EK)
