"""The letter ranker against plain forwards of whole rendered chats, and the chats that teach it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recllm.backbones.sasrec import SASRec
from recllm.data.interactions import Sequences
from recllm.data.prompts import letter_prompt, recommend_prompt
from recllm.data.splits import make_split
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import extend, save_extended
from recllm.tools.letter import LETTERS, SCORES, LetterRank, letter_rows
from recllm.tools.retrieve import Retrieve
from recllm.training.tiny_lm import build_model, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
ITEMS, USERS, LEVELS = 36, 30, 3
LONG = 22  # items of the longest history: more than the prompt shows
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_ranker_parts(table: SidTable, template: str = TEMPLATE):
    """Model, tokenizer and table; wide weights, so that scores differ clearly."""
    tokenizer = train_tokenizer(["History: Letter of the next item? ABCDEFGHIJ The user has bought"] * 3, 300)
    tokenizer.chat_template = template
    model = build_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2, max_length=320, seed=0)
    extend(model, tokenizer, table, init="noise")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model, tokenizer, table


@pytest.fixture(scope="module")
def world():
    """A tiny world, and the ranker under each score."""
    rng = np.random.default_rng(0)
    lengths = [LONG + 1, 2, *rng.integers(5, 18, size=USERS - 2)]
    split = make_split(Sequences.from_lists([rng.permutation(ITEMS)[:n].tolist() for n in lengths]), "roles")
    torch.manual_seed(0)
    retrieve = Retrieve(SASRec(ITEMS, max_len=6, hidden_dim=8))
    codes_NL = np.stack([np.arange(ITEMS) // 12, np.arange(ITEMS) % 4, np.arange(ITEMS) // 4 % 3], axis=1)
    parts = make_ranker_parts(SidTable(codes_NL, (3, 4, 3)))
    rankers = {score: LetterRank(retrieve, *parts, score) for score in SCORES}
    return SimpleNamespace(split=split, retrieve=retrieve, parts=parts, rankers=rankers)


def token_ids(ranker, chat) -> list[int]:
    text = ranker.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return ranker.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def logp_after(ranker, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token by one forward without cache, mask or padding."""
    return ranker.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def plain_letters(ranker, history, items, turns: int) -> list[float]:
    """Letters' log-probabilities among themselves; each turn is a chat of its own, rendered and read from its start."""
    texts, total = ranker.texts, dict.fromkeys(range(len(items)), 0.0)
    letters = [ranker.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS[: len(items)]]
    for turn in range(turns):
        order = [*range(turn, len(items)), *range(turn)]
        chat = letter_prompt([texts[i] for i in history[-20:]], [texts[items[place]] for place in order])
        logp_N = logp_after(ranker, token_ids(ranker, chat))[letters].log_softmax(-1)
        for letter, place in enumerate(order):
            total[place] += float(logp_N[letter]) / turns
    return list(total.values())


def plain_sid(ranker, history, item) -> float:
    """The sid's tokens one by one, each by a forward of everything before it."""
    ids, total = token_ids(ranker, recommend_prompt([ranker.texts[i] for i in history[-20:]])), 0.0
    for token in ranker.tokenizer(ranker.texts[item], add_special_tokens=False)["input_ids"]:
        total += float(logp_after(ranker, ids)[token])
        ids = [*ids, token]
    return total


def padded_batch(count: int, seed: int = 0):
    """Histories of unequal lengths, the longest longer than the prompt shows, and candidates for each."""
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(ITEMS)[:length] for length in (1, LONG, 5)]
    return histories, np.stack([rng.permutation(ITEMS)[:count] for _ in histories])


def test_the_chat_has_a_line_a_candidate():
    (message,) = letter_prompt(["<a_1>", "<a_2>"], ["<a_3>", "<a_4>"])
    assert message == {
        "role": "user",
        "content": "History: <a_1><a_2>\nA: <a_3>\nB: <a_4>\nLetter of the next item?",
    }
    shown = letter_prompt([f"<a_{code}>" for code in range(30)], ["<a_99>"] * 10)[0]["content"]
    assert "<a_9>" not in shown and "<a_10>" in shown and "\nJ: " in shown


