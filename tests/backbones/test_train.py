import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recllm.backbones import train
from recllm.backbones.fit import full_ranks, ranking_metrics
from recllm.backbones.hstu import HSTU
from recllm.backbones.priors import WithPriors
from recllm.backbones.resume import FOLDER
from recllm.backbones.sasrec import SASRec
from recllm.backbones.train import load_sequential, save_backbone, train_backbone
from recllm.data.splits import load_split
from recllm.sid.embeddings import save_embeddings

ITEMS = 25


def recipe():
    """The recipe's dataclass, which is what trainers are called with."""
    path = Path(__file__).resolve().parents[2] / "recipes" / "train_backbone.py"
    spec = importlib.util.spec_from_file_location("train_backbone_recipe", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Arguments


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A data set folder whose next item is mostly the last one plus 1."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        item = int(rng.integers(ITEMS))
        for step in range(int(rng.integers(4, 15))):
            rows.append((user, item, 1_400_000_000 + 1000 * step + user))
            item = (item + 1) % ITEMS if rng.random() < 0.8 else int(rng.integers(ITEMS))
    folder = tmp_path / "dataset"
    folder.mkdir()
    schema = {"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
    catalog = {"item_id": range(ITEMS), "title": [f"t{i}" for i in range(ITEMS)], "categories": [["c"]] * ITEMS}
    types = {"item_id": pl.Int32, "title": pl.String, "categories": pl.List(pl.String)}
    pl.DataFrame(catalog, schema=types).write_parquet(folder / "catalog.parquet")
    write_facts(folder, "seconds")
    return folder


def write_facts(folder: Path, time: str) -> None:
    facts = {"name": "made up", "split": "leave_one_out", "routing_items": 1, "split_seed": 0, "time": time}
    (folder / "dataset.json").write_text(json.dumps(facts))


def arguments(dataset: Path, **changed):
    small = {"hidden_dim": 8, "max_len": 6, "epochs": 2, "batch_size": 16, "lr": 0.01, "dropout": 0.1}
    place = {"dataset": str(dataset), "output_dir": str(dataset.parent / "out")}
    return recipe()(**(place | small | changed))


def fitted(dataset: Path, **changed):
    args = arguments(dataset, **changed)
    model, metrics = train_backbone(args.backbone, args.dataset, args)
    Path(args.output_dir, FOLDER, "state.safetensors").unlink()
    return model.eval(), metrics


def test_the_defaults_are_sasrec_as_it_was(dataset):
    model, metrics = fitted(dataset)
    assert isinstance(model, SASRec) and model.output_embedding is None
    assert (model.temperature, model.l2_norm, model.position_embedding is not None) == (1.0, False, True)
    split = load_split(dataset)
    expected = ranking_metrics(full_ranks(model, split.validation, exclude_seen=True))
    assert {name: metrics[f"validation/{name}"] for name in expected} == expected
    assert not any(name.startswith("test/") for name in metrics), "validation decides, test is asked for"
    assert metrics["epochs"] == 2


def test_hstu_takes_the_times_where_there_are_some(dataset):
    model, _ = fitted(dataset, backbone="hstu")
    assert isinstance(model, HSTU) and model.uses_time and model.temperature == 0.05 and model.l2_norm
    assert not fitted(dataset, backbone="hstu", time_bias="none")[0].uses_time
    write_facts(dataset, "order")
    assert not fitted(dataset, backbone="hstu")[0].uses_time
    with pytest.raises(ValueError, match=re.escape("dataset.json says time: order, so its timestamps are no times")):
        fitted(dataset, backbone="hstu", time_bias="required")
    with pytest.raises(ValueError, match="sasrec has no time bias"):
        fitted(dataset, time_bias="required")


def test_test_targets_are_ranked_where_asked(dataset):
    model, metrics = fitted(dataset, report_test=True)
    rank_E = full_ranks(model, load_split(dataset).test, exclude_seen=True)
    assert metrics["test/recall@10"] == ranking_metrics(rank_E)["recall@10"]


CHANGES = [
    {"loss": "bce"},
    {"num_negatives": 5},
    {"num_negatives": 5, "logq": True},
    {"num_negatives": 5, "logq": True, "proposal": "popularity"},
    {"num_negatives": 5, "sparse_rows": True},
    {"train_targets": "last_position"},
    {"train_window": 3},
    {"optimizer": "adam", "weight_decay": 0.5},
    {"beta2": 0.9},
    {"seed": 1},
    {"ffn": "swiglu"},
    {"position": "rope"},
    {"pooling": "mean"},
    {"pooling": "last_k_mean", "pool_k": 2},
    {"l2_norm": True, "temperature": 0.1},
    {"share_blocks": True, "num_blocks": 2},
    {"tie_embeddings": False},
]


def test_every_switch_of_training_reaches_it(dataset):
    """The same seed and another switch give other scores; the same switches the same."""
    history_BT = torch.tensor([[1, 2, 3], [9, 0, 0]])
    plain_BN = fitted(dataset)[0].score(history_BT)
    assert torch.equal(fitted(dataset)[0].score(history_BT), plain_BN)
    seen = [plain_BN]
    for changed in CHANGES:
        scores_BN = fitted(dataset, **changed)[0].score(history_BT)
        assert all((scores_BN - other_BN).abs().max() > 1e-6 for other_BN in seen), changed
        seen.append(scores_BN)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_priors_help_where_the_next_item_follows_from_the_last_and_travel_with_the_model(backbone, dataset):
    model, metrics = fitted(dataset, backbone=backbone, epochs=1, prior_transition=5.0, prior_recent_k=1)
    assert isinstance(model, WithPriors)
    assert metrics["validation/ndcg@10"] > metrics["validation_plain/ndcg@10"] + 0.1
    fold_N = np.bincount(load_split(dataset).fitting.items_M, minlength=ITEMS)
    np.testing.assert_allclose(model.priors.log_popularity_N, np.log1p(fold_N), err_msg="the fitting fold alone")
    out = dataset.parent / "saved"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"schema": 1, "config": {"backbone": backbone}}))
    save_backbone(model, out)
    again = load_sequential(out)
    examples = load_split(dataset).test
    np.testing.assert_array_equal(full_ranks(again, examples, True), full_ranks(model, examples, True))
    save_backbone(model.model, out)
    assert not isinstance(load_sequential(out), WithPriors), "priors of an earlier run are gone"
    (out / "run.json").write_text(json.dumps({"schema": 1, "config": {"backbone": "din"}}))
    with pytest.raises(ValueError, match="is a din, not one of sasrec, hstu"):
        load_sequential(out)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_item_vectors_are_fused_and_travel_with_the_model(backbone, dataset, tmp_path):
    vectors_ND = np.random.default_rng(0).standard_normal((ITEMS, 4)).astype(np.float32)
    sids = tmp_path / "sids"
    sids.mkdir()
    save_embeddings(sids, vectors_ND)
    model, _ = fitted(dataset, backbone=backbone, epochs=1, embedding_fusion="gate", item_vectors=str(sids))
    np.testing.assert_array_equal(model.fusion.content_ND[1:].numpy(), vectors_ND)
    out = dataset.parent / "saved"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"schema": 1, "config": {"backbone": backbone}}))
    save_backbone(model, out)
    examples = load_split(dataset).test
    np.testing.assert_array_equal(full_ranks(load_sequential(out), examples, True), full_ranks(model, examples, True))
    with pytest.raises(ValueError, match="item_vectors are given and embedding_fusion is none"):
        fitted(dataset, backbone=backbone, item_vectors=str(sids))


