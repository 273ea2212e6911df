"""A GRPO step with prompts read once for all their completions, against the same step as TRL runs it.

Peer:   trl.GRPOTrainer as installed, in the same process: same model, threads, float32, attention, no gradient
        checkpointing. The loss part gets the same completion ids on both sides.
Model:  SmolLM2-135M's architecture with random weights: times do not depend on their values.
Sizes:  groups of 8, prompts of 240 tokens, completions of 24 and of 64, two prompts a step.
Run:    python benchmarks/grpo_step.py --json out.json     (12 minutes on 2 cores)
        --quickstart outputs/quickstart adds the quickstart planner's real steps, with tool calls and later turns, with
        the switch on and off; the stages before it must have run.
Keys:   loss_speedup_C* is forward and backward, speedup_C* the whole step with generation, reward, and optimizer;
        generation_s, loss_s, optimizer_s stand apart. max_relative_gradient_error is over both sizes, relative to the
        largest gradient of each tensor. peak_mb_* is what one forward and backward takes above model and trainer
        (resident memory; on a GPU: allocated).
"""

import json
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from recllm.evaluation.planner import load_bench
from recllm.training.arguments import parse
from recllm.training.grpo import build_planner_trainer
from recllm.training.prefix.share import share_prefixes
from recllm.training.sft import load_chats
from recllm.training.tiny_lm import train_tokenizer

SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "rope_theta": 100000.0}
ROOT = Path(__file__).resolve().parents[1]
GROUP, PROMPT, PROMPTS = 8, 240, 2
TARGETS = {"loss_speedup_C24": 4.9, "loss_speedup_C64": 3.2, "speedup_C24": 4.0, "speedup_C64": 2.6}


def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Something that differs within a group."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def make_trainer(completion: int, shared: bool, steps: int, folder: str, layers: int) -> GRPOTrainer:
    """A trainer over random letters, each a token of its own."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2 | {"num_hidden_layers": layers}))
    # No merges: a character is a token.
    tokenizer = train_tokenizer(["a"], vocab_size=256)
    letters = torch.randint(97, 123, (PROMPTS * steps, PROMPT), generator=torch.Generator().manual_seed(1))
    args = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=completion,
        max_steps=steps,
        logging_steps=1,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-5,
        seed=0,
    )
    rows = Dataset.from_dict({"prompt": ["".join(map(chr, row)) for row in letters.tolist()]})
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=rows, processing_class=tokenizer)
    if shared:
        share_prefixes(trainer)
    return trainer


def clock(trainer: GRPOTrainer, seconds: dict[str, list[float]]) -> None:
    """Note what generation, whole steps and the optimizer take."""

    def timed(owner: Any, name: str, key: str) -> None:
        method = getattr(owner, name)

        def run(*args: Any, **options: Any) -> Any:
            start = _now()
            out = method(*args, **options)
            seconds[key].append(_now() - start)
            return out

        setattr(owner, name, run)

    timed(trainer, "_generate_single_turn", "generation_s")
    timed(trainer, "compute_loss", "loss_forward_s")
    timed(trainer, "training_step", "forward_backward_and_generation_s")
    trainer.create_optimizer()
    timed(trainer.optimizer, "step", "optimizer_s")


def whole_steps(completion: int, shared: bool, steps: int, layers: int) -> dict[str, Any]:
    """Medians over all steps but the first, rewards and gradient norms of each step."""
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(completion, shared, steps, folder, layers)
        clock(trainer, seconds)
        trainer.train()
    medians = {name: statistics.median(values[1:] or values) for name, values in seconds.items()}
    medians["loss_s"] = medians["forward_backward_and_generation_s"] - medians["generation_s"]
    medians["step_s"] = medians.pop("forward_backward_and_generation_s") + medians["optimizer_s"]
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    return medians | {
        "rewards": [entry["reward"] for entry in history],
        "grad_norms": [entry["grad_norm"] for entry in history],
    }


def random_batch(completion: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A micro-batch as TRL makes it, of random tokens and advantages."""
    generator, rows = torch.Generator().manual_seed(2), PROMPTS * GROUP
    prompt = torch.randint(0, 49152, (PROMPTS, PROMPT), generator=generator).repeat_interleave(GROUP, 0)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.randint(0, 49152, (rows, completion), generator=generator),
        "completion_mask": torch.ones(rows, completion, dtype=torch.long),
        "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": torch.tensor(rows * completion),
    }
    return {name: value.to(device) for name, value in inputs.items()}


