"""A sweep of merges in memory against mergekit-yaml, one process a point, at SmolLM2-135M's size.

Claim: an 11-point linear sweep takes at most 1/20 of mergekit-yaml's time a point and a 5 x 5 TIES grid 1/30; the
    tensors are equal for linear and differ by at most one bfloat16 step for TIES.
Run:   python benchmarks/merge_sweep.py --json out.json
Both sides read the same three bfloat16 checkpoints, which are made here: SmolLM2-135M's shapes, random weights, and two
children that moved away from them by a tenth of their spread. Ours writes every point into one live model in memory;
its seconds count everything from mapping the parents on, the one sort of each tensor included. mergekit-yaml runs
`--peer_points` points of each grid (first, middle, last), in processes of their own that write checkpoints, and is
scaled by its mean. Ratios are of wall clock (`linear_speedup`, `ties_speedup`) and of processor time (`..._cpu`),
which other work on the machine disturbs less. Then every point of both grids is compared with mergekit, tensor by
tensor, on a model of two layers (`max_abs_difference` over the linear points, `max_ulp` over all). Peak memory is the
largest resident set: of this process, whose parents are mapped file pages, and of mergekit's, which begins as a fork
of this one and so is never told as smaller.
Measured: 2 idle cores, mergekit 0.1.5, torch 2.13: linear .22 s a point against 5.8 s, 26x; TIES 2.05 s against 22.1 s,
    10.8x, of which the first point, which sorts, takes 20.8 s and the cheapest other 1.1 s (20x); tensors equal to the
    last bit; peak memory 2.1 GiB, 1.6 of it before the first merge. 30x for TIES is out of reach: which of equal
    magnitudes mergekit keeps follows from its unstable sort alone, and that sort is .83 s for each of 25 points.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

from recllm.machine import peak_memory_gib, versions
from recllm.merging.checkpoint import Weights
from recllm.merging.engine import MergeEngine
from recllm.merging.mergekit_yaml import to_mergekit
from recllm.merging.space import Point, engine_order
from recllm.merging.write import write

logger = logging.getLogger("merge_sweep")
STEPS = [step / 10 for step in range(11)]
GRIDS = {
    "linear": [Point.of("linear", strength=strength) for strength in STEPS],
    "ties": [
        Point.of("ties", strength=strength, density=density)
        for strength in (0.1, 0.3, 0.5, 0.7, 0.9)
        for density in (0.2, 0.35, 0.5, 0.65, 0.8)
    ],
}
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
SMALL = {"vocab_size": 2048, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2}


def make_parents(root: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """A random base and its two children, as checkpoints of a Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_attention_heads=9 if sizes is SMOLLM2 else 6, num_key_value_heads=3)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(root / "base")
    base = load_file(root / "base" / "model.safetensors")
    for role in ("direct", "thinking"):
        (root / role).mkdir()
        (root / role / "config.json").write_text((root / "base" / "config.json").read_text())
        moved = {name: tensor + (torch.randn(tensor.shape) * 0.002).bfloat16() for name, tensor in base.items()}
        save_file(moved, root / role / "model.safetensors", metadata={"format": "pt"})
    return {role: root / role for role in ("direct", "thinking", "base")}


