"""One constraint step over growing catalogues: candidates gathered from the trie's CSR arrays.

Claim: the time of a step for 50 beams does not depend on the number of items (flat within 20% from 3 k to 3 M).
Run:   python benchmarks/trie_step.py --json out.json
The beams stand at random nodes of the last level, each with the same number of children in every catalogue, so that
what is compared is finding the candidates and not how many there are. Beside the gather stands a dense mask over the
vocabulary, which is what a logits processor has to write whatever it does.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from recllm.decoding.trie import SidTrie

SIZES = (3_000, 30_000, 300_000, 3_000_000)
CHILDREN, BEAMS, CODES = 8, 50, 2048


def catalogue(items: int, seed: int) -> np.ndarray:
    """`items` SIDs of three levels; each prefix of two codes has `CHILDREN` items."""
    rng = np.random.default_rng(seed)
    prefixes = items // CHILDREN
    pair = rng.choice(CODES * CODES, size=prefixes, replace=False)
    last = np.argsort(rng.random((prefixes, 64)), axis=1)[:, :CHILDREN]
    codes = np.stack([np.repeat(pair // CODES, CHILDREN), np.repeat(pair % CODES, CHILDREN), last.ravel()], axis=1)
    return codes + CODES * np.arange(3)


def timed(call, calls: int) -> float:
    """Seconds of one call, the mean over many of them."""
    call()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    rounds: int = 15,
    calls: int = 400,
    threads: int = 1,
    seed: int = 0,
) -> None:
    torch.set_num_threads(threads)
    tries, build = {}, {}
    for items in SIZES:
        tokens = list(catalogue(items, seed))
        began = time.perf_counter()
        tries[items] = SidTrie.from_sequences(tokens)
        build[items] = time.perf_counter() - began
    beams = {}
    for items, trie in tries.items():
        first, last = trie.level_edges[1]
        beams[items] = torch.from_numpy(np.random.default_rng(seed).integers(first, last, size=BEAMS)) + 1
        assert len(trie.children_batched(beams[items]).tokens_F) == BEAMS * CHILDREN
    # The sizes are taken in turn, so that whatever else the machine does falls on all of them.
    steps, masks = ({items: [] for items in SIZES} for _ in range(2))
    for _ in range(rounds):
        for items, trie in tries.items():
            steps[items].append(timed(lambda t=trie, i=items: t.children_batched(beams[i]), calls))
            masks[items].append(timed(lambda t=trie, i=items: t.allowed_mask(beams[i], 3 * CODES), calls // 4))
    micro = {items: 1e6 * min(times) for items, times in steps.items()}
    found = {
        "step_us": {str(items): round(value, 2) for items, value in micro.items()},
        "mask_us": {str(items): round(1e6 * min(times), 2) for items, times in masks.items()},
        "build_s": {str(items): round(value, 2) for items, value in build.items()},
        "spread": max(micro.values()) / min(micro.values()) - 1,
        "beams": BEAMS,
        "children": CHILDREN,
        "threads": threads,
        "torch": torch.__version__,
    }
    typer.echo(json.dumps(found, indent=2))
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