def loss_part(completion: int, repeats: int, layers: int) -> dict[str, Any]:
    """Forward and backward on the same ids, stock and shared in turn, and how far their gradients are apart."""
    with tempfile.TemporaryDirectory() as folder:
        stock, ours = (make_trainer(completion, shared, 1, folder, layers) for shared in (False, True))
    ours.model = ours.model_wrapped = stock.model
    inputs = random_batch(completion, stock.model.device)
    taken: dict[str, list[float]] = {"stock": [], "ours": []}
    grads = {}
    for _ in range(repeats + 1):
        for name, trainer in (("ours", ours), ("stock", stock)):
            trainer.current_gradient_accumulation_steps = 1
            trainer.model.zero_grad()
            start = _now()
            trainer.compute_loss(trainer.model, inputs).backward()
            taken[name].append(_now() - start)
            grads[name] = {key: weight.grad for key, weight in trainer.model.named_parameters()}
    error = max(float((grads["ours"][key] - g).abs().max() / g.abs().max()) for key, g in grads["stock"].items())
    ours_s, stock_s = (statistics.median(taken[name][1:]) for name in ("ours", "stock"))
    return {
        "loss_speedup": stock_s / ours_s,
        "loss_ours_s": ours_s,
        "loss_stock_s": stock_s,
        "gradient_error": error,
    }


def planner_steps(outputs: Path, shared: bool, steps: int) -> dict[str, Any]:
    """Medians of the quickstart planner's steps, its rewards, and what was not shared and why."""
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--config", str(ROOT / "recipes" / "configs" / "grpo_planner" / "quickstart.yaml")]
        argv += ["--output_dir", folder, "--model_name_or_path", str(outputs / "planner_sft"), "--disable_tqdm", "true"]
        recipe = runpy.run_path(str(ROOT / "recipes" / "grpo_planner.py"), run_name="recipe")
        terms, args, model_args = parse(
            recipe["Arguments"], *recipe["TRL_CONFIGS"], argv=[*argv, "--max_steps", str(steps)]
        )
        weights = {
            name.removesuffix("_weight"): value for name, value in vars(terms).items() if name.endswith("_weight")
        }
        inputs = {name: outputs / name for name in ("dataset", "sid_table", "tool_cache")}
        rows = load_chats(outputs / "planner_traces" / "prompts")
        trainer = build_planner_trainer(rows, load_bench(inputs, role="routing"), args, model_args, weights)
        sharing = share_prefixes(trainer) if shared else None
        clock(trainer, seconds)
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    step_s = statistics.median(seconds["forward_backward_and_generation_s"][1:])
    generation_s = sum(seconds["generation_s"]) / steps
    return {"step_s": step_s, "generation_s": generation_s, "rewards": [entry["reward"] for entry in history]} | (
        {} if sharing is None else {"not_shared": dict(sharing.reasons), "shared": dict(sharing.shared)}
    )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb(side: str, completion: int, layers: int) -> float:
    """Megabytes that one forward and backward needs above model and trainer, in a process of its own.

    A process keeps what it has freed, so two sides cannot be told apart within one.
    """
    command = [sys.executable, __file__, "--memory", side, "--completions", str(completion), "--layers", str(layers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory(side: str, completion: int, layers: int) -> float:
    """What `peak_mb` runs."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(completion, side == "ours", 1, folder, layers)
    trainer.current_gradient_accumulation_steps = 1
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 1e6 if gpu else psutil.Process().memory_info().rss / 1e6
    trainer.compute_loss(trainer.model, random_batch(completion, trainer.model.device)).backward()
    if gpu:
        return torch.cuda.max_memory_allocated() / 1e6 - before
    # The peak of this program alone: what `resource` tells begins with what the parent held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6 - before


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    steps: int = 3,
    repeats: int = 3,
    threads: int = 2,
    layers: int = SMOLLM2["num_hidden_layers"],
    completions: str = "24,64",
    quickstart: Annotated[Path | None, typer.Option(help="outputs/quickstart, to measure its planner, too.")] = None,
    planner_steps_each: int = 12,
    memory_of: Annotated[str | None, typer.Option("--memory", hidden=True)] = None,
) -> None:
    torch.set_num_threads(threads)
    if memory_of:
        print(memory(memory_of, int(completions), layers))
        return
    found: dict[str, Any] = {
        "sizes": SMOLLM2 | {"num_hidden_layers": layers, "group": GROUP, "prompt": PROMPT, "prompts": PROMPTS},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    errors, lengths = [], [int(length) for length in completions.split(",") if length]
    # First, while this process holds nothing: stock's peak beside what it keeps of its own is more than 24 GB.
    for completion in lengths:
        found |= {f"peak_mb_{side}_C{completion}": peak_mb(side, completion, layers) for side in ("ours", "stock")}
    for completion in lengths:
        part = loss_part(completion, repeats, layers)
        errors.append(part.pop("gradient_error"))
        found |= {f"{name}_C{completion}": value for name, value in part.items()}
        sides = {name: whole_steps(completion, name == "ours", steps, layers) for name in ("ours", "stock")}
        found[f"speedup_C{completion}"] = sides["stock"]["step_s"] / sides["ours"]["step_s"]
        for name, values in sides.items():
            found |= {f"{key}_{name}_C{completion}": value for key, value in values.items()}
    found["max_relative_gradient_error"] = max(errors, default=None)
    if quickstart:
        for name in ("ours", "stock"):
            planner = planner_steps(quickstart, name == "ours", planner_steps_each)
            found |= {f"planner_{key}_{name}": value for key, value in planner.items()}
        found["planner_speedup"] = found["planner_step_s_stock"] / found["planner_step_s_ours"]
    found["targets"] = TARGETS
    json.dump(found, sys.stdout, indent=2)
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
