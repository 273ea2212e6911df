"""Playing episodes with a planner outside of training: greedy, batched, the same environment as in GRPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track

from recllm.planner.bench import Bench
from recllm.planner.env import MAX_CALLS, PlannerEnv
from recllm.planner.parser import parse_turn
from recllm.planner.texts import TOOLS
from recllm.tools.cost import LMCost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Called with the environments that still play, what each wrote, and how many tokens each read in all and wrote.
Listener = Callable[[list[PlannerEnv], list[str], list[int], list[int]], None]


@dataclass(frozen=True)
class Rollout:
    """A finished episode. `own_cost` is the planner's FLOPs for prompts and completions; `faults` counts bad calls."""

    env: PlannerEnv
    messages: list[dict]
    own_cost: int
    faults: int


def play(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bench: Bench,
    rows: np.ndarray,
    max_turn_tokens: int = 64,
    batch_size: int = 256,
    label: str = "planner",
) -> list[Rollout]:
    """One greedy episode for each row of the bench, in the order of `rows`."""
    model.eval()
    rollouts: list[Rollout] = []
    for chunk in track(
        np.split(rows, np.arange(batch_size, len(rows), batch_size)), description=f"{label} x {len(rows)}"
    ):
        rollouts += play_batch(model, tokenizer, bench, chunk, max_turn_tokens)
    return rollouts


def play_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bench: Bench,
    rows: np.ndarray,
    max_turn_tokens: int = 64,
    listen: Listener | None = None,
) -> list[Rollout]:
    """`play` in one batch, without a progress bar; `listen` hears every turn before its calls are played."""
    cost = LMCost.of(model)
    envs, chats = [PlannerEnv(bench) for _ in rows], [list(bench.prompt(int(row))) for row in rows]
    own, bad, context = ([0] * len(rows) for _ in range(3))
    for env, row in zip(envs, rows, strict=True):
        env.reset(row=int(row))
    live = list(range(len(rows)))
    # One turn more than there are calls, so that every episode may end by itself.
    for _ in range(MAX_CALLS + 1):
        texts, prompt_lengths, written = _turn(model, tokenizer, [chats[i] for i in live], max_turn_tokens)
        if listen is not None:
            listen([envs[i] for i in live], texts, prompt_lengths, written)
        still = []
        for i, text, prompt_length, tokens in zip(live, texts, prompt_lengths, written, strict=True):
            # The cache keeps what was read before; a turn pays for what is new.
            own[i] += cost.read(prompt_length - context[i], context[i]) if context[i] else cost.prefill(prompt_length)
            own[i] += cost.decode(tokens, prompt_length)
            context[i] = prompt_length + tokens
            chats[i].append({"role": "assistant", "content": text})
            results, faults = _act(envs[i], text)
            chats[i] += results
            bad[i] += faults
            if results:
                still.append(i)
        live = still
        if not live:
            break
    return [Rollout(*parts) for parts in zip(envs, chats, own, bad, strict=True)]


def _act(env: PlannerEnv, text: str) -> tuple[list[dict], int]:
    parsed = parse_turn(text)
    results, faults = [], parsed.malformed
    for name, arguments in parsed.calls:
        try:
            if name not in TOOLS:
                raise ValueError(f"Tool {name} not found.")
            content = getattr(env, name)(**{key: _number(value) for key, value in arguments.items()})
        except (TypeError, ValueError) as error:  # what TRL's loop answers to a faulty call
            content, faults = str({"error": str(error)}), faults + 1
        results.append({"role": "tool", "name": name, "content": content})
    return results, faults


def _number(value: Any) -> Any:
    # TRL types arguments by the tool's schema, and every argument of these tools is a whole number.
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value


@torch.no_grad()
def _turn(model, tokenizer, chats: list[list[dict]], max_turn_tokens: int) -> tuple[list[str], list[int], list[int]]:
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    inputs = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
    ids_BT = model.generate(**inputs, max_new_tokens=max_turn_tokens, do_sample=False)
    new_BT = ids_BT[:, inputs["input_ids"].shape[1] :].tolist()
    texts, written = [], []
    for ids in new_BT:
        stop = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
        texts.append(tokenizer.decode(ids[:stop]))
        written.append(min(stop + 1, len(ids)))
    return texts, inputs["attention_mask"].sum(1).tolist(), written