def test_while_fitting_only_validation_targets_are_ranked_and_only_fitting_events_are_counted(dataset, monkeypatch):
    """The kept epoch is the one that is best on validation: its metric is told again at the end."""
    split, ranked, real = load_split(dataset), [], train.full_ranks

    def watched(model, examples, exclude_seen):
        ranked.append(examples.position_E.tolist())
        return real(model, examples, exclude_seen)

    monkeypatch.setattr(train, "full_ranks", watched)
    fitted(dataset, epochs=3, report_test=True)
    validation, test = split.validation.position_E.tolist(), split.test.position_E.tolist()
    assert ranked == [validation] * 4 + [test]
    objective = train._objective(split, ITEMS, arguments(dataset, num_negatives=5, proposal="popularity"))
    fold_N = np.bincount(split.fitting.items_M, minlength=ITEMS)
    np.testing.assert_array_equal(objective.events_N.numpy(), fold_N)
    assert fold_N.sum() < len(split.sequences.items_M)


def test_the_chosen_metric_decides_the_epoch(dataset, monkeypatch):
    recall = iter([0.1, 0.9, 0.2])
    monkeypatch.setitem(train._METRICS, "recall", lambda rank_E, k: np.array([next(recall) if k == 3 else 0.0]))
    _, metrics = fitted(dataset, metric="recall@3", epochs=3)
    assert metrics["best_epoch"] == 1
    for wrong in ("map@10", "ndcg", "ndcg@0", "ndcg@x"):
        with pytest.raises(ValueError, match=f"metric '{wrong}' is unknown; write ndcg or recall"):
            fitted(dataset, metric=wrong)


