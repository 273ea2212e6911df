"""Recommenders against slow twins: every item scored token by token with plain forwards, ranks by hand."""

import io
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from recllm.backbones.fit import full_ranks
from recllm.backbones.sasrec import SASRec
from recllm.data.prompts import assistant, recommend_prompt
from recllm.data.splits import load_split, sampled
from recllm.evaluation.recommender import (
    Answers,
    Recommender,
    by_backbone,
    by_beam,
    by_exact,
    ranks_in_lists,
    ranks_of_scores,
)
from recllm.evaluation.recommender_metrics import (
    Targets,
    answer_metrics,
    backbone_metrics,
    beam_recall,
    evaluate_recommender,
    load_backbone,
    load_recommender,
)
from recllm.evaluation.report import print_recommenders, recommender_table
from recllm.provenance import RunRecord, fingerprint

ROOT = Path(__file__).resolve().parents[2]
_FILE = Path(__file__).with_name("recommender_worlds.py")
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
INF = math.inf
PROMPT = "The user has bought the following items, oldest first. Next item after: "


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    walks = worlds.histories(users=12)
    walks[0] = [3, 4, 5, 3, 4, 5]  # targets that were seen before
    walks[1] = [item % 18 for item in range(26)] + [25]  # longer than the prompt shows
    return worlds.write_dataset(tmp_path_factory.mktemp("world") / "dataset", walks)


@pytest.fixture(scope="module", params=[False, True], ids=["own sids", "shared sids"])
def world(request, dataset):
    """(recommender, targets) of a tiny random Qwen3."""
    table, targets = worlds.make_table(shared=request.param), Targets.load(dataset)
    return Recommender(*worlds.make_model(table), table, targets.events_N), targets


@torch.no_grad()
def twin_scores(recommender, history) -> list[float]:
    """Every item's log-probability over the codes that the catalogue uses at each level, one forward a code."""
    table, tokenizer = recommender.table, recommender.tokenizer
    shown = "".join(table.text(item) for item in history[-20:])
    text = f"<|im_start|>user\n{PROMPT}{shown}<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = tokenizer.get_vocab()
    used = [sorted(set(column)) for column in table.codes_NL.T.tolist()]
    known, scores = {}, []
    for item in range(len(table)):
        sid, score = table.sid(item), 0.0
        for level, code in enumerate(sid):
            if sid[:level] not in known:
                ids = [vocabulary[f"<{'abc'[at]}_{c}>"] for at, c in enumerate(sid[:level])]
                logits = recommender.model(torch.tensor([prompt + ids])).logits[0, -1]
                level_ids = [vocabulary[f"<{'abc'[level]}_{c}>"] for c in used[level]]
                known[sid[:level]] = dict(zip(used[level], logits[level_ids].log_softmax(0).tolist(), strict=True))
            score += known[sid[:level]][code]
        scores.append(score)
    return scores


def twin_ranks(scores, table, target, banned) -> tuple[float, float]:
    """Item-level and sid-level rank, by loops."""
    rivals = [item for item in range(len(table)) if item not in banned and item != target]
    same = [item for item in rivals if table.sid(item) == table.sid(target)]
    higher = [item for item in rivals if item not in same and scores[item] > scores[target]]
    return len(higher) + len(same) / 2, len({table.sid(item) for item in higher})


