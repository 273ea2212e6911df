"""Ranking ten candidates with a language model: the history read once, against a full forward of each chat.

Claim:  a user's ten candidates by the probability of their sids, and a list of ten in all cyclic orders by its letters,
        each faster than reading every chat whole, with the same scores to 1e-4.
Peers:  in the same process, one forward a chat (`peer`, sids only), and all ten chats as one batch (`peer_batch`),
        which is as good as plain transformers gets. Both evaluate the head only where a score is read.
Models: SmolLM2-135M's architecture and the quickstart's, random weights: times do not depend on their values.
Sizes:  histories of 240 tokens, sids of 3 codes; a letter chat's list and question take 60 tokens more.
Run:    python benchmarks/letter_rank.py --json out.json
Times are processor seconds of one thread, which a busy machine disturbs less, the best of several, the sides in turn.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from recllm.tools.cost import LMCost
from recllm.tools.letter import LETTERS, letter_scores, sid_scores

HISTORY, LEVELS, TAIL, CANDIDATES = 240, 3, 60, len(LETTERS)
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49152}
QUICKSTART = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
QUICKSTART |= {"num_key_value_heads": 4, "head_dim": 32, "vocab_size": 2048}


def make_models(seed: int) -> dict[str, torch.nn.Module]:
    """Both models, with weights wide enough that scores differ clearly."""
    torch.manual_seed(seed)
    common = {"tie_word_embeddings": True, "max_position_embeddings": 1024, "initializer_range": 0.05}
    return {
        "smollm2": LlamaForCausalLM(LlamaConfig(**SMOLLM2, **common)).eval(),
        "quickstart": Qwen3ForCausalLM(Qwen3Config(**QUICKSTART, **common)).eval(),
    }


def last_logp(model: torch.nn.Module, ids_RT: torch.Tensor, keep: int) -> torch.Tensor:
    """Log-probabilities `RKV` after the last `keep` tokens, by a plain forward."""
    return model(ids_RT, use_cache=False, logits_to_keep=keep).logits.float().log_softmax(-1)


def peer_sids(model: torch.nn.Module, history_T: torch.Tensor, sid_KL: torch.Tensor, batch: bool) -> torch.Tensor:
    """Scores `K` of the candidates; each chat is the history followed by a sid without its last code."""
    ids_KT = torch.cat([history_T.expand(len(sid_KL), -1), sid_KL[:, :-1]], 1)
    parts = [ids_KT] if batch else ids_KT.split(1)
    logp_KLV = torch.cat([last_logp(model, part, sid_KL.shape[1]) for part in parts])
    return logp_KLV.gather(2, sid_KL[:, :, None]).sum((1, 2))


def peer_letters(
    model: torch.nn.Module, history_T: torch.Tensor, branch_RC: torch.Tensor, letter_N: torch.Tensor
) -> torch.Tensor:
    """Scores `N`: each rotation is a chat of its own, and letter j of rotation r stands for candidate j + r."""
    ids_RT = torch.cat([history_T.expand(len(branch_RC), -1), branch_RC], 1)
    logit_RN = last_logp(model, ids_RT, 1)[:, 0, letter_N].log_softmax(-1)
    return torch.stack([row_N.roll(turn) for turn, row_N in enumerate(logit_RN)]).mean(0)


@torch.no_grad()
def measure(model: torch.nn.Module, repeats: int, seed: int) -> dict[str, float]:
    """Seconds of each side, ratios, the largest difference of scores, and FLOPs of both sides."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    history_T = torch.randint(vocabulary, (HISTORY,), generator=generator)
    sid_KL = torch.randint(vocabulary, (CANDIDATES, LEVELS), generator=generator)
    branch_RC = torch.randint(vocabulary, (CANDIDATES, TAIL), generator=generator)
    letter_N, prompt = torch.arange(CANDIDATES) + 7, [history_T.tolist()]
    sides = {
        "sid_ours": lambda: sid_scores(model, prompt, sid_KL[None])[0],
        "sid_peer_batch": lambda: peer_sids(model, history_T, sid_KL, True),
        "sid_peer": lambda: peer_sids(model, history_T, sid_KL, False),
        "rotations_ours": lambda: letter_scores(model, prompt, branch_RC[None], letter_N)[0],
        "rotations_peer_batch": lambda: peer_letters(model, history_T, branch_RC, letter_N),
    }
    seconds, scores = dict.fromkeys(sides, float("inf")), {}
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.process_time()
            scores[name] = side()
            seconds[name] = min(seconds[name], time.process_time() - began)
    found = {f"{name}_s": round(value, 4) for name, value in seconds.items()}
    for kind, peer in (("sid", "peer"), ("sid", "peer_batch"), ("rotations", "peer_batch")):
        found[f"{kind}_speedup_{peer}"] = seconds[f"{kind}_{peer}"] / seconds[f"{kind}_ours"]
        difference = (scores[f"{kind}_ours"] - scores[f"{kind}_{peer}"]).abs().max()
        found[f"{kind}_difference_{peer}"] = float(difference)
    cost = LMCost.of(model)
    ours = cost.prefill(HISTORY) + cost.beam(CANDIDATES, LEVELS, HISTORY)
    return found | {"sid_flops_ratio": CANDIDATES * (cost.prefill(HISTORY) + cost.decode(LEVELS - 1, HISTORY)) / ours}


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    repeats: int = 2,
    threads: int = 1,
    seed: int = 0,
) -> None:
    torch.set_num_threads(threads)
    found = {
        "sizes": {"history": HISTORY, "levels": LEVELS, "tail": TAIL, "candidates": CANDIDATES},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "threads": threads,
    }
    for name, model in make_models(seed).items():
        found |= {f"{name}_{key}": value for key, value in measure(model, repeats, seed).items()}
    equal = [value for key, value in found.items() if "_difference_" in key]
    found |= {"speedup": found["smollm2_sid_speedup_peer"], "max_difference": max(equal)}
    typer.echo(json.dumps(found, indent=2))
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