def test_a_run_that_was_broken_off_goes_on_and_ends_the_same(dataset, monkeypatch):
    args = arguments(dataset, epochs=4)
    whole, metrics = train_backbone("sasrec", args.dataset, args)
    Path(args.output_dir, FOLDER, "state.safetensors").unlink()
    real, calls = train.full_ranks, []

    def breaks(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(train, "full_ranks", breaks)
    with pytest.raises(KeyboardInterrupt):
        train_backbone("sasrec", args.dataset, args)
    resumed, again = train_backbone("sasrec", args.dataset, args)
    assert len(calls) == 3 + 2 + 1, "two epochs were not done again"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    clock = {"train_seconds"}
    assert {k: v for k, v in metrics.items() if k not in clock} == {k: v for k, v in again.items() if k not in clock}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sparse_rows": True}, "sparse_rows: the full softmax touches every row"),
        ({"train_window": 9}, "train_window 9 must lie between 1 and max_len 6"),
        ({"embedding_fusion": "add"}, "embedding_fusion add needs item vectors: set item_vectors"),
        ({"prior_rerank": -1}, "prior rerank must be at least 0"),
        ({"prior_window": 0}, "prior window must be at least 1"),
        ({"backbone": "gru"}, "backbone 'gru' is unknown; choose one of sasrec, hstu, din"),
    ],
)
def test_options_that_cannot_work_are_refused(changed, message, dataset):
    with pytest.raises(ValueError, match=re.escape(message)):
        fitted(dataset, **changed)


def test_compile_reaches_the_network(dataset, monkeypatch):
    """The switch compiles the model that is trained; an eager stand-in for the compiler must change nothing."""
    compiled = []
    real = torch.nn.Module.compile

    def remember(self, **kwargs):
        compiled.append((type(self), kwargs))
        return real(self, backend="eager", **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", remember)
    plain, _ = fitted(dataset)
    assert compiled == []
    model, _ = fitted(dataset, compile=True)
    assert compiled == [(SASRec, {"dynamic": True})]
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], msg=name)


def test_every_field_of_the_recipe_is_read():
    """An option that nothing reads would be silently without effect."""
    source = Path(train.__file__).read_text()
    read = {"dataset", "output_dir"} | {f"prior_{name}" for name in train.PriorOptions.__dataclass_fields__}
    named = {name for group in (train._BOTH, *train._OWN.values(), train._PAPERS) for name in group}
    for field in dataclasses.fields(recipe()):
        assert field.name in read | named or f"args.{field.name}" in source or f'"{field.name}"' in source, field.name
