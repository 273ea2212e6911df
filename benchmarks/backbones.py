"""Training and full ranking of SASRec against RecTools, with the same width, blocks, heads, length, loss and negatives.

Claim: an epoch of sampled softmax takes at most a fifth of RecTools' time at an NDCG@10 inside the interval of our
    seeds, and full ranking answers at least 3 times as many users a second.
Run:   RECLLM_DATA=DIR python benchmarks/backbones.py --json out.json
Both sides see the same events of the same 4,000 users of Amazon Beauty (MovieLens-1M without RECLLM_DATA, and the keys
say so), leave-one-out, the last 51 fitting events of each, and know the items of their fitting folds. An epoch is timed
alone, its median counts.

train_speedup: sampled softmax, ours with length buckets and negatives that a batch shares, RecTools with padded windows
    and negatives for each place, whose vectors it gathers one by one: most of the ratio is that.
train_speedup_full_softmax: with the full softmax on both sides, which needs no such gathering.
eval_speedup: from histories to the rank of every validation target, seen items left out, here; there to the ten unseen
    items of each user, the only way it has. lists_speedup: ten unseen items a user on both sides.
ndcg_seed_interval: where 95% of further seeds of ours would fall after the same number of epochs; ndcg_popularity is
    what the ten most popular unseen items reach, and below it nothing was learnt that is worth comparing.

ndcg_ours_500, epoch_seconds_ours_500: with 500 shared negatives instead of 100, one seed.

Not the same: the feed-forward part (ours 4 x wide with GELU, theirs 1 x with ReLU). Ours takes the peer's start and its
sense of place (`OURS`); by its own, learned places from the left and a wide start, it learns more slowly at first.
Besides: ranks against `rank_of_targets`, which they must equal; the chunked full softmax against the plain one; lazy
Adam against the dense one on a table of 200,000 rows. The peer lives in an environment of its own, made on the first
run, unless --peer_python names one.
"""

import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
import torch.nn.functional as F
import typer
from peers import peer_environment
from scipy import stats

from recllm.assets import fetch
from recllm.backbones.batches import window_batches
from recllm.backbones.fit import fit, full_ranks, score_batches, top_lists
from recllm.backbones.losses import Objective, full_cross_entropy
from recllm.backbones.optimizers import LazyAdam
from recllm.backbones.sasrec import SASRec
from recllm.data.amazon import DATA_VARIABLE, locate, read_amazon
from recllm.data.interactions import Sequences
from recllm.data.movielens import read_movielens
from recllm.data.prepare import prepare
from recllm.data.splits import Examples
from recllm.metrics.ranking import ndcg_at_k, rank_in_list, rank_of_targets
from recllm.metrics.timing import compare

logger = logging.getLogger("backbones")
# The torch of both sides is the same, so that neither gains by its version.
PEERS = ("rectools[torch]==0.19.*", "pandas<3", f"torch=={torch.__version__.partition('+')[0]}")
WORKER = Path(__file__).with_name("backbones_peer.py")
MODEL = {"max_len": 50, "hidden_dim": 128, "num_blocks": 1, "num_heads": 1, "dropout": 0.2}
# RecTools' learned places count from the end of a padded window, ours from its beginning: a bias of distance is the
# like of theirs, and 0.02 of their Xavier start of the item table (0.015).
OURS = {"position": "relative_bias", "init_std": 0.02}
MORE_NEGATIVES = 500
TRAINING = {"num_negatives": 100, "batch_size": 128, "lr": 1e-3}


@dataclass(frozen=True)
class World:
    """The fitting events, the validation targets to rank after them, and the number of items that they know."""

    name: str
    fold: Sequences
    examples: Examples
    items: int

    @classmethod
    def load(cls, users: int) -> Self:
        """That many users drawn at seed 0; items are those of their fitting folds, renumbered.

        A target that no fold holds is not asked for: the peer would not know the item.
        """
        if os.environ.get(DATA_VARIABLE):
            name, raw = "beauty", read_amazon(locate("amazon2014-beauty"))
        else:
            logger.warning("%s is not set: falling back from Beauty to MovieLens-1M", DATA_VARIABLE)
            name, raw = "ml-1m", read_movielens(fetch("ml-1m"), "ml-1m")
        events = prepare(raw, k=0, dedup="first").interactions
        whole = Sequences.from_arrays(*(events[column].to_numpy() for column in ("user_id", "item_id", "timestamp")))
        drawn = np.random.default_rng(0).choice(len(whole), min(users, len(whole)), replace=False)
        histories = [whole.items(u) for u in np.sort(drawn) if len(whole.items(u)) >= 4]
        # RecTools looks at no more of a user than a window and its target.
        histories = [items[-(MODEL["max_len"] + 3) :] for items in histories]
        known = np.unique(np.concatenate([items[:-2] for items in histories]))
        # The last event is the test target and left out; the one before it is the target here.
        places = [np.searchsorted(known, items[:-1]).clip(max=len(known) - 1) for items in histories]
        answered = np.array([known[place[-1]] == items[-2] for place, items in zip(places, histories, strict=True)])
        sequences = Sequences.from_lists([place.tolist() for place in places])
        fold = sequences.leading(sequences.lengths_U - 1)
        return cls(name, fold, Examples(np.flatnonzero(answered), fold.lengths_U[answered], sequences), len(known))