def twin(recommender, targets, exclude_seen):
    """Ranks and full orders of all examples."""
    examples, found = targets.examples, []
    for e in range(len(examples)):
        history, target = examples.history(e).tolist(), int(examples.targets_E[e])
        scores = twin_scores(recommender, history)
        banned = set(history) - {target} if exclude_seen else set()
        popular = targets.events_N.tolist()
        kept = [item for item in range(len(scores)) if item not in banned]
        # Float sums of equal sids are equal, so popularity and then the id decide among them.
        order = sorted(kept, key=lambda item: (-scores[item], -popular[item], item))
        found.append((*twin_ranks(scores, recommender.table, target, banned), order))
    return found


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_exact_and_beam_rank_as_the_twin_does(world, exclude_seen):
    recommender, targets = world
    exact = by_exact(recommender, targets.examples, exclude_seen, batch_size=5, label=None)
    beam = by_beam(recommender, targets.examples, exclude_seen, beams=60, batch_size=5, label=None)
    for e, (rank, sid_rank, order) in enumerate(twin(recommender, targets, exclude_seen)):
        assert (exact.rank_E[e], exact.sid_rank_E[e]) == (rank, sid_rank)
        assert exact.items_EK[e].tolist() == beam.items_EK[e].tolist() == order[:10]
        for wide, truth in ((beam.rank_E[e], rank), (beam.sid_rank_E[e], sid_rank)):
            assert wide == truth or (wide == INF and truth >= 10), "lists are deep enough for ten sids"
    assert beam_recall(beam, exact).mean == 1.0
    assert len(set(exact.rank_E)) > 3, "the targets stand at different places"
    assert (exact.rank_E > 9).any() and (exact.rank_E < 10).any()


def test_a_target_that_was_seen_competes_and_other_seen_items_do_not(world, dataset):
    recommender, _ = world
    examples = load_split(dataset).test.subset(np.array([0]))
    assert examples.targets_E[0] in examples.history(0)
    answers = by_exact(recommender, examples, exclude_seen=True, label=None)
    listed = by_beam(recommender, examples, exclude_seen=True, beams=60, label=None).items_EK[0]
    assert np.isfinite(answers.rank_E[0])
    assert not set(listed.tolist()) & {3, 4}, "the history but for its last item, which is the target"


def test_what_a_beam_loses_is_told():
    def answers(*lists):
        items_EK = np.array([[*found, *[-1] * (10 - len(found))] for found in lists])
        return Answers(np.zeros(len(lists)), np.zeros(len(lists)), items_EK, 0.0)

    exact = answers(range(10), range(10), [3, 4], range(10))
    beam = answers([*range(5), *range(20, 25)], range(9, -1, -1), [4], range(10, 20))
    found = beam_recall(beam, exact)
    assert found.mean == pytest.approx((0.5 + 1.0 + 0.5 + 0.0) / 4) and found.n == 4


def test_batches_do_not_matter(world):
    recommender, targets = world
    one = by_beam(recommender, targets.examples, True, beams=20, batch_size=1, label=None)
    many = by_beam(recommender, targets.examples, True, beams=20, batch_size=100, label=None)
    assert np.array_equal(one.rank_E, many.rank_E) and np.array_equal(one.items_EK, many.items_EK)


def test_ranks_behind_a_shared_sid_by_hand():
    # Items 0 1 2 have sid 0, items 3 4 sid 1, items 5 and 6 sids of their own.
    sid_N = np.array([0, 0, 0, 1, 1, 2, 3])
    items_BK = np.array([[5, 0, 1, 2, 3, 4], [5, 0, 1, 2, 3, 4], [0, 2, 6, -1, -1, -1], [6, 3, 4, -1, -1, -1]])
    scores = [
        [-1, -2, -2, -2, -3, -3],
        [-1, -2, -2, -2, -3, -3],
        [-1, -1, -2, -INF, -INF, -INF],
        [-1, -2, -2] + [-INF] * 3,
    ]
    rank_B, sid_rank_B = ranks_in_lists(items_BK, np.array(scores), np.array([2, 4, 6, 5]), sid_N)
    # Target 2 stands among places 1 to 3; target 4 among places 4 and 5; item 1 was seen, so 0 and 2 share sid 0.
    assert rank_B.tolist() == [2.0, 4.5, 2.0, INF]
    assert sid_rank_B.tolist() == [1.0, 2.0, 1.0, INF]


