"""Grading and fitting of generative backbones."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from recllm.backbones import generative
from recllm.backbones.generate import trie_of
from recllm.backbones.generative import Fold, build, code_ranks, grade, item_ranks, train_generative
from recllm.backbones.glass import GLASS
from recllm.backbones.tiger import TIGER
from recllm.data.histories import Prefixes
from recllm.data.interactions import SCHEMA, Sequences
from recllm.data.splits import Examples
from recllm.metrics.ranking import rank_of_targets
from recllm.sid.embeddings import save_embeddings

worlds = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("generative_worlds.py"))))
ITEMS, SIZES, make_table, make_vectors = worlds.ITEMS, worlds.SIZES, worlds.make_table, worlds.make_vectors
KINDS = {"tiger": worlds.make_tiger, "glass": worlds.make_glass}

pytestmark = pytest.mark.usefixtures("one_thread")


def make_examples(seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    sequences = Sequences.from_lists([rng.integers(0, ITEMS, size=length).tolist() for length in (2, 3, 6, 9, 20, 41)])
    return Examples(np.arange(6), sequences.lengths_U - 1, sequences)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_ranks_of_a_wide_beam_are_those_of_every_items_score(kind, shared, exclude_seen):
    table, examples = make_table(shared=shared), make_examples()
    model = KINDS[kind](table)
    scores_BN = worlds.item_scores(model, Prefixes.of_examples(examples), table).round(5)
    # Sids of one score tie by more than rounding allows for.
    seen = [examples.history(row) for row in range(6)] if exclude_seen else None
    expected_E = rank_of_targets(scores_BN, examples.targets_E, exclude=seen)
    found_E = item_ranks(model, examples, trie_of(model.token_NL), ITEMS, exclude_seen, batch_size=4)
    assert found_E.tolist() == expected_E.tolist()
    narrow_E = item_ranks(model, examples, trie_of(model.token_NL), 3, exclude_seen, batch_size=4)
    assert np.isinf(narrow_E).any() and (narrow_E[np.isfinite(narrow_E)] < 9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_code_ranks_by_hand(kind):
    table, examples = make_table(), make_examples()
    model = KINDS[kind](table)
    rank_EL, p_E = code_ranks(model, examples, trie_of(model.token_NL), batch_size=4)
    logits = model.logits(*model.collate(Prefixes.of_examples(examples)))
    for row, target in enumerate(examples.targets_E):
        codes = table.sid(int(target))
        for level in range(3):
            follow = {sid[level] for sid in table.codes_NL.tolist() if tuple(sid[:level]) == codes[:level]}
            scores = logits[level][row, 0].tolist()
            assert rank_EL[row, level] == sum(scores[code] > scores[codes[level]] for code in follow)
        assert p_E[row] == pytest.approx(logits[0][row, 0].softmax(0)[codes[0]].item(), rel=1e-4)


def test_grades_are_the_means_of_these_ranks():
    model, examples = worlds.make_glass(), make_examples()
    trie = trie_of(model.token_NL)
    graded = grade(model, examples, trie, 20, exclude_seen=False)
    rank_E = item_ranks(model, examples, trie, 20, exclude_seen=False)
    code_rank_EL, p_E = code_ranks(model, examples, trie)
    assert graded["n"] == 6 and graded["recall@1"] == (rank_E < 1).mean()
    assert graded["recall@20"] == pytest.approx((rank_E < 20).mean())
    assert graded["ndcg@20"] == pytest.approx(np.where(rank_E < 20, 1 / np.log2(rank_E + 2), 0).mean())
    assert graded["crp/b"] == pytest.approx(code_rank_EL[:, 1].mean())
    assert graded["crp_found/c"] == pytest.approx(code_rank_EL[np.isfinite(rank_E), 2].mean())
    assert graded["first_code/accuracy"] == (code_rank_EL[:, 0] == 0).mean()
    assert graded["first_code/probability"] == pytest.approx(p_E.mean())
    assert graded["ndcg@3_lo"] <= graded["ndcg@3"] <= graded["ndcg@3_hi"]


def write_world(folder: Path) -> dict[str, Path]:
    """Users who step through the items one by one, as a data set and a SID table with vectors."""
    rng, data, sids = np.random.default_rng(0), folder / "data", folder / "sids"
    data.mkdir()
    lengths = rng.integers(6, 14, size=60)
    items = np.concatenate([(rng.integers(ITEMS) + np.arange(length)) % ITEMS for length in lengths])
    columns = {"user_id": np.repeat(np.arange(60), lengths), "item_id": items}
    columns["timestamp"] = np.concatenate([np.arange(length) for length in lengths])
    pl.DataFrame(columns).cast(SCHEMA).write_parquet(data / "interactions.parquet")
    (data / "dataset.json").write_text(json.dumps({"split": "leave_one_out", "routing_items": 1, "split_seed": 0}))
    make_table().save(sids)
    save_embeddings(sids, make_vectors())
    return {"dataset": data, "sid_table": sids}


def arguments(repo_root, **changed):
    script = runpy.run_path(str(repo_root / "recipes" / "train_generative.py"))
    options = dict.fromkeys(("dataset", "sid_table", "output_dir"), "") | {"hidden_dim": 24, "num_blocks": 1}
    options |= {"num_heads": 2, "head_dim": 12, "ffn_dim": 48, "dropout": 0.0, "max_len": 4, "beams": 10}
    options |= {"neighbours": 1, "threshold": 2, "epochs": 12, "lr": 1e-2, "batch_size": 32, "exclude_seen": False}
    return script["Arguments"](**(options | changed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_model_knows_the_rule(tmp_path, repo_root, kind):
    world, args = write_world(tmp_path), arguments(repo_root, backbone=kind)
    model, metrics = train_generative(**world, args=args, scratch=tmp_path / "scratch.arrow")
    assert metrics["test/recall@1"] > 0.6 and metrics["test/n"] == metrics["validation/n"] == 60
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert not (tmp_path / "scratch.arrow").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_was_cut_off_ends_as_an_uninterrupted_one(tmp_path, repo_root, monkeypatch, kind):
    world = write_world(tmp_path)
    args = arguments(repo_root, backbone=kind, epochs=4, dropout=0.3, targets_per_user=3)
    whole, _ = train_generative(**world, args=args, scratch=tmp_path / "whole" / "scratch.arrow")
    looked, ranks = [], generative.item_ranks

    def cut_off(*arguments, **options):
        looked.append(1)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return ranks(*arguments, **options)

    monkeypatch.setattr(generative, "item_ranks", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train_generative(**world, args=args, scratch=tmp_path / "cut" / "scratch.arrow")
    monkeypatch.undo()
    epochs, batches = [], generative.example_batches
    monkeypatch.setattr(generative, "example_batches", lambda *args: epochs.append(1) or batches(*args))
    resumed, _ = train_generative(**world, args=args, scratch=tmp_path / "cut" / "scratch.arrow")
    assert len(epochs) == 2, "two of the four epochs were already there"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_folds_of_some_users_and_what_is_refused(tmp_path, repo_root):
    world = write_world(tmp_path)
    fold = Fold.load(world["dataset"], 10, seed=1)
    assert len(fold.user_ids) == 10 == len(fold.examples("test"))
    assert fold.examples("validation").user_E.tolist() == fold.rows.tolist()
    assert len(Fold.load(world["dataset"], None, 0).examples("test")) == 60
    with pytest.raises(ValueError, match=r"61 users asked for, .* has 60"):
        Fold.load(world["dataset"], 61, 0)
    with pytest.raises(ValueError, match="backbone 'sasrec' is unknown; choose one of tiger, glass"):
        build("sasrec", make_table(), None, arguments(repo_root))
    make_table(items=20).save(world["sid_table"])
    with pytest.raises(ValueError, match=r"knows 20 items, .* has an item 29"):
        train_generative(**world, args=arguments(repo_root), scratch=tmp_path / "s.arrow")


def test_build_gives_the_recipes_shapes(repo_root):
    args = arguments(repo_root, user_tokens=5, retrieved=7, gate="paper")
    tiger, glass = build("tiger", make_table(), None, args), build("glass", make_table(), make_vectors(), args)
    assert isinstance(tiger, TIGER) and (tiger.max_len, tiger.user_tokens) == (4, 5)
    assert isinstance(glass, GLASS) and (glass.short_len, glass.retrieved, glass.tiger.user_tokens) == (4, 7, 5)
    assert glass.fusions[0].kind == "paper" and glass.neighbour_KJ.shape == (SIZES[0], 1)
