"""A language model on this machine whose replies follow a schema letter by letter.

Masks come from llguidance: a token may be drawn only where some legal reply goes on with it. What the schema leaves no
choice about (braces, names of fields, the rest of an axis's name) is written without a draw, and without a pass through
the model of its own where every row of the batch has such tokens waiting.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache

from recllm.evaluation.completions import choose
from recllm.teachers.local import Local
from recllm.teachers.protocol import Sampling, TeacherError, digest
from recllm.tuning.language.language import SAMPLING, Ask
from recllm.tuning.language.prompt import Style

if TYPE_CHECKING:
    from llguidance import LLMatcher

_TEXT = 100  # characters of a free text; small models ramble


@dataclass
class _Row:
    """A reply while it is written.

    Args:
        place: of the ask in its batch. written: tokens so far; the last `waiting` of them the model has not seen.
    """

    place: int
    matcher: LLMatcher
    rng: np.random.Generator
    written: list[int] = field(default_factory=list)
    waiting: int = 0

    def write(self, tokens: Sequence[int]) -> None:
        """These tokens, and all that follow from them by the grammar."""
        if not self.matcher.consume_tokens(list(tokens)):
            raise TeacherError(f"llguidance cannot go on: {self.matcher.get_error()}")
        forced = self.matcher.compute_ff_tokens()
        if forced and not self.matcher.consume_tokens(forced):
            raise TeacherError(f"llguidance cannot go on: {self.matcher.get_error()}")
        self.written += [*tokens, *forced]
        self.waiting += len(tokens) + len(forced)

    def draw(self, logits_V: torch.Tensor, sampling: Sampling) -> None:
        """One token of those that are legal; at a temperature one number of the row's stream decides."""
        mask_V = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        legal = np.flatnonzero(mask_V[: len(logits_V)])
        if not len(legal):
            raise TeacherError(f"llguidance leaves no token: {self.matcher.get_error() or 'the tokenizer lacks one'}")
        uniform_1 = torch.tensor([self.rng.random()], dtype=torch.float32) if sampling.temperature else None
        chosen_1 = choose(logits_V[legal][None], sampling.temperature, sampling.top_p, uniform_1)
        self.write([int(legal[chosen_1.item()])])


