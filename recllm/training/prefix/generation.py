"""Generation for GRPO with each prompt read once: in place of `model.generate` while TRL fills its buffer.

TRL hands a prompt over once a completion. Here it is read once (`decoding/shared.py`), and its completions grow side by
side under a mask, in cache room set aside at the start. What a generation config may ask for beyond temperature, top-k,
top-p, min-p and a repetition penalty runs as transformers wrote it. Draws come from the same generator in the same
order as there, so a seed gives the same completions but where rounding decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from recllm.decoding.packed_linears import packed_linears
from recllm.decoding.shared import SharedPrompt, check_model
from recllm.training.models import base_of, sliced
from recllm.training.prefix.packing import assign, group_rows, place_in_group

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel
    from trl import GRPOTrainer

    from recllm.training.prefix.share import Sharing

# What shapes a draw here or means nothing to it. Whatever else a config sets needs transformers' own loop.
_DRAW = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample", "max_new_tokens"}
_IDLE = {"pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "disable_compile", "transformers_version"}
_IDLE |= {"max_length", "trust_remote_code", "_from_model_config"}
# Reading a prompt's cache again costs about this many times the products of a query with as many keys (measured on a
# CPU; a few times more or less changes little).
_READING = 40


@contextmanager
def sharing_prefill(trainer: GRPOTrainer, sharing: Sharing) -> Iterator[None]:
    """Inside, the trainer's model generates from prompts that are read once, where that is possible."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    original = model.generate

    def generate(input_ids=None, attention_mask=None, generation_config=None, **inputs):
        reason = _unsupported(trainer, model, generation_config, inputs, input_ids.shape[1])
        group_R = None
        if reason is None:
            group_R = group_rows(input_ids, attention_mask)
            if len(torch.unique(group_R)) == len(group_R):
                reason = "no two rows have the same prefix (turns after the first, or one completion a prompt)"
        if reason is not None:
            sharing.fall_back("generation", reason)
            return original(
                input_ids=input_ids, attention_mask=attention_mask, generation_config=generation_config, **inputs
            )
        sharing.shared["generation"] += 1
        with trainer.accelerator.autocast():
            return generate_shared(model, input_ids, attention_mask, generation_config, group_R)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate


def _unsupported(
    trainer: GRPOTrainer, model: PreTrainedModel, config: GenerationConfig | None, inputs: dict[str, Any], length: int
) -> str | None:
    """Why transformers' own loop has to run, or None."""
    if inputs or config is None:
        return f"generate was called with {', '.join(inputs) or 'no generation config'}"
    if sliced():
        return "weights are sliced over processes, which have to step together"
    asked = {**model.generation_config.to_diff_dict(), **config.to_diff_dict()}
    asked = {name for name, value in asked.items() if value not in (None, False)}
    if strange := sorted(asked - _DRAW - _IDLE):
        return f"the generation config sets {', '.join(strange)}"
    if config.max_new_tokens is None or config.eos_token_id is None or not config.do_sample:
        return "completions are not sampled up to max_new_tokens or an end"
    try:
        check_model(base_of(model), length + config.max_new_tokens)
    except ValueError as error:
        return str(error)
    return None


def warpers(config: GenerationConfig, default: GenerationConfig, padding_R: torch.Tensor) -> LogitsProcessorList:
    """What transformers applies to logits before it draws, in its order; `padding_R` counts the padding before rows."""

    def value(name: str) -> Any:
        own = getattr(config, name)
        return getattr(default, name) if own is None else own

    steps = LogitsProcessorList()
    if value("repetition_penalty") not in (None, 1.0):
        steps.append(RepetitionPenaltyLogitsProcessor(value("repetition_penalty"), prompt_ignore_length=padding_R))
    if value("temperature") not in (None, 1.0):
        steps.append(TemperatureLogitsWarper(value("temperature")))
    if value("top_k") not in (None, 0):
        steps.append(TopKLogitsWarper(top_k=value("top_k")))
    if value("top_p") not in (None, 1.0):
        steps.append(TopPLogitsWarper(top_p=value("top_p")))
    if value("min_p") is not None:
        steps.append(MinPLogitsWarper(min_p=value("min_p")))
    return steps


