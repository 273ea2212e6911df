"""The slow tool: a language model thinks which categories the user wants, then searches SIDs under the trie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import track

from recllm.data.prompts import REASONER_HISTORY, THINK_CLOSE, reasoner_prompt
from recllm.data.splits import Examples
from recllm.decoding.beam import recommend_by_beam
from recllm.decoding.trie import SidTrie
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER, check_table
from recllm.tools.answer import ToolAnswer
from recllm.tools.cost import LMCost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Beams beyond k: a wider beam loses less on its way to the last level.
_SPARE_BEAMS = 14


class Reason:
    """Two-phase decoding: a free thought up to a budget, closed if the model did not close it, then a beam.

    Cost: prompt, thought, and the beam's tokens.
    """

    name = "reason"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: SidTable, think_tokens: int = 24
    ):
        self.model, self.tokenizer, self.table, self.think_tokens = model.eval(), tokenizer, table, think_tokens
        self.trie = SidTrie.from_table(table, tokenizer).to(model.device)
        self.texts = [table.text(item) for item in range(len(table.codes_NL))]
        self.lm_cost = LMCost.of(model)

    @classmethod
    def load(cls, folder: str | Path, think_tokens: int = 24) -> Reason:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        table = SidTable.load(Path(folder) / TABLE_FOLDER)
        check_table(folder, table)
        return cls(model, tokenizer, table, think_tokens)

    def prompts(self, examples: Examples, rows: np.ndarray) -> list[str]:
        """Rendered chats, generation prompt included."""
        chats = []
        for row in rows:
            recent = examples.history(row)[-REASONER_HISTORY:]
            chats.append(reasoner_prompt([self.texts[item] for item in recent]))
        return self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)

    def think(self, prompts: list[str]) -> tuple[list[str], list[int]]:
        """Greedy thoughts, each ending in the closing marker, and how many tokens the model wrote for them."""
        close = self.tokenizer.convert_tokens_to_ids(THINK_CLOSE)
        inputs = self._encode(prompts)
        ids_BT = self.model.generate(
            **inputs, max_new_tokens=self.think_tokens, do_sample=False, eos_token_id=[close, self._end()]
        )[:, inputs["input_ids"].shape[1] :]
        thoughts, written = [], []
        for ids in ids_BT.tolist():
            ids = [token for token in ids if token not in (self.tokenizer.pad_token_id, self._end(), close)]
            written.append(min(len(ids) + 1, self.think_tokens))
            thoughts.append(self.tokenizer.decode(ids) + THINK_CLOSE)
        return thoughts, written

    def answer(self, examples: Examples, k: int, batch_size: int = 128, label: str = "reason") -> ToolAnswer:
        """The k best unseen items of each history, by a beam somewhat wider than k; a list that comes out shorter is
        padded with -1."""
        beams = min(k + _SPARE_BEAMS, len(self.texts))
        items_EK = np.full((len(examples), k), -1, dtype=np.int32)
        scores_EK = np.full((len(examples), k), -np.inf, dtype=np.float32)
        cost_E = np.zeros(len(examples), dtype=np.int64)
        order_E = np.argsort(examples.lengths_E, kind="stable")
        chunks = np.split(order_E, np.arange(batch_size, len(order_E), batch_size))
        for rows in track(chunks, description=f"{label} x {len(examples)}", disable=len(chunks) < 2):
            prompts = self.prompts(examples, rows)
            thoughts, written = self.think(prompts)
            texts = [prompt + thought for prompt, thought in zip(prompts, thoughts, strict=True)]
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            seen = [examples.history(row) for row in rows]
            beam = recommend_by_beam(
                self.model, ids, self.trie, k, beams=beams, normalisation="trie", exclude=seen, batch_size=batch_size
            )
            items_EK[rows], scores_EK[rows] = (part.cpu().numpy() for part in beam)
            cost_E[rows] = [self._cost(len(own), spent, beams) for own, spent in zip(ids, written, strict=True)]
        return ToolAnswer(items_EK, scores_EK, cost_E)

    def _cost(self, context: int, thought: int, beams: int) -> int:
        prompt = context - thought
        spent = self.lm_cost.prefill(prompt) + self.lm_cost.decode(thought, prompt)
        return spent + self.lm_cost.beam(beams, self.trie.depth, context)

    def _end(self) -> int:
        return self.tokenizer.eos_token_id

    def _encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        return {name: encoded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