def fast(parents: dict[str, Path], points: list[Point]) -> dict[str, float]:
    """Seconds a point of the fast path, and of its first and its cheapest point."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(parents["direct"], dtype=torch.bfloat16)
    target = model.state_dict()
    wall, cpu, laps = time.perf_counter(), time.process_time(), []
    engine = MergeEngine({role: Weights(folder) for role, folder in parents.items()}, points)
    for point in engine_order(points):
        began = time.perf_counter()
        engine.write_into(point, target)
        laps.append(time.perf_counter() - began)
    spent = time.process_time() - cpu
    wall = time.perf_counter() - wall
    count = len(points)
    return {"seconds": wall / count, "cpu_seconds": spent / count, "first_seconds": laps[0], "best_seconds": min(laps)}


def peer(parents: dict[str, Path], points: list[Point], count: int) -> dict[str, float]:
    """Seconds a point of mergekit-yaml over `count` points spread over the grid."""
    layout = MergeEngine({"direct": Weights(parents["direct"])}).layout
    chosen = [points[round(i * (len(points) - 1) / max(count - 1, 1))] for i in range(count)]
    program = Path(sys.executable).with_name("mergekit-yaml")
    walls, cpus = [], []
    for point in chosen:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.yml"
            config.write_text(to_mergekit(point, layout, parents, "bfloat16"), encoding="utf-8")
            command = [str(program), str(config), str(Path(folder) / "out"), "--no-write-model-card"]
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([*command, "--no-copy-tokenizer"], check=True, capture_output=True)
            walls.append(time.perf_counter() - began)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"peer_seconds": sum(walls) / count, "peer_cpu_seconds": sum(cpus) / count}


def steps_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    """Largest distance of two bfloat16 tensors in steps of the format."""

    def order(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((order(one) - order(other)).abs().max())


def compare(parents: dict[str, Path], points: list[Point]) -> tuple[float, int]:
    """Largest difference from mergekit over all tensors of all points, absolute and in bfloat16 steps."""
    engine = MergeEngine({role: Weights(folder) for role, folder in parents.items()}, points)
    largest, steps = 0.0, 0
    for point in points:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.yml"
            config.write_text(to_mergekit(point, engine.layout, parents, "bfloat16"), encoding="utf-8")
            write(config, Path(folder) / "out", point.seed)
            expected = {}
            for file in (Path(folder) / "out").glob("*.safetensors"):
                expected |= load_file(file)
        found = dict(engine.tensors(point))
        if set(found) != set(expected):
            raise RuntimeError(f"{point.label}: other tensors than mergekit's: {sorted(set(found) ^ set(expected))}")
        for name, tensor in found.items():
            largest = max(largest, float((tensor.float() - expected[name].float()).abs().max()))
            steps = max(steps, steps_apart(tensor, expected[name]))
    return largest, steps


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    peer_points: Annotated[int, typer.Option("--peer_points", help="Points of each grid that mergekit runs.")] = 3,
    threads: int = 2,
) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for mergekit's processes
    figures: dict = {"threads": threads, "load": os.getloadavg()[0], "versions": versions()}
    with tempfile.TemporaryDirectory() as root:
        parents = make_parents(Path(root), SMOLLM2)
        before = peak_memory_gib()
        for name, points in GRIDS.items():
            ours = fast(parents, points)
            figures |= {f"{name}_{key}": value for key, value in ours.items()} | {f"{name}_points": len(points)}
            logger.warning("%s: %s", name, ours)
        figures |= {"peak_memory_gib": peak_memory_gib(), "peak_memory_before_gib": before}
        for name, points in GRIDS.items():
            theirs = peer(parents, points, peer_points)
            figures |= {f"{name}_{key}": value for key, value in theirs.items()}
            figures[f"{name}_speedup"] = theirs["peer_seconds"] / figures[f"{name}_seconds"]
            figures[f"{name}_speedup_cpu"] = theirs["peer_cpu_seconds"] / figures[f"{name}_cpu_seconds"]
        kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        figures |= {"peer_points": peer_points, "peer_peak_memory_gib": kibibytes / (1 << 20)}
    with tempfile.TemporaryDirectory() as root:
        small = make_parents(Path(root), SMALL)
        figures["max_abs_difference"], linear_steps = compare(small, GRIDS["linear"])
        figures["ties_max_abs_difference"], ties_steps = compare(small, GRIDS["ties"])
        figures["max_ulp"] = max(linear_steps, ties_steps)
    text = json.dumps(figures, indent=2)
    logger.warning("%s", text)
    if json_path:
        json_path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
