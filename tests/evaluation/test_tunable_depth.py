"""A recommender of tunable depth: its lists against scores by hand, its thoughts counted, its draws its own."""

import copy
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recllm.data.interactions import Sequences
from recllm.data.prompts import assistant, reasoner_prompt
from recllm.data.splits import Examples, load_split
from recllm.evaluation.recommender import Recommender
from recllm.evaluation.tunable_depth import (
    Preamble,
    RecommendationEvaluator,
    has_thought,
    read_preamble,
    recommendation_evaluator,
)
from recllm.evaluation.tunable_depth_options import RecommendationOptions, read_checked
from recllm.merging.evaluators import load_evaluator, read_options
from recllm.merging.space import ENDS, Point, Space
from recllm.merging.sweep import plan_sweep, run_sweep
from recllm.sid.vocabulary import save_extended, sid_token_ids

worlds = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).with_name("recommender_worlds.py")), run_name="recommender_worlds")
)
THINK = 9
THOUGHT = "<think>next item</think>"


def fitted(table, dataset, steps: int = 60):
    """A model that thinks about the histories of even length and answers the others at once, more or less."""
    model, tokenizer = worlds.make_model(table, width=32)
    examples = load_split(dataset).validation
    texts = [table.text(item) for item in range(len(table))]
    chats = []
    for row in range(len(examples)):
        history, target = examples.history(row).tolist(), int(examples.targets_E[row])
        answer = texts[target] if len(history) % 2 else THOUGHT + texts[target]
        chats.append([*reasoner_prompt([texts[item] for item in history]), assistant(answer)])
    rendered = tokenizer.apply_chat_template(chats, tokenize=False)
    batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    labels_BT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=labels_BT).loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["own sids", "shared sids"])
def world(request, tmp_path_factory, one_thread):
    """`options` of an evaluator, a `model` that thinks about some users, its `tokenizer` and its `table`."""
    folder = tmp_path_factory.mktemp("depth")
    table = worlds.make_table(shared=request.param)
    table.save(folder / "table")
    dataset = worlds.write_dataset(folder / "data")
    model, tokenizer = fitted(table, dataset)
    # Beams for the whole catalogue: the search is then exact.
    options = {"dataset": str(dataset), "sid_table": str(folder / "table"), "beams": 60, "think_tokens": THINK}
    return SimpleNamespace(options=options, model=model, tokenizer=tokenizer, table=table)


def ask(world, model=None, **changes):
    return recommendation_evaluator(world.options | changes)(model or world.model, world.tokenizer)


def equal(one, other) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@torch.no_grad()
def scores_by_hand(world, context: list[int]) -> np.ndarray:
    """Log-probability of every item's sid over the codes that may follow, from a full pass over context and sid."""
    levels, sids = sid_token_ids(world.tokenizer, world.table), [tuple(row) for row in world.table.codes_NL.tolist()]
    tokens = [[*context, *(int(ids[code]) for ids, code in zip(levels, sid, strict=True))] for sid in sids]
    logits_NTV = world.model(torch.tensor(tokens)).logits[:, len(context) - 1 : -1]
    scores = []
    for sid, logits_LV in zip(sids, logits_NTV, strict=True):
        total = 0.0
        for level, code in enumerate(sid):
            may_follow = sorted({other[level] for other in sids if other[:level] == sid[:level]})
            share_A = logits_LV[level][[int(levels[level][other]) for other in may_follow]].log_softmax(0)
            total += float(share_A[may_follow.index(code)])
        scores.append(total)
    return np.array(scores)


def rank_by_hand(scores_N: np.ndarray, target: int, seen: set[int]) -> float:
    rivals = [item for item in range(len(scores_N)) if item != target and item not in seen]
    gap_R = scores_N[rivals] - scores_N[target]
    return float((gap_R > 1e-4).sum() + (np.abs(gap_R) <= 1e-4).sum() / 2)


def metric_by_hand(name: str, rank: float) -> float:
    """The metric, linear between whole places."""

    def whole(place: int) -> float:
        if place >= 10:
            return 0.0
        return 1 / math.log2(place + 2) if name == "ndcg@10" else 1.0

    low = math.floor(rank)
    return whole(low) + (rank - low) * (whole(low + 1) - whole(low))


