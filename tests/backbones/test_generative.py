"""Grading and fitting of generative backbones."""

import json
import runpy
from dataclasses import replace
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
from recllm.metrics.compare import load_ranks
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
    ranks = code_ranks(model, examples, trie_of(model.token_NL), batch_size=4)
    logits = model.logits(*model.collate(Prefixes.of_examples(examples)))
    for row, target in enumerate(examples.targets_E):
        codes = table.sid(int(target))
        for level in range(3):
            follow = {sid[level] for sid in table.codes_NL.tolist() if tuple(sid[:level]) == codes[:level]}
            scores = logits[level][row, 0].tolist()
            higher = {code for code, score in enumerate(scores) if score > scores[codes[level]]}
            assert ranks.all_EL[row, level] == len(higher)
            assert ranks.trie_EL[row, level] == len(higher & follow)
        assert ranks.first_E[row] == pytest.approx(logits[0][row, 0].softmax(0)[codes[0]].item(), rel=1e-4)


def test_grades_are_the_means_of_these_ranks():
    model, examples = worlds.make_glass(), make_examples()
    trie = trie_of(model.token_NL)
    graded, told_E = grade(model, examples, trie, 20, exclude_seen=False)
    rank_E = item_ranks(model, examples, trie, 20, exclude_seen=False)
    assert told_E.tolist() == rank_E.tolist()
    codes = code_ranks(model, examples, trie)
    assert graded["n"] == 6 and graded["recall@1"] == (rank_E < 1).mean()
    assert graded["recall@20"] == pytest.approx((rank_E < 20).mean())
    assert graded["ndcg@20"] == pytest.approx(np.where(rank_E < 20, 1 / np.log2(rank_E + 2), 0).mean())
    assert graded["crp/b"] == pytest.approx(codes.all_EL[:, 1].mean())
    assert graded["crp_trie/b"] == pytest.approx(codes.trie_EL[:, 1].mean())
    assert graded["crp_trie/c"] < graded["crp/c"], "fewer codes compete"
    assert graded["crp_found/c"] == pytest.approx(codes.all_EL[np.isfinite(rank_E), 2].mean())
    assert graded["first_code/accuracy"] == (codes.all_EL[:, 0] == 0).mean()
    assert graded["first_code/probability"] == pytest.approx(codes.first_E.mean())
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
    world, args = write_world(tmp_path), arguments(repo_root, backbone=kind, output_dir=str(tmp_path))
    model, metrics = train_generative(**world, args=args)
    assert metrics["test/recall@1"] > 0.6 and metrics["test/n"] == metrics["validation/n"] == 60
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert not (tmp_path / generative.HISTORIES_FILE).exists()
    for role in ("validation", "test"):
        kept = load_ranks(tmp_path, role)
        assert kept["user_id"].to_list() == list(range(60))
        assert (kept["rank"] < 1).mean() == metrics[f"{role}/recall@1"]


def test_while_fitting_only_validation_targets_are_ranked(tmp_path, repo_root, monkeypatch):
    world = write_world(tmp_path)
    args = arguments(repo_root, output_dir=str(tmp_path), epochs=2, validation_k=20, exclude_seen=True)
    looked, real = [], generative.item_ranks

    def watched(model, examples, trie, beams, exclude_seen):
        looked.append((examples.position_E.tolist(), beams, exclude_seen))
        return real(model, examples, trie, beams, exclude_seen)

    monkeypatch.setattr(generative, "item_ranks", watched)
    train_generative(**world, args=args)
    fold = Fold.load(world["dataset"], None, 0)
    roles = [fold.examples(role).position_E.tolist() for role in ("validation", "test")]
    assert looked == [(roles[0], 20, True)] * 2 + [(roles[0], 10, True), (roles[1], 10, True)]


def test_what_is_drawn_follows_the_recipe_and_the_epoch(tmp_path, repo_root, monkeypatch):
    world = write_world(tmp_path)
    args = arguments(repo_root, output_dir=str(tmp_path), epochs=2, targets_per_user=2, recent=5)
    drawn, real = [], generative.example_batches

    def watched(blocks, batch_size, rng, *options):
        assert (batch_size, options) == (32, (2, 4, 5))
        batches = list(real(blocks, batch_size, rng, *options))
        drawn.append(sorted(np.concatenate([1000 * batch.user_B + batch.length_B for batch in batches]).tolist()))
        return iter(batches)

    monkeypatch.setattr(generative, "example_batches", watched)
    train_generative(**world, args=args)
    assert len(drawn) == 2 and drawn[0] != drawn[1]


def test_a_target_behind_the_last_beam_has_its_exact_rank():
    """Twins behind one sid: three beams reach up to as many items as the three fullest sids hold."""
    table, examples = make_table(shared=True), make_examples()
    model = KINDS["tiger"](table)
    trie = trie_of(model.token_NL)
    scores_BN = worlds.item_scores(model, Prefixes.of_examples(examples), table).round(5)
    exact_E = rank_of_targets(scores_BN, examples.targets_E)
    reached = 0
    for beams in range(1, 6):
        found_E = item_ranks(model, examples, trie, beams, exclude_seen=False)
        kept_E = np.isfinite(found_E)
        # A narrow beam may lose a sid on the way, it never ranks one too low.
        assert (found_E[kept_E] <= exact_E[kept_E]).all()
        reached += int((found_E[kept_E] == exact_E[kept_E]).sum())
    assert reached > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_was_cut_off_ends_as_an_uninterrupted_one(tmp_path, repo_root, monkeypatch, kind):
    world = write_world(tmp_path)
    args = arguments(repo_root, backbone=kind, epochs=4, dropout=0.3, targets_per_user=3)
    whole, _ = train_generative(**world, args=replace(args, output_dir=str(tmp_path / "whole")))
    looked, ranks = [], generative.item_ranks

    def cut_off(*arguments, **options):
        looked.append(1)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return ranks(*arguments, **options)

    monkeypatch.setattr(generative, "item_ranks", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train_generative(**world, args=replace(args, output_dir=str(tmp_path / "cut")))
    monkeypatch.undo()
    epochs, batches = [], generative.example_batches
    monkeypatch.setattr(generative, "example_batches", lambda *args: epochs.append(1) or batches(*args))
    resumed, _ = train_generative(**world, args=replace(args, output_dir=str(tmp_path / "cut")))
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
        train_generative(**world, args=arguments(repo_root))


def test_build_gives_the_recipes_shapes(repo_root):
    args = arguments(repo_root, user_tokens=5, retrieved=7, gate="paper")
    tiger, glass = build("tiger", make_table(), None, args), build("glass", make_table(), make_vectors(), args)
    assert isinstance(tiger, TIGER) and (tiger.max_len, tiger.user_tokens) == (4, 5)
    assert isinstance(glass, GLASS) and (glass.short_len, glass.retrieved, glass.tiger.user_tokens) == (4, 7, 5)
    assert glass.fusions[0].kind == "paper" and glass.neighbour_KJ.shape == (SIZES[0], 1)


def test_the_test_targets_are_only_graded_on_request(tmp_path, repo_root):
    world, args = write_world(tmp_path), arguments(repo_root, output_dir=str(tmp_path), epochs=1, report_test=False)
    _, metrics = train_generative(**world, args=args)
    assert metrics["validation/n"] == 60 and not any(name.startswith("test/") for name in metrics)
    with pytest.raises(ValueError, match="no ranks of 'test'"):
        load_ranks(tmp_path, "test")