def ours(world: World, epochs: int, seed: int, negatives: int) -> tuple[SASRec, list[float]]:
    """Our SASRec after that many epochs, and the seconds of each; 0 negatives is the full softmax."""
    torch.manual_seed(seed)
    rng, objective = np.random.default_rng(seed), Objective(num_negatives=negatives)
    model, epoch_of = SASRec(world.items, **MODEL, **OURS), itertools.count()
    report = fit(
        model,
        lambda epoch: window_batches(
            world.fold, world.fold.lengths_U, MODEL["max_len"], TRAINING["batch_size"], rng
        ),
        lambda *batch: objective(model, *batch),
        validate=lambda: float(next(epoch_of)),  # it rises, so that the last epoch's weights are kept
        epochs=epochs, lr=TRAINING["lr"], weight_decay=0.0, patience=epochs, label=f"seed {seed}",
        optimizer="adam", betas=(0.9, 0.98),
    )  # fmt: skip
    return model.eval(), [epoch["seconds"] for epoch in report.history]


def peer(python: Path, world: World, settings: dict) -> tuple[dict, np.ndarray]:
    """The peer's report and its ten items for each example."""
    fold = world.fold
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "world.npz",
            users=np.repeat(np.arange(len(fold)), fold.lengths_U),
            items=fold.items_M.astype(np.int64),
            order=np.arange(len(fold.items_M)),
            answered=world.examples.user_E,
        )
        command = [str(python), str(WORKER), str(Path(folder) / "world.npz"), folder, json.dumps(settings)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings["threads"]))
        subprocess.run(command, check=True, env=os.environ | limits)
        report = json.loads((Path(folder) / "peer.json").read_text(encoding="utf-8"))
        return report, np.load(Path(folder) / "items.npy", allow_pickle=False)


def popularity_ndcg(world: World) -> float:
    """NDCG@10 of the most popular unseen items."""
    events_N = np.bincount(world.fold.items_M, minlength=world.items).astype(np.float64)
    examples = world.examples
    scores_EN = np.tile(events_N, (len(examples), 1))
    seen = [examples.history(row) for row in range(len(examples))]
    return float(ndcg_at_k(rank_of_targets(scores_EN, examples.targets_E, exclude=seen), 10).mean())


def old_ranks(model: SASRec, examples: Examples) -> np.ndarray:
    """Ranks the way they were found before: the metric's own function on whole batches of scores."""
    rank_E = np.zeros(len(examples))
    for rows, scores_BN in score_batches(model, examples):
        seen = [examples.history(row) for row in rows]
        rank_E[rows] = rank_of_targets(scores_BN.numpy(), examples.targets_E[rows], exclude=seen)
    return rank_E


