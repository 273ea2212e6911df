import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from recllm.backbones.din import DIN
from recllm.backbones.ranker import NUM_FEATURES, CandidateFeatures
from recllm.backbones.sasrec import SASRec
from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import make_split
from recllm.decoding.beam import recommend_by_beam
from recllm.metrics.ranking import ndcg_at_k, rank_in_list
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import extend, save_extended
from recllm.tools import build, cache
from recllm.tools.rank import Rank
from recllm.tools.reason import Reason
from recllm.tools.retrieve import Retrieve
from recllm.training.tiny_lm import build_model, train_tokenizer

ITEMS, USERS = 36, 30
NAMES = ["Drama", "Comedy", "War"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_split_and_catalog():
    rng = np.random.default_rng(0)
    histories = [rng.permutation(ITEMS)[: rng.integers(2, 18)].tolist() for _ in range(USERS)]
    categories = [rng.permutation(NAMES)[: rng.integers(3)].tolist() for _ in range(ITEMS)]
    frame = pl.DataFrame(
        {
            "item_id": np.arange(ITEMS, dtype=np.int32),
            "title": [f"The film of item {item}" for item in range(ITEMS)],
            "categories": categories,
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    return make_split(Sequences.from_lists(histories), "roles"), Catalog(frame)


def make_language_model(catalog: Catalog):
    tokenizer = train_tokenizer([*catalog.titles, "History: The user wants Drama, Comedy, War."], 280)
    tokenizer.chat_template = TEMPLATE
    model = build_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2, max_length=256, seed=0)
    codes_NL = np.stack([np.arange(ITEMS) // 12, np.arange(ITEMS) % 4, np.arange(ITEMS) // 4 % 3], axis=1)
    table = SidTable(codes_NL, (3, 4, 3))
    extend(model, tokenizer, table, catalog.titles)
    return model, tokenizer, table


@pytest.fixture(scope="module")
def world():
    """A tiny world with an untrained model of each kind."""
    split, catalog = make_split_and_catalog()
    torch.manual_seed(0)
    retrieve = Retrieve(SASRec(ITEMS, max_len=6, hidden_dim=8))
    model = DIN(ITEMS, NUM_FEATURES, embedding_dim=6, attention_hidden=4, max_len=5)
    rank = Rank(retrieve, model, CandidateFeatures.from_fitting_fold(split, catalog))
    reason = Reason(*make_language_model(catalog), think_tokens=5)
    return SimpleNamespace(split=split, catalog=catalog, retrieve=retrieve, rank=rank, reason=reason)


def check_answer(answer, examples, k: int) -> None:
    """What holds for any tool."""
    assert answer.items_EK.shape == answer.scores_EK.shape == (len(examples), k)
    assert (answer.items_EK.dtype, answer.scores_EK.dtype) == (np.int32, np.float32)
    assert answer.cost_E.shape == answer.margin_E.shape == (len(examples),)
    assert answer.cost_E.dtype == np.int64 and (answer.cost_E > 0).all()
    for row in range(len(examples)):
        items = [item for item in answer.items_EK[row].tolist() if item >= 0]
        assert answer.items_EK[row].tolist() == items + [-1] * (k - len(items)), "padding comes last"
        assert len(items) == len(set(items)) and max(items, default=0) < ITEMS
        assert not set(items) & examples.seen(row), "nothing that the user has seen"
        scores = answer.scores_EK[row]
        assert np.isfinite(scores[: len(items)]).all() and np.isneginf(scores[len(items) :]).all()
        assert (np.diff(scores[: len(items)]) <= 0).all()


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("tool", ["retrieve", "rank", "reason"])
def test_every_tool_answers_alike(world, tool, k):
    examples = world.split.test
    assert len(examples) > 10
    check_answer(getattr(world, tool).answer(examples, k), examples, k)


@pytest.mark.parametrize("tool", ["retrieve", "rank", "reason"])
def test_an_answer_does_not_depend_on_the_other_examples(world, tool):
    examples = world.split.validation
    whole = getattr(world, tool).answer(examples, 8)
    order = np.random.default_rng(1).permutation(len(examples))[:7]
    part = getattr(world, tool).answer(examples.subset(order), 8)
    np.testing.assert_array_equal(part.items_EK, whole.items_EK[order])
    np.testing.assert_allclose(part.scores_EK, whole.scores_EK[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(part.cost_E, whole.cost_E[order])


def test_retrieve_sorts_the_catalogue_by_the_models_scores(world):
    examples, model = world.split.test, world.retrieve.model
    assert not model.training
    answer = world.retrieve.answer(examples, 10)
    for row in range(len(examples)):
        history = examples.history(row)[-6:].astype(np.int64) + 1
        scores = model.score(torch.from_numpy(history)[None])[0].tolist()
        left = [item for item in range(ITEMS) if item not in examples.seen(row)]
        assert answer.items_EK[row].tolist() == sorted(left, key=lambda item: -scores[item])[:10]
        assert answer.cost_E[row] == model.flops(min(examples.lengths_E[row], 6))


def test_rank_reorders_what_retrieve_found_and_pays_for_it(world):
    examples = world.split.test
    found, answer = world.retrieve.answer(examples, 12), world.rank.answer(examples, 12)
    np.testing.assert_array_equal(np.sort(answer.items_EK, axis=1), np.sort(found.items_EK, axis=1))
    assert (answer.items_EK != found.items_EK).any()
    for row, length in enumerate(examples.lengths_E.tolist()):
        assert answer.cost_E[row] == found.cost_E[row] + world.rank.model.flops(length, 12)
    assert (world.rank.answer(examples, 6).cost_E < answer.cost_E).all(), "fewer candidates cost less"
    assert not world.rank.model.training


def thought_ids(reason: Reason, prompt: str) -> list[int]:
    """Greedy decoding by hand, without a cache: what the model writes up to its budget or a closing token."""
    tokenizer, ends = reason.tokenizer, {reason.tokenizer.convert_tokens_to_ids("</think>")}
    ends.add(tokenizer.eos_token_id)
    ids, written = tokenizer(prompt, add_special_tokens=False)["input_ids"], []
    with torch.no_grad():
        for _ in range(reason.think_tokens):
            token = int(reason.model(torch.tensor([ids + written])).logits[0, -1].argmax())
            written.append(token)
            if token in ends:
                break
    return written


def test_reason_thinks_then_searches(world):
    examples, reason = world.split.test, world.reason
    answer = reason.answer(examples, ITEMS)
    rows = np.arange(len(examples))
    for row, prompt in zip(rows[:6], reason.prompts(examples, rows)[:6], strict=True):
        recent = "".join(reason.table.text(int(item)) for item in examples.history(row)[-20:])
        assert prompt == f"<|im_start|>user\nHistory: {recent}<|im_end|>\n<|im_start|>assistant\n"
        written = thought_ids(reason, prompt)
        (thought,), (count,) = reason.think([prompt])
        assert thought.endswith("</think>") and thought.count("</think>") == 1
        assert count == len(written)
        ids = reason.tokenizer(prompt + thought, add_special_tokens=False)["input_ids"]
        items_1K, scores_1K = recommend_by_beam(reason.model, [ids], reason.trie, ITEMS, normalisation="trie")
        fresh = ~np.isin(items_1K[0].numpy(), examples.history(row))
        expected = items_1K[0].numpy()[fresh]
        assert answer.items_EK[row, : len(expected)].tolist() == expected.tolist(), "every unseen item, best first"
        assert (answer.items_EK[row, len(expected) :] == -1).all()
        np.testing.assert_allclose(answer.scores_EK[row, : len(expected)], scores_1K[0].numpy()[fresh], atol=1e-4)
        context, cost = len(ids), reason.lm_cost
        prompt_tokens = context - count
        spent = cost.prefill(prompt_tokens) + cost.decode(count, prompt_tokens) + ITEMS * cost.decode(2, context)
        assert answer.cost_E[row] == spent


def test_how_thoughts_end(world, monkeypatch):
    """Closed by the model, given up with an end of turn, and cut at the budget."""
    reason = world.reason
    tokenizer = reason.tokenizer
    word = tokenizer("Drama", add_special_tokens=False)["input_ids"][:1]
    close, end, pad = tokenizer.convert_tokens_to_ids("</think>"), tokenizer.eos_token_id, tokenizer.pad_token_id
    assert len({close, end, pad}) == 3
    scripted = torch.tensor(
        [[*word, close, pad, pad, pad], [end, pad, pad, pad, pad], word * 5, [close, pad, pad, pad, pad]]
    )

    def generate(input_ids, attention_mask, max_new_tokens, do_sample, eos_token_id):
        assert max_new_tokens == 5 and not do_sample and set(eos_token_id) == {close, end}
        return torch.cat([input_ids, scripted], dim=1)

    monkeypatch.setattr(reason.model, "generate", generate)
    thoughts, written = reason.think(["History: "] * 4)
    text = tokenizer.decode(word)
    assert thoughts == [f"{text}</think>", "</think>", f"{text * 5}</think>", "</think>"]
    assert written == [2, 1, 5, 1]


def test_a_longer_thought_and_a_wider_beam_cost_more(world):
    reason = world.reason
    assert reason._cost(30, 6, 10) > reason._cost(30, 5, 10) > 0, "writing a token costs its head too"
    assert reason._cost(30, 5, 11) > reason._cost(30, 5, 10)
    assert reason._cost(31, 5, 10) > reason._cost(30, 5, 10)


def write_dataset(folder, split, catalog, kind: str = "roles") -> None:
    folder.mkdir()
    catalog.frame.write_parquet(folder / "catalog.parquet")
    sequences = split.sequences
    pl.DataFrame(
        {
            "user_id": np.repeat(sequences.user_ids_U, sequences.lengths_U),
            "item_id": sequences.items_M,
            "timestamp": sequences.timestamps_M,
        }
    ).write_parquet(folder / "interactions.parquet")
    (folder / "dataset.json").write_text(json.dumps({"split": kind, "routing_items": 1, "split_seed": 0}))


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_dataset(root / "dataset", world.split, world.catalog)
    world.retrieve.model.save_pretrained(root / "sasrec")
    world.rank.model.save_pretrained(root / "din")
    save_extended(root / "reasoner", world.reason.model, world.reason.tokenizer, world.reason.table)
    return root


def test_tools_load_from_their_folders(world, folders):
    tools = build.load_tools(folders / "dataset", folders / "sasrec", folders / "din", folders / "reasoner", 5)
    examples = world.split.validation
    for name in cache.TOOL_NAMES:
        before, after = getattr(world, name).answer(examples, 7), getattr(tools, name).answer(examples, 7)
        np.testing.assert_array_equal(before.items_EK, after.items_EK)
        np.testing.assert_array_equal(before.cost_E, after.cost_E)
    assert tools.reason.tokenizer.padding_side == "left"


def test_tools_of_another_catalogue_or_split_are_refused(world, folders, tmp_path):
    SASRec(ITEMS + 1, max_len=6, hidden_dim=8).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"sasrec knows {ITEMS + 1} items, the catalogue of .* has {ITEMS}"):
        build.load_tools(folders / "dataset", tmp_path / "other", folders / "din", folders / "reasoner")
    write_dataset(tmp_path / "dataset", world.split, world.catalog, kind="leave_one_out")
    with pytest.raises(ValueError, match="need split: roles"):
        build.load_tools(tmp_path / "dataset", folders / "sasrec", folders / "din", folders / "reasoner")


def test_the_cache_holds_what_the_tools_answer(world, folders, tmp_path, monkeypatch):
    depth = 9
    for module in (build, cache):
        monkeypatch.setattr(module, "DEPTH", depth)
    metrics = build.build_cache(folders / "dataset", build.Tools(world.retrieve, world.rank, world.reason), tmp_path)
    assert {key.split("/")[1].rsplit("_", 1)[0] for key in metrics} == {"routing", "validation"}, (
        "no test target is read"
    )
    for role in cache.ROLES:
        found, examples = cache.ToolCache.load(tmp_path, role, world.split), cache.examples_of(world.split, role)
        for place, name in enumerate(cache.TOOL_NAMES):
            answer = getattr(world, name).answer(examples, depth)
            np.testing.assert_array_equal(found.items_PEK[place], answer.items_EK)
            np.testing.assert_allclose(found.margin_PE[place], answer.margin_E, atol=1e-4)
            np.testing.assert_array_equal(found.cost_PE[place], answer.cost_E)
            if role in ("routing", "validation"):
                ndcg_E = ndcg_at_k(rank_in_list(answer.items_EK, examples.targets_E), 10)
                assert metrics[f"{name}/{role}_ndcg@10"] == pytest.approx(ndcg_E.mean())
                assert metrics[f"{name}/{role}_cost"] == pytest.approx(answer.cost_E.mean())


@pytest.mark.parametrize("rankers", [{"din": None}, {"din": "a", "letter_ranker": "b"}])
def test_one_ranker_and_one_only(rankers):
    from recllm.tools.build import load_tools

    with pytest.raises(ValueError, match="din or by letter_ranker"):
        load_tools("dataset", "sasrec", reasoner="reasoner", **rankers)