@torch.no_grad()
def generate_shared(
    model: PreTrainedModel,
    input_RT: torch.Tensor,
    mask_RT: torch.Tensor,
    config: GenerationConfig,
    group_R: torch.Tensor,
    held: LogitsProcessor | None = None,
) -> torch.Tensor:
    """Prompts and drawn completions `R(T+C)`, as `model.generate` returns them; rows of a group share their prompt.

    Prompts are padded on the left. A completion that ended is filled with the padding token. `held` closes tokens to
    the draw before anything else shapes it; it is called once a step, with all rows.
    """
    inner = base_of(model)
    steps, draws = warpers(config, model.generation_config, (1 - mask_RT).sum(1)), config.max_new_tokens
    if held is not None:
        steps.insert(0, held)
    ends = torch.as_tensor(config.eos_token_id, device=input_RT.device).flatten()
    pad = config.pad_token_id if config.pad_token_id is not None else int(ends[0])
    most = int(torch.bincount(group_R).max())
    columns = max(1, min(most, round(math.sqrt(_READING * input_RT.shape[1] / draws))))
    grown = _Growth(inner, input_RT, mask_RT, assign(group_R, columns), group_R, draws)
    head, rows = inner.get_output_embeddings(), input_RT
    open_R = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    hidden_RD = grown.hidden_RD
    with packed_linears(inner, len(rows), draws):
        for step in range(draws):
            logits_RV = steps(rows, head(hidden_RD).float())
            # One draw a row, ended or not: the generator then moves as it does in transformers.
            token_R = torch.multinomial(logits_RV.softmax(-1), 1)[:, 0]
            token_R = torch.where(open_R, token_R, pad)
            rows = torch.cat([rows, token_R[:, None]], 1)
            open_R &= ~torch.isin(token_R, ends)
            if not open_R.any() or step + 1 == draws:
                break
            hidden_RD = grown.extend(token_R)
    return rows


def draw_shared(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    held: LogitsProcessor | None = None,
) -> list[list[int]]:
    """Tokens that are drawn after each prompt (`generate_shared`); prompts that are equal are read once.

    `config.pad_token_id` pads prompts on the left, and completions that ended.
    """
    longest, pad = max(map(len, prompts)), config.pad_token_id
    input_RT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts], device=model.device)
    mask_RT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    number: dict[tuple[int, ...], int] = {}
    group_R = torch.tensor([number.setdefault(tuple(ids), len(number)) for ids in prompts], device=model.device)
    return generate_shared(model, input_RT, mask_RT, config, group_R, held)[:, longest:].tolist()


class _Growth:
    """Completions of shared prompts, one hidden state a row at a time."""

    def __init__(self, model, input_RT, mask_RT, sequence_R, group_R, draws: int):
        lead_R = place_in_group(group_R) == 0
        first_N = lead_R.nonzero()[:, 0][group_R[lead_R].argsort()]
        prompts = [input_RT[row][mask_RT[row].bool()].tolist() for row in first_N.tolist()]
        count_S = torch.bincount(sequence_R)
        self.width = int(count_S.max())
        shared = SharedPrompt(model, prompts, room=self.width * (draws - 1))
        group_S = torch.empty_like(count_S).scatter_(0, sequence_R, group_R)
        self.hidden_RD = shared.hidden_B1D[group_R, 0]
        shared.spread(group_S)
        self.shared, self.sequence_R = shared, sequence_R
        self.column_R = place_in_group(sequence_R)
        self.parent_SK = torch.zeros(len(count_S), self.width, dtype=torch.long, device=count_S.device)

    def extend(self, token_R: torch.Tensor) -> torch.Tensor:
        token_SK = torch.zeros_like(self.parent_SK)
        token_SK[self.sequence_R, self.column_R] = token_R
        hidden_SKD = self.shared.extend(token_SK, self.parent_SK)
        # From the second token on every completion descends from its own column.
        self.parent_SK = torch.arange(self.width, device=token_R.device).expand_as(token_SK)
        return hidden_SKD[self.sequence_R, self.column_R]