@pytest.mark.parametrize("metric", ["ndcg@10", "recall@10"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_values_tokens_and_thoughts_by_hand(world, metric, exclude_seen):
    evaluator = recommendation_evaluator(
        world.options | {"metric": metric, "exclude_seen": exclude_seen, "temperature": 0.0, "samples": 1, "users": 12}
    )
    samples = evaluator(world.model, world.tokenizer)
    examples, tokenizer = evaluator.examples, world.tokenizer
    assert len(examples) == 12 and 0 < samples.thinks_QS.mean() < 1, "some users are to be thought about, not all"
    for q in range(len(examples)):
        history, target = examples.history(q).tolist(), int(examples.targets_E[q])
        chat = reasoner_prompt([world.table.text(item) for item in history])
        prompt = tokenizer.apply_chat_template([chat], add_generation_prompt=True, return_dict=False)[0]
        written = world.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=THINK, do_sample=False
        )[0, len(prompt) :]
        said = tokenizer.decode(written).partition("<a_")[0].replace("<|im_end|>", "").replace("<|endoftext|>", "")
        if "<think>" in said and "</think>" not in said:
            said += "</think>"
        context = [*prompt, *tokenizer(said, add_special_tokens=False)["input_ids"]]
        assert samples.tokens_QS[q, 0] == len(context) - len(prompt) + world.table.levels + 1
        assert samples.thinks_QS[q, 0] == ("</think>" in said and said != "<think></think>")
        rank = rank_by_hand(scores_by_hand(world, context), target, set(history) if exclude_seen else set())
        assert samples.value_QS[q, 0] == pytest.approx(metric_by_hand(metric, rank), abs=1e-5)


def test_items_behind_one_sid_share_a_rank_across_the_end_of_the_list(world):
    """A list of ten would cut through them; what is behind the sid that holds the tenth place counts whole."""
    items = len(world.table)
    histories = Sequences.from_lists([[0, item] for item in range(items)])
    examples = Examples(np.arange(items), np.ones(items, dtype=np.int64), histories)
    options = read_checked(RecommendationOptions, world.options | {"metric": "recall@10", "exclude_seen": False})
    evaluator = RecommendationEvaluator(options, world.table, examples)
    recommender, cut = Recommender(world.model, world.tokenizer, world.table), 0
    for token in range(16):
        scores_N = scores_by_hand(world, [token])
        ranks = [rank_by_hand(scores_N, target, set()) for target in range(items)]
        values_QS = evaluator.values(recommender, [[token]] * items, [[Preamble([], False)]] * items)
        assert values_QS[:, 0] == pytest.approx([metric_by_hand("recall@10", rank) for rank in ranks], abs=1e-5)
        cut += sum(ranks.count(rank) == 3 for rank in (9, 10))
    assert (cut > 0) == world.table.shared


def test_a_longer_thought_is_a_longer_completion(world):
    samples = ask(world, temperature=0.0, samples=1)
    thought = len(world.tokenizer(THOUGHT)["input_ids"])
    answer = world.table.levels + 1
    assert set(samples.tokens_QS[~samples.thinks_QS].tolist()) == {answer}
    assert answer + thought in samples.tokens_QS[samples.thinks_QS]


def test_a_point_depends_on_no_point_before_it(world):
    evaluator = recommendation_evaluator(world.options | {"temperature": 2.0, "samples": 3})
    other = copy.deepcopy(world.model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    first = evaluator(world.model, world.tokenizer)
    torch.manual_seed(99)
    assert not equal(evaluator(other, world.tokenizer), first)
    assert equal(evaluator(world.model, world.tokenizer), first)


def test_the_batch_and_the_other_users_change_nothing(world):
    asked = {"temperature": 2.0, "samples": 3}
    whole = ask(world, **asked)
    assert len(np.unique(whole.tokens_QS)) > 2, "draws that differ"
    for batch_size in (1, 7):
        assert equal(ask(world, batch_size=batch_size, **asked), whole)
    users = recommendation_evaluator(world.options | asked).examples.user_E
    few = recommendation_evaluator(world.options | asked | {"users": 5})
    part = few(world.model, world.tokenizer)
    rows = np.searchsorted(users, few.examples.user_E)
    assert len(rows) == 5 and users[rows].tolist() == few.examples.user_E.tolist()
    for name in vars(whole):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[rows])


def test_more_samples_leave_the_first_alone_and_another_seed_draws_others(world):
    two, four = (ask(world, temperature=2.0, samples=samples) for samples in (2, 4))
    assert np.array_equal(two.tokens_QS, four.tokens_QS[:, :2]) and np.array_equal(two.value_QS, four.value_QS[:, :2])
    assert not np.array_equal(ask(world, temperature=2.0, seed=1).tokens_QS, two.tokens_QS)
    sure = ask(world, temperature=0.0)
    assert np.array_equal(sure.tokens_QS[:, 0], sure.tokens_QS[:, 1])


def test_the_ends_of_a_sweep_are_its_parents(world, tmp_path):
    other = copy.deepcopy(world.model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.9)
    parents = {"direct": world.model, "thinking": other}
    for role, model in parents.items():
        save_extended(tmp_path / role, model, world.tokenizer, world.table)
    folders = {name: world.options[name] for name in ("dataset", "sid_table")}
    evaluator = load_evaluator("recommendation", read_options("{users: 10, think_tokens: 9}", folders))
    grid = Space.of([Point.of("linear", strength=0.5)])
    addresses = {role: str(tmp_path / role) for role in parents}
    swept = run_sweep(plan_sweep(tmp_path / "sweep", addresses, grid, evaluator))
    assert len(swept.records) == 3
    for role, model in parents.items():
        assert equal(swept.samples(ENDS[role].key), evaluator(model, world.tokenizer))
    assert not equal(swept.samples(ENDS["direct"].key), swept.samples(ENDS["thinking"].key))


def test_the_role_says_whose_targets_are_asked_for(world):
    by_role = {role: recommendation_evaluator(world.options | {"role": role}) for role in ("validation", "test")}
    split = load_split(world.options["dataset"])
    for role, evaluator in by_role.items():
        assert evaluator.examples.targets_E.tolist() == getattr(split, role).targets_E.tolist()
    assert by_role["validation"].fingerprint != by_role["test"].fingerprint


def test_a_merge_without_a_number_is_worth_nothing(world):
    broken = copy.deepcopy(world.model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match="not finite"):
        samples = ask(world, broken)
    assert (samples.value_QS == 0).all()


def test_a_model_of_another_table_is_refused(world):
    stranger, tokenizer = worlds.make_model(worlds.make_table(seed=5))
    with pytest.raises(ValueError, match="speaks SID table"):
        recommendation_evaluator(world.options)(stranger, tokenizer)


def test_the_fingerprint_is_of_all_that_may_change_a_result(world, tmp_path):
    mark = recommendation_evaluator(world.options).fingerprint
    changes = {
        **{"users": 7, "samples": 3, "metric": "recall@10", "think_tokens": 5, "temperature": 0.5, "top_p": 0.5},
        **{"beams": 30, "exclude_seen": False, "seed": 1, "role": "test"},
    }
    marks = [recommendation_evaluator(world.options | {name: value}).fingerprint for name, value in changes.items()]
    assert len({mark, *marks}) == len(changes) + 1
    assert recommendation_evaluator(world.options | {"batch_size": 3}).fingerprint == mark
    same = worlds.write_dataset(tmp_path / "same")
    assert recommendation_evaluator(world.options | {"dataset": str(same)}).fingerprint == mark
    other = worlds.write_dataset(tmp_path / "other", worlds.histories(seed=1))
    assert recommendation_evaluator(world.options | {"dataset": str(other)}).fingerprint != mark


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 2}, "unknown option 'sample'; did you mean samples"),
        ({3: 2}, "unknown option 3"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"samples": 2.5}, "samples must be of type int, got 2.5"),
        ({"samples": True}, "samples must be of type int, got True"),
        ({"exclude_seen": "no"}, "exclude_seen must be of type bool"),
        ({"users": None}, "users must be of type int"),
        ({"role": "routing"}, "role must be validation or test"),
        ({"metric": "ndcg"}, "metric must be ndcg@10 or recall@10"),
        ({"beams": 9}, "beams must be at least 10"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature must be a"),
        ({"top_p": 0.0}, "top_p must lie above 0"),
        ({"top_p": 1.5}, "top_p must lie above 0"),
    ],
)
def test_a_wrong_option_is_named(world, changes, message):
    with pytest.raises(ValueError, match=message):
        recommendation_evaluator(world.options | changes)


