"""One GLASS request over growing histories: an event is appended, SID-Tier and hard search answer, a beam runs.

Claim: the cost of a request does not depend on the length of the history (slope at most 0.1 in log-log from 100 to
    100,000 events), and an event takes at most 10 bytes beyond its codes.
Run:   python benchmarks/glass_scaling.py --json out.json
The histories are kept in `LongHistory` and grew by append alone, which is its dearest form in memory and in time. The
peer answers the same request from the history itself: it counts the tiers anew and sorts the events by first code. Both
run the same beam and must give the same items; `memory_slope` and `memory_ms` leave the beam out.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from recllm.backbones.generate import recommend, trie_of
from recllm.backbones.glass import GLASS
from recllm.data.histories import Prefixes
from recllm.data.long_history import LongHistory
from recllm.metrics.timing import Stopwatch
from recllm.sid.table import SidTable

LENGTHS = (100, 316, 1_000, 3_162, 10_000, 31_623, 100_000)
ITEMS, SIZES, BEAMS = 10_000, (64, 128, 128), 20


def make_model(hidden_dim: int, num_blocks: int, seed: int) -> GLASS:
    """GLASS with fresh weights over a random catalogue: what is timed does not depend on what it has learnt."""
    rng = np.random.default_rng(seed)
    codes_NL = np.stack(np.unravel_index(rng.choice(int(np.prod(SIZES)), ITEMS, replace=False), SIZES), axis=1)
    torch.manual_seed(seed)
    shape = {"hidden_dim": hidden_dim, "num_blocks": num_blocks, "num_heads": 6, "head_dim": 32, "ffn_dim": 1024}
    return GLASS.of_table(SidTable(codes_NL, SIZES), rng.normal(size=(ITEMS, 64)).astype(np.float32), **shape).eval()


def grown(model: GLASS, items: np.ndarray) -> LongHistory:
    """The index of one user whose events all came by append."""
    nobody = Prefixes.of_lists([np.zeros(0, dtype=np.int32)])
    index = LongHistory(nobody, model.code_N, SIZES[0], model.short_len, model.tiers)
    for item in items.tolist():
        index.append(0, item)
    return index


def slope(times: dict[int, float]) -> float:
    """Slope of log time over log length."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def time_requests(model: GLASS, items: np.ndarray, rounds: int) -> tuple[dict[str, dict[int, float]], dict[int, float]]:
    """Best seconds of the kept index's and of the peer's requests, whole and without the beam; bytes an event."""
    trie, search, every_code = trie_of(model.token_NL), model.search, np.arange(BEAMS)
    indexes = {length: grown(model, items[:length]) for length in LENGTHS}
    names = ("serve", "memory", "peer", "peer_memory")
    watches = {name: {length: Stopwatch(warmup=1) for length in LENGTHS} for name in names}
    one, user = np.zeros(BEAMS, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for length, index in indexes.items():
        sides = model.answer(index, user, user), model.writing(Prefixes.of_lists([items[:length]]))
        kept, anew = (recommend(side, trie, BEAMS)[0] for side in sides)
        if not torch.equal(kept, anew):
            raise ValueError(f"{length} events: the kept index and the history itself give other items")
    for turn in range(rounds + 1):
        # The lengths are taken in turn, so that whatever else the machine does falls on all of them.
        for length, index in indexes.items():
            event = int(items[(length + turn) % len(items)])
            history = Prefixes.of_lists([items[:length]])
            with watches["serve"][length]:
                index.append(0, event)
                kept = recommend(model.answer(index, user, user), trie, BEAMS)
            with watches["memory"][length]:
                index.append(0, event)
                search.ask(index, one, every_code)
                index.counts_UKT[0].sum()
            with watches["peer"][length]:
                recommend(model.writing(history), trie, BEAMS)
            with watches["peer_memory"][length]:
                recount = LongHistory(history, model.code_N, SIZES[0], model.short_len, model.tiers)
                search.ask(recount, one, every_code)
            assert (kept[0] >= 0).all()
    best = {name: {length: watch.best for length, watch in each.items()} for name, each in watches.items()}
    return best, {length: index.event_bytes / len(index) for length, index in indexes.items()}


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    rounds: int = 10,
    hidden_dim: int = 96,
    num_blocks: int = 4,
    threads: int = 1,
    seed: int = 0,
) -> None:
    torch.set_num_threads(threads)
    model = make_model(hidden_dim, num_blocks, seed)
    items = np.random.default_rng(seed).integers(0, ITEMS, size=LENGTHS[-1])
    best, event_bytes = time_requests(model, items, rounds)
    longest = LENGTHS[-1]
    found = {f"{name}_ms": {str(n): round(1e3 * t, 3) for n, t in times.items()} for name, times in best.items()}
    found |= {f"{name}_slope": round(slope(times), 4) for name, times in best.items()}
    found |= {
        "bytes_per_event": round(event_bytes[longest], 3),
        "serve_speedup": round(best["peer"][longest] / best["serve"][longest], 2),
        "memory_speedup": round(best["peer_memory"][longest] / best["memory"][longest], 1),
        "items": ITEMS,
        "level_sizes": SIZES,
        "beams": BEAMS,
        "hidden_dim": hidden_dim,
        "num_blocks": num_blocks,
        "threads": threads,
        "torch": torch.__version__,
    }
    typer.echo(json.dumps(found, indent=2))
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