def test_ranks_of_scores_by_hand():
    sid_N = np.array([0, 0, 0, 1, 1, 2, 3])
    scores_BN = np.array([[-2.0, -2, -2, -3, -3, -1, -9]] * 3)
    targets_B = np.array([2, 4, 6])
    exclude = [np.array([], dtype=int), np.array([0, 1, 2]), np.array([1, 5])]
    rank_B, sid_rank_B, items_BK = ranks_of_scores(scores_BN, targets_B, sid_N, None, exclude)
    assert rank_B.tolist() == [2.0, 1.5, 4.0]
    assert sid_rank_B.tolist() == [1.0, 1.0, 2.0]
    assert items_BK.tolist() == [[5, 0, 1, 2, 3, 4, 6], [5, 3, 4, 6, -1, -1, -1], [0, 2, 3, 4, 6, -1, -1]]
    place_N = np.array([2, 0, 1, 4, 3, 5, 6])
    assert ranks_of_scores(scores_BN, targets_B, sid_N, place_N)[2][0].tolist() == [5, 1, 2, 0, 4, 3, 6]
    assert scores_BN[1, 0] == -2.0, "the caller's scores are left alone"


@pytest.mark.parametrize("seed", range(4))
def test_the_first_ten_of_scores_with_many_ties(seed):
    rng = np.random.default_rng(seed)
    items = int(rng.integers(3, 80))
    sid_N = np.unique(rng.integers(0, items, items) // 4, return_inverse=True)[1]
    scores_BN = rng.integers(-5, 5, (6, sid_N.max() + 1)).astype(np.float32)[:, sid_N] + sid_N / 1000
    place_N = rng.permutation(items)
    _, _, items_BK = ranks_of_scores(scores_BN, rng.integers(0, items, 6), sid_N, place_N)
    for scores_N, found in zip(scores_BN, items_BK, strict=True):
        assert found.tolist() == sorted(range(items), key=lambda item: (-scores_N[item], place_N[item]))[:10]


@pytest.fixture(scope="module")
def sasrec():
    torch.manual_seed(0)
    return SASRec(worlds.ITEMS, max_len=10, hidden_dim=16).eval()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_backbone_is_graded_as_its_own_fit_grades_it(world, sasrec, exclude_seen):
    recommender, targets = world
    answers = by_backbone(sasrec, targets.examples, exclude_seen, recommender.sid_N, batch_size=5)
    assert np.array_equal(answers.rank_E, full_ranks(sasrec, targets.examples, exclude_seen))
    assert (answers.sid_rank_E <= answers.rank_E).all()
    shared = len(np.unique(recommender.sid_N)) < worlds.ITEMS
    assert (answers.sid_rank_E < answers.rank_E).any() == shared


def test_the_metrics_of_all_have_the_same_keys(world, sasrec):
    recommender, targets = world
    metrics = evaluate_recommender(recommender, targets, "both", beams=60, batch_size=8, backbone=sasrec)
    names = {
        system: {key.removeprefix(f"{system}/") for key in metrics if key.startswith(f"{system}/")}
        for system in ("beam", "exact", "backbone")
    }
    assert names["beam"] == names["exact"] == names["backbone"]
    spans = {f"{level}{metric}@{k}" for level in ("", "sid/") for metric in ("ndcg", "recall") for k in (5, 10)}
    ends = {f"{name}{end}" for name in spans for end in ("", "_lo", "_hi")}
    assert names["beam"] == ends | {"n", "coverage@10", "gini@10", "novelty@10", "validity", "wall_ms"}
    assert metrics["beam_recall"] == 1.0 and metrics["beam/validity"] == 1.0
    for key in spans | {"coverage@10", "gini@10", "novelty@10"}:
        assert metrics[f"beam/{key}"] == pytest.approx(metrics[f"exact/{key}"])
    over = metrics["beam/ndcg@10"] - metrics["backbone/ndcg@10"]
    assert metrics["over_backbone"] == pytest.approx(over)
    assert metrics["over_backbone_lo"] <= over <= metrics["over_backbone_hi"]
    alone = backbone_metrics(sasrec, targets, recommender.table)
    assert all(alone[key] == metrics[f"backbone/{key}"] for key in names["backbone"] - {"wall_ms"})
    assert metrics["n"] == metrics["exact/n"] == len(targets.examples) and metrics["exclude_seen"] == 1
    assert metrics["beams"] == 60 and all(isinstance(value, int | float) for value in metrics.values())
    json.dumps(metrics)


def test_items_behind_a_shared_sid_are_not_all_hits(world):
    recommender, targets = world
    metrics = answer_metrics(by_exact(recommender, targets.examples, True, label=None), targets.events_N)
    if len(np.unique(recommender.sid_N)) == worlds.ITEMS:
        assert metrics["sid/ndcg@10"] == metrics["ndcg@10"]
    else:
        assert metrics["sid/ndcg@10"] > metrics["ndcg@10"]


def test_recommending_what_is_no_item_is_an_error(world):
    recommender, targets = world
    answers = by_exact(recommender, targets.examples, True, label=None)
    answers.items_EK[0, 0] = worlds.ITEMS
    with pytest.raises(RuntimeError, match="no item of the catalogue"):
        answer_metrics(answers, targets.events_N)


def test_weights_that_are_not_numbers_are_an_error(dataset):
    table = worlds.make_table()
    model, tokenizer = worlds.make_model(table)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    examples = load_split(dataset).test
    with pytest.raises(FloatingPointError, match="NaN"):
        by_beam(Recommender(model, tokenizer, table), examples, True, label=None)


def test_a_template_that_thinks_is_asked_after_its_empty_thought():
    table = worlds.make_table()
    model, tokenizer = worlds.make_model(table)
    # As Qwen3's: the last answer is written after an empty thought, which the opened turn has on request only.
    thought = "{{- '<think>\\n\\n</think>\\n\\n' }}"
    tokenizer.chat_template = (
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
        "{%- if message.role == 'assistant' %}" + thought + "{%- endif %}{{- message.content + '<|im_end|>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}" + thought + "{%- endif %}{%- endif %}"
    )
    chat = [*recommend_prompt([table.text(3)]), assistant(table.text(4))]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    (prompt,) = Recommender(model, tokenizer, table).prompts([np.array([3])])
    assert whole == tokenizer.decode(prompt) + table.text(4) + "<|im_end|>\n"


def test_an_empty_prompt_is_an_error():
    table = worlds.make_table()
    recommender = Recommender(*worlds.make_model(table, template="stream"), table)
    with pytest.raises(ValueError, match="history 1 gives an empty prompt"):
        recommender.prompts([np.array([3]), np.array([], dtype=int)])


def test_drawn_users_are_the_same_each_time(dataset):
    examples = load_split(dataset).test
    drawn = sampled(examples, 5, seed=1)
    assert drawn.user_E.tolist() == sampled(examples, 5, seed=1).user_E.tolist() == sorted(set(drawn.user_E.tolist()))
    assert drawn.user_E.tolist() != sampled(examples, 5, seed=2).user_E.tolist()
    assert sampled(examples, 99) is examples and sampled(examples, None) is examples
    with pytest.raises(ValueError, match="at least 1"):
        sampled(examples, 0)


def test_what_does_not_belong_together_is_refused(dataset, tmp_path, sasrec):
    targets, table = Targets.load(dataset), worlds.make_table()
    with pytest.raises(ValueError, match="role must be one of test, validation"):
        Targets.load(dataset, "routing")
    worlds.save_model(tmp_path / "model", table)
    worlds.make_table(seed=9).save(tmp_path / "other")
    with pytest.raises(ValueError, match="was built on SID table"):
        load_recommender(tmp_path / "model", targets, tmp_path / "other")
    small = worlds.write_dataset(tmp_path / "small", [[0, 1, 2, 3, 4]], items=5)
    with pytest.raises(ValueError, match="knows 30 items, the data set has 5"):
        load_recommender(tmp_path / "model", Targets.load(small))
    with pytest.raises(ValueError, match="method must be one of"):
        evaluate_recommender(load_recommender(tmp_path / "model", targets), targets, "guess")
    sasrec.save_pretrained(tmp_path / "sasrec")
    assert load_backbone(tmp_path / "sasrec", dataset, 30).num_items == 30
    with pytest.raises(ValueError, match="knows 30 items"):
        load_backbone(tmp_path / "sasrec", small, 5)
    config = {"backbone": "sasrec", "dataset": "gone"}
    RunRecord(tmp_path / "sasrec", "train_backbone", config, {"dataset": "other"}, False).finish({})
    with pytest.raises(ValueError, match="another data set or split"):
        load_backbone(tmp_path / "sasrec", dataset, 30)
    RunRecord(tmp_path / "sasrec", "train_backbone", config, {"dataset": fingerprint(dataset)}, False).finish({})
    load_backbone(tmp_path / "sasrec", dataset, 30)


def rendered(table) -> str:
    console = Console(width=190, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_what_was_measured(world, sasrec, capsys):
    recommender, targets = world
    metrics = evaluate_recommender(recommender, targets, "both", beams=20, backbone=sasrec)
    text = rendered(recommender_table(metrics, "validation"))
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if line.count("│") > 5}
    shared = metrics["exact/sid/ndcg@10"] != metrics["exact/ndcg@10"]
    for name in ("beam", "exact", "backbone"):
        cells = [cell.strip() for cell in rows[name]]
        value = {key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")}
        spans = [f"{value[m]:.4f} [{value[m + '_lo']:.4f}, {value[m + '_hi']:.4f}]" for m in ("ndcg@10", "recall@10")]
        plain = ["ndcg@5", "recall@5", *(["sid/ndcg@10", "sid/recall@10"] if shared else []), "coverage@10", "gini@10"]
        ends = [f"{value['novelty@10']:.2f}", f"{value['wall_ms']:.1f}"]
        assert cells == [*spans, *(f"{value[key]:.4f}" for key in plain), *ends]
    assert ("SID NDCG@10" in text) == shared and "…" not in text
    assert "validation targets, n = 12" in text and "seen items do not compete" in text
    print_recommenders(metrics | {"exclude_seen": 0}, "test")
    out = " ".join(capsys.readouterr().out.split())
    assert "seen items compete" in out
    assert f"finds {metrics['beam_recall']:.4f} [" in out and f"backbone by {metrics['over_backbone']:.4f} [" in out


def test_the_recipe(dataset, tmp_path, sasrec, capsys):
    from recllm.training.arguments import parse

    worlds.save_model(tmp_path / "model", worlds.make_table())
    sasrec.save_pretrained(tmp_path / "sasrec")
    scope = runpy.run_path(str(ROOT / "recipes" / "evaluate_recommender.py"))
    argv = ["--config", str(ROOT / "recipes/configs/evaluate_recommender/smoke.yaml"), "--users", "8"]
    folders = {"model": tmp_path / "model", "dataset": dataset, "backbone": tmp_path / "sasrec"}
    argv += [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    for _ in range(2):  # the second start finds it complete
        scope["main"](*parse(scope["Arguments"], argv=[*argv, "--output_dir", str(tmp_path / "out")]))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    known = json.loads((tmp_path / "out" / "run.json").read_text())
    assert metrics["n"] == 8 and {"beam/ndcg@10", "exact/ndcg@10", "backbone/ndcg@10"} <= metrics.keys()
    assert known["recipe"] == "evaluate_recommender" and set(known["inputs"]) == set(folders)
    out = capsys.readouterr().out
    assert "nothing to do" in out and out.count("test targets, n = 8") == 2