@pytest.mark.parametrize("name", ["dataset", "sid_table"])
def test_a_missing_folder_is_named(world, name):
    rest = {key: value for key, value in world.options.items() if key != name}
    with pytest.raises(ValueError, match=f"{name} is missing"):
        recommendation_evaluator(rest)


def test_a_table_of_another_catalogue_is_refused(world, tmp_path):
    worlds.make_table(items=20).save(tmp_path / "small")
    with pytest.raises(ValueError, match="small lacks"):
        recommendation_evaluator(world.options | {"sid_table": str(tmp_path / "small")})


@pytest.mark.parametrize(
    ("written", "kept", "thinks"),
    [
        ("<a_1><b_2>", "", False),
        ("<|im_end|>", "", False),
        ("<think>next</think><a_1>", "<think>next</think>", True),
        ("<think></think><a_1>", "<think></think>", False),
        ("<think>\n\n</think>\n\n<a_1>", "<think>\n\n</think>\n\n", False),
        # a sid inside a thought is a part of it
        ("<think>not <a_1></think><a_0>", "<think>not <a_1></think>", True),
        # open where it ends, or where the budget does
        ("<think>next<|im_end|>", "<think>next</think>", True),
        ("<think>" + "next" * 40, None, True),
        # the prompt opened it
        ("next</think><a_1>", "next</think>", True),
        ("</think><a_1>", "</think>", False),
        # no thought, only words
        ("next<a_1>", "next", False),
        # a second one
        ("<think>next</think><think>item</think><a_1>", "<think>next</think><think>item</think>", True),
        ("<b_2><a_1>", "<b_2>", False),
    ],
)
def test_what_was_said_before_the_answer(world, written, kept, thinks):
    tokenizer = world.tokenizer
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    starts = set(sid_token_ids(tokenizer, world.table)[0].tolist())
    said = read_preamble(ids, tokenizer, starts, budget=30)
    assert said.thinks == thinks
    if kept is None:
        assert len(said.tokens) == 31 and tokenizer.decode(said.tokens).endswith("</think>")
    else:
        assert tokenizer.decode(said.tokens) == kept


def test_a_thought_has_words():
    assert has_thought("<think>a</think>b") and has_thought("<think>a") and has_thought("a</think>")
    assert not any(map(has_thought, ["", "a", "<think>", "<think> \n</think>b", "a<think></think>b", "</think>a"]))