def parts() -> dict[str, float]:
    """The chunked softmax and lazy Adam, each over its plain twin's time."""
    hidden_MD, item_ND = torch.randn(2000, 128, requires_grad=True), torch.randn(12_101, 128, requires_grad=True)
    target_M = torch.randint(12_101, (2000,))
    losses: dict[str, Callable] = {
        "plain": lambda: F.cross_entropy(hidden_MD @ item_ND.T, target_M).backward(),
        "chunked": lambda: full_cross_entropy(hidden_MD, item_ND, target_M).backward(),
    }
    watches = compare(losses, repeats=5)

    def steps(kind: type, sparse: bool) -> Callable[[], None]:
        table = torch.nn.Embedding(200_000, 64, sparse=sparse)
        optimizer = kind([table.weight], lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            table(torch.randint(200_000, (1500,))).square().sum().backward()
            optimizer.step()

        return step

    adams = compare({"dense": steps(torch.optim.AdamW, False), "lazy": steps(LazyAdam, True)}, repeats=5)
    return {
        "full_softmax_chunked_over_plain": watches["chunked"].best / watches["plain"].best,
        "lazy_adam_speedup": adams["dense"].best / adams["lazy"].best,
    }


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    users: Annotated[int, typer.Option(help="Users drawn from the data set.")] = 4000,
    epochs: Annotated[int, typer.Option(help="Epochs on both sides before NDCG is compared.")] = 15,
    seeds: Annotated[int, typer.Option(help="Seeds of ours, at least 2.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of both sides.")] = 2,
    peer_python: Annotated[
        Path | None, typer.Option("--peer_python", help="Python that has RecTools; else one is made.")
    ] = None,
) -> None:
    """Time ours and RecTools and compare what they learnt."""
    if seeds < 2:
        raise typer.BadParameter("an interval needs at least two seeds")
    torch.set_num_threads(threads)
    world = World.load(users)
    examples = world.examples
    python = peer_python or peer_environment("backbones", PEERS, "rectools.models, pytorch_lightning")
    target_E, negatives, ndcgs, epoch_seconds = examples.targets_E, TRAINING["num_negatives"], [], []
    for seed in range(seeds):
        model, seconds = ours(world, epochs, seed, negatives)
        rank_E = full_ranks(model, examples, exclude_seen=True)
        ndcgs.append(float(ndcg_at_k(rank_E, 10).mean()))
        epoch_seconds += seconds
    if not np.array_equal(rank_E, old_ranks(model, examples)):
        raise ValueError("counted ranks differ from rank_of_targets")
    kinds = {
        "new": lambda: full_ranks(model, examples, True),
        "old": lambda: old_ranks(model, examples),
        "lists": lambda: top_lists(model, examples, 10, True),
    }
    watches = compare(kinds, repeats=5)
    settings = MODEL | TRAINING | {"loss": "sampled_softmax", "seed": 0, "threads": threads, "eval_repeats": 5}
    began = time.perf_counter()
    report, items_EK = peer(python, world, settings | {"epochs": epochs})
    whole, _ = peer(python, world, settings | {"epochs": 2, "loss": "softmax"})
    median = {"ours": epoch_seconds, "peer": report["epoch_seconds"], "peer_full": whole["epoch_seconds"]}
    median["ours_full"] = ours(world, 2, 0, 0)[1]
    richer, median["ours_500"] = ours(world, epochs, 0, MORE_NEGATIVES)
    median = {name: float(np.median(seconds)) for name, seconds in median.items()}
    half = stats.t.ppf(0.975, seeds - 1) * np.std(ndcgs, ddof=1) * np.sqrt(1 + 1 / seeds)
    count, answer = len(target_E), float(np.median(report["eval_seconds"]))
    figures = {
        "data": world.name, "users": len(world.fold), "answered": count, "items": world.items, "epochs": epochs,
        "train_speedup": median["peer"] / median["ours"],
        "train_speedup_full_softmax": median["peer_full"] / median["ours_full"],
        "eval_speedup": answer / watches["new"].median,
        "lists_speedup": answer / watches["lists"].median,
        "eval_over_before": watches["old"].median / watches["new"].median,
        "ndcg_ours": float(np.mean(ndcgs)),
        "ndcg_peer": float(ndcg_at_k(rank_in_list(items_EK, target_E), 10).mean()),
        "ndcg_seed_interval": [float(np.mean(ndcgs) - half), float(np.mean(ndcgs) + half)],
        "ndcg_ours_500": float(ndcg_at_k(full_ranks(richer, examples, True), 10).mean()),
        "ndcg_popularity": popularity_ndcg(world), "seeds": seeds,
        **{f"epoch_seconds_{name}": seconds for name, seconds in median.items()},
        "eval_users_s_ours": count / watches["new"].median, "eval_users_s_before": count / watches["old"].median,
        "eval_users_s_peer": count / answer, "lists_users_s_ours": count / watches["lists"].median,
        **parts(), **MODEL, **OURS, **TRAINING, "threads": threads, "peer_wall_seconds": time.perf_counter() - began,
        "versions": report["versions"] | {"torch_ours": torch.__version__, "python": sys.version.split()[0]},
    }  # fmt: skip
    text = json.dumps(figures, indent=1)
    logger.warning("%s", text)
    if json_path:
        json_path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    typer.run(main)