class LocalModel:
    """Replies to asks in left-padded batches.

    The draws of a reply depend on its ask alone, not on the batch it is in, up to the rounding of padded batches.

    Args:
        local: the model as a teacher.
        style: how a situation is told to it.
        text: characters of a free text at most, where the schema allows more; None leaves the schema as it is.
    """

    def __init__(self, local: Local, style: Style = "full", text: int | None = _TEXT) -> None:
        import llguidance.hf

        self.style, self.text, self._local = style, text, local
        self.name = f"{local.name} {style}" + (f" text={text}" if text else "")
        if local.model.device.type == "cpu":
            local.model.float()  # most processors have no arithmetic for 16 bits
        width = local.model.get_output_embeddings().weight.shape[0]
        self._tokens = llguidance.hf.from_tokenizer(local.tokenizer, width, sorted(local.ends()))

    @classmethod
    def load(
        cls,
        source: str | Path,
        sampling: Sampling = SAMPLING,
        style: Style = "full",
        text: int | None = _TEXT,
        batch: int = 16,
    ) -> LocalModel:
        """The model in a folder, or the Hub's by its id."""
        return cls(Local.load(source, sampling, batch), style, text)

    def reply(self, asks: Sequence[Ask]) -> list[str]:
        """One text an ask, in order; legal by its schema but where `max_tokens` cut it off.

        Raises:
            TeacherError: a prompt and its reply would not fit the model's context.
            ValueError: a schema that llguidance does not take.
        """
        size, texts = self._local.batch, []
        for start in range(0, len(asks), size):
            texts += self._batch(asks[start : start + size])
        return texts

    @torch.inference_mode()
    def _batch(self, asks: Sequence[Ask]) -> list[str]:
        rows, sampling = self._rows(asks), self._local.sampling
        prompts = self._local.prompts([one.messages for one in asks])
        done = dict.fromkeys(range(len(asks)), "")
        feed = [[*prompt, *row.written] for prompt, row in zip(prompts, rows, strict=True)]
        steps = _Steps(self._local, feed)
        for row in rows:
            row.waiting = 0
        while rows:
            logits_BV = steps.logits_BV
            for row, logits_V in zip(rows, logits_BV, strict=True):
                if not row.waiting:
                    row.draw(logits_V, sampling)
            over = [row.matcher.is_stopped() or len(row.written) >= sampling.max_tokens for row in rows]
            for row, ended in zip(rows, over, strict=True):
                if ended:
                    done[row.place] = self._tokens.decode_str(row.written[: sampling.max_tokens])
            kept = [index for index, ended in enumerate(over) if not ended]
            if len(kept) < len(rows):
                rows = [rows[index] for index in kept]
                steps.keep(kept)
            if rows:
                width = min(row.waiting for row in rows)
                steps.forward([row.written[len(row.written) - row.waiting :][:width] for row in rows])
                for row in rows:
                    row.waiting -= width
        return [done[place] for place in range(len(asks))]

    def _rows(self, asks: Sequence[Ask]) -> list[_Row]:
        """One a ask, begun with what its schema forces. Building a grammar takes milliseconds; equal ones share it."""
        from llguidance import LLMatcher

        built: dict[str, LLMatcher] = {}
        rows = []
        for place, one in enumerate(asks):
            text = json.dumps(one.schema if self.text is None else _shortened(one.schema, self.text))
            if text not in built:
                grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
                built[text] = LLMatcher(self._tokens, grammar)
                if error := built[text].get_error():
                    raise ValueError(f"llguidance does not take the schema: {error}")
            seed = int(digest(one.question(self.style), f"seed {self._local.sampling.seed}"), 16)
            row = _Row(place, built[text].deep_copy(), np.random.default_rng(seed))
            row.write([])
            rows.append(row)
        return rows


class _Steps:
    """A batch on its way through the model: what it has seen, and the scores of what comes next.

    logits_BV: of the last token of every row, float32, on the host.
    """

    def __init__(self, local: Local, rows: Sequence[Sequence[int]]) -> None:
        self._model, self._cache = local.model, DynamicCache(config=local.model.config)
        # transformers renamed the argument; the old name goes away in 5.40.
        known = inspect.signature(type(local.model).forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        longest = max(map(len, rows))
        self._seen_BT = torch.zeros(len(rows), 0, dtype=torch.long, device=local.model.device)
        pad = local.tokenizer.pad_token_id
        self._pass(
            [[pad] * (longest - len(row)) + list(row) for row in rows],
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows],
        )

    def forward(self, rows: Sequence[Sequence[int]]) -> None:
        """One or more tokens further, as many in each row."""
        self._pass(rows, [[1] * len(row) for row in rows])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if rows:
            index = torch.tensor(rows, device=self._seen_BT.device)
            self._cache.batch_select_indices(index)
            self._seen_BT = self._seen_BT[index]

    def _pass(self, tokens: Sequence[Sequence[int]], real: Sequence[Sequence[int]]) -> None:
        device = self._seen_BT.device
        self._seen_BT = torch.cat([self._seen_BT, torch.tensor(real, device=device)], 1)
        places_BT = (self._seen_BT.cumsum(1) - 1).clamp_min(0)[:, -len(tokens[0]) :]
        out = self._model(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=self._seen_BT,
            position_ids=places_BT,
            **{self._cache_name: self._cache},
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_BV = out.logits[:, -1].float().cpu()


def _shortened(schema: Any, most: int) -> Any:
    """The schema with no text longer than that."""
    if isinstance(schema, Mapping):
        return {
            name: min(value, most) if name == "maxLength" and isinstance(value, int) else _shortened(value, most)
            for name, value in schema.items()
        }
    return [_shortened(value, most) for value in schema] if isinstance(schema, list) else schema