@pytest.mark.parametrize("count", [2, 5, 10])
def test_letters_are_those_of_a_plain_forward(world, count):
    histories, items_BN = padded_batch(count, seed=count)
    for score, turns in (("letters", 1), ("rotations", count)):
        ranker = world.rankers[score]
        expected = [plain_letters(ranker, *row, turns) for row in zip(histories, items_BN, strict=True)]
        found_BN = ranker.scores(histories, items_BN)
        np.testing.assert_allclose(found_BN, expected, atol=1e-4)
        assert np.ptp(found_BN, axis=1).min() > 1e-2, "scores that hardly differ would prove nothing"


def test_sids_are_those_of_a_plain_forward(world):
    ranker = world.rankers["sid"]
    histories, items_BN = padded_batch(6)
    expected = [[plain_sid(ranker, h, item) for item in row] for h, row in zip(histories, items_BN, strict=True)]
    np.testing.assert_allclose(ranker.scores(histories, items_BN), expected, atol=1e-4)


def test_sids_of_one_level_are_read_off_the_prompt(world):
    table = SidTable(np.arange(ITEMS)[:, None], (ITEMS,))
    ranker = LetterRank(world.retrieve, *make_ranker_parts(table), "sid")
    histories, items_BN = padded_batch(4)
    expected = [[plain_sid(ranker, h, item) for item in row] for h, row in zip(histories, items_BN, strict=True)]
    np.testing.assert_allclose(ranker.scores(histories, items_BN), expected, atol=1e-4)


def test_rotated_scores_do_not_depend_on_where_the_list_begins(world):
    histories, items_BN = padded_batch(7)
    rolled = {}
    for score in ("rotations", "letters"):
        scores = world.rankers[score].scores
        turned = [np.roll(scores(histories, np.roll(items_BN, -t, axis=1)), t, axis=1) for t in range(7)]
        rolled[score] = np.ptp(turned, axis=0).max()
    assert rolled["rotations"] < 1e-4 < 1e-2 < rolled["letters"]


def test_a_candidates_sid_score_does_not_see_the_others(world):
    histories, items_BN = padded_batch(5)
    changed_BN = items_BN.copy()
    changed_BN[:, 1] = [next(i for i in range(ITEMS) if i not in row) for row in items_BN]
    others = [0, 2, 3, 4]
    before, after = (world.rankers["sid"].scores(histories, items) for items in (items_BN, changed_BN))
    np.testing.assert_allclose(before[:, others], after[:, others], atol=1e-5)
    assert (np.abs(before[:, 1] - after[:, 1]) > 1e-3).all()
    before, after = (world.rankers["letters"].scores(histories, items) for items in (items_BN, changed_BN))
    assert (np.abs(before - after)[:, others] > 1e-5).any(), "letters are compared with each other"


def test_duplicates_tie_under_sids_and_keep_their_places(world):
    histories, items_BN = padded_batch(4)
    items_BN[:, 3] = items_BN[:, 0]
    score_BN = world.rankers["sid"].scores(histories, items_BN)
    np.testing.assert_allclose(score_BN[:, 3], score_BN[:, 0], atol=1e-5)
    # The letters tell equal candidates apart by their places, as in the plain forward.
    ranker = world.rankers["rotations"]
    expected = [plain_letters(ranker, *row, 4) for row in zip(histories, items_BN, strict=True)]
    np.testing.assert_allclose(ranker.scores(histories, items_BN), expected, atol=1e-4)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("m", [2, 10, 13])
def test_the_first_ten_are_reordered_and_the_rest_follow(world, score, m):
    examples, ranker, shown = world.split.test.subset(np.arange(12)), world.rankers[score], min(m, 10)
    found, answer = world.retrieve.answer(examples, m), ranker.answer(examples, m, batch_size=7)
    assert (answer.items_EK.dtype, answer.scores_EK.dtype, answer.cost_E.dtype) == (np.int32, np.float32, np.int64)
    assert answer.items_EK.shape == answer.scores_EK.shape == (len(examples), m)
    np.testing.assert_array_equal(answer.items_EK[:, shown:], found.items_EK[:, shown:])
    assert (answer.items_EK[:, :shown] != found.items_EK[:, :shown]).any()
    for row in range(len(examples)):
        own = ranker.scores([examples.history(row)], found.items_EK[row : row + 1, :shown])[0]
        order = sorted(range(shown), key=lambda place: -own[place])
        assert answer.items_EK[row, :shown].tolist() == found.items_EK[row, order].tolist()
        np.testing.assert_allclose(answer.scores_EK[row, :shown], own[order], atol=1e-4)
    assert (np.diff(answer.scores_EK) <= 1e-6).all() and np.isfinite(answer.scores_EK).all()
    drops = -np.diff(found.scores_EK[:, shown:], axis=1)
    np.testing.assert_allclose(-np.diff(answer.scores_EK[:, shown:], axis=1), drops, atol=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_one_candidate_needs_no_model(world, score):
    examples, ranker = world.split.test, world.rankers[score]
    found, answer = world.retrieve.answer(examples, 1), ranker.answer(examples, 1)
    np.testing.assert_array_equal(answer.items_EK, found.items_EK)
    np.testing.assert_array_equal(answer.scores_EK, found.scores_EK)
    np.testing.assert_array_equal(answer.cost_E, found.cost_E)
    for count in (1, 11):
        with pytest.raises(ValueError, match=f"takes 2 to 10 candidates, got {count}"):
            ranker.scores([examples.history(0)], np.arange(count)[None])


def test_the_cost_by_hand(world):
    """The prompt once, without its head where letters branch off; then what each candidate or rotation adds."""
    examples, m = world.split.test, 12
    for score, ranker in world.rankers.items():
        answer, cost = ranker.answer(examples, m), ranker.lm_cost
        body, head, key = 2 * cost.matmul_parameters, 2 * cost.head_parameters, 4 * cost.layers * cost.width
        for row, length in enumerate(examples.lengths_E.tolist()):
            texts = [ranker.texts[i] for i in examples.history(row)[-20:]]
            if score == "sid":
                prompt = len(token_ids(ranker, recommend_prompt(texts)))
                attended = prompt * (prompt + 1) // 2 + 10 * (prompt + 1 + prompt + 2)
                spent = body * (prompt + 10 * (LEVELS - 1)) + head * (1 + 10 * (LEVELS - 1)) + key * attended
            else:
                turns = 10 if score == "rotations" else 1
                ids = token_ids(ranker, letter_prompt(texts, ranker.texts[:10]))
                prompt = [i for i, token in enumerate(ids) if token in ranker.tokens_NL][LEVELS * len(texts)]
                tail = len(ids) - prompt
                attended = prompt * (prompt + 1) // 2 + turns * sum(prompt + i + 1 for i in range(tail))
                spent = body * (prompt + turns * tail) + head * turns + key * attended
            assert answer.cost_E[row] == ranker.cost(length, m) == world.retrieve.cost(length) + spent


def test_one_reading_of_the_letters_costs_a_prompt(world):
    ranker = world.rankers["letters"]
    ids = token_ids(ranker, letter_prompt(ranker.texts[:4], ranker.texts[:10]))
    assert ranker.cost(4, 10) == world.retrieve.cost(4) + ranker.lm_cost.prefill(len(ids))
    assert ranker.cost(4, 10) == ranker.cost(4, 50), "what stands behind the first ten is not read"


def test_what_cannot_be_ranked_is_refused(world, monkeypatch):
    model, tokenizer, table = world.parts
    with pytest.raises(ValueError, match="score must be one of letters, rotations, sid; got 'digits'"):
        LetterRank(world.retrieve, *world.parts, "digits")
    stream = "{% for message in messages %}{{ message.content.rpartition(': ')[2] }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", stream)
    LetterRank(world.retrieve, model, tokenizer, table, "sid")
    with pytest.raises(ValueError, match="template drops the candidates"):
        LetterRank(world.retrieve, model, tokenizer, table, "letters")
    # Behind a prompt that ends in half a word a letter melts into it.
    word = TEMPLATE.replace("<|im_start|>assistant\n", "his")
    merged = train_tokenizer(["hisA hisA hisA"], 300)
    merged.add_tokens(table.tokens())
    merged.chat_template = word
    with pytest.raises(ValueError, match="does not write the letter A as one token"):
        LetterRank(world.retrieve, model, merged, table, "rotations")


@pytest.mark.parametrize("score", SCORES)
def test_it_loads_from_its_folder(world, tmp_path, score):
    save_extended(tmp_path, *world.parts)
    loaded, examples = LetterRank.load(tmp_path, world.retrieve, score), world.split.validation.subset(np.arange(5))
    before, after = world.rankers[score].answer(examples, 11), loaded.answer(examples, 11)
    np.testing.assert_array_equal(before.items_EK, after.items_EK)
    np.testing.assert_array_equal(before.cost_E, after.cost_E)
    other = SidTable(world.parts[2].codes_NL[::-1], world.parts[2].level_sizes)
    other.save(tmp_path / "sid_table")
    with pytest.raises(ValueError, match="was built on SID table"):
        LetterRank.load(tmp_path, world.retrieve, score)


def lists_with_targets(split, seed: int = 0, width: int = 12) -> np.ndarray:
    """Lists of half A: the target at a place that goes round, beyond the first ten for some."""
    rng, examples = np.random.default_rng(seed), split.routing("A")
    lists = []
    for row, target in enumerate(examples.targets_E.tolist()):
        others = [item for item in rng.permutation(ITEMS).tolist() if item != target][:width]
        others[row % width] = target
        lists.append(others)
    return np.array(lists, dtype=np.int32)


def test_rows_answer_with_the_targets_letter(world):
    split, texts = world.split, world.rankers["sid"].texts
    lists_EK, examples = lists_with_targets(split), split.routing("A")
    rows = letter_rows(split, lists_EK, texts, seed=3)
    kept = [row for row in range(len(examples)) if row % 12 < 10]
    assert len(kept) < len(examples) and set(rows) == {"messages", "user", "position"}
    assert rows["user"] == examples.user_ids_E[kept].tolist() and rows["position"] == examples.position_E[kept].tolist()
    for row, (question, answer) in zip(kept, rows["messages"], strict=True):
        shown = [line.split(": ")[1] for line in question["content"].split("\n")[1:-1]]
        assert sorted(shown) == sorted(texts[item] for item in lists_EK[row, :10])
        assert shown[LETTERS.index(answer["content"])] == texts[examples.targets_E[row]]
        assert [question] == letter_prompt([texts[item] for item in examples.history(row)], shown)


def test_letters_are_not_the_retrievers_ranks(world):
    split, texts = world.split, world.rankers["sid"].texts
    # The target first in every list: unshuffled, every answer would be A.
    lists_EK = lists_with_targets(split)
    for row, items in enumerate(lists_EK):
        items[[0, row % 12]] = items[[row % 12, 0]]
    rows = [letter_rows(split, lists_EK, texts, seed) for seed in (0, 0, *range(1, 25))]
    assert rows[0] == rows[1] != rows[2]
    answers = [messages[1]["content"] for part in rows[1:] for messages in part["messages"]]
    share_N = np.array([answers.count(letter) for letter in LETTERS]) / len(answers)
    assert len(answers) > 200 and share_N.min() > 0.05 and share_N.max() < 0.16


def test_rows_read_neither_half_b_nor_what_comes_after(world):
    split, texts = world.split, world.rankers["sid"].texts
    lists_EK, sequences = lists_with_targets(split), split.sequences
    rows = letter_rows(split, lists_EK, texts, seed=0)
    in_a = set(split.routing("A").user_ids_E.tolist())
    assert rows["user"] and set(rows["user"]) <= in_a and len(in_a) < len(split.test)
    histories = [sequences.items(user).tolist() for user in range(len(sequences))]
    for user, items in enumerate(histories):
        read = int(split.fit_length_U[user]) + 1 if user in in_a else 0
        items[read:] = [(item + 7) % ITEMS for item in items[read:]]
    other = make_split(Sequences.from_lists(histories), "roles")
    assert letter_rows(other, lists_EK, texts, seed=0) == rows
    with pytest.raises(ValueError, match=r"lists for the .* routing targets of half A"):
        letter_rows(split, np.concatenate([lists_EK, lists_EK]), texts, seed=0)


def test_rows_without_a_right_letter_are_left_out(world):
    split = world.split
    examples, texts = split.routing("A"), [f"<a_{item}>" for item in range(ITEMS)]
    targets_E = examples.targets_E
    short = np.full((len(examples), 5), -1, dtype=np.int32)
    short[:, 0] = targets_E
    assert letter_rows(split, short, texts, seed=0)["messages"] == [], "nothing to choose from"
    short[:, 1] = (targets_E + 1) % ITEMS
    rows = letter_rows(split, short, texts, seed=0)
    assert len(rows["messages"]) == len(examples)
    assert all("\nB: " in chat["content"] and "\nC: " not in chat["content"] for chat, _ in rows["messages"])
    assert letter_rows(split, short, ["<a_0>"] * ITEMS, seed=0)["messages"] == [], "two letters would be right"
