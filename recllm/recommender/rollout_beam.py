"""The reward on what a thought makes likely: a beam after each thought, judged by its best match with the target.

OneRec-Think's Rollout-Beam, R = max over the beam's sids s^ of sum_l 1[s^_l = s_l]. It tells thoughts of a group apart
even where the one sid that follows each of them misses. Without a thought the beam depends on the prompt alone, all
members of a group get the same value and the advantage is 0: there the term does not apply, and it says None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.data.prompts import THINK_CLOSE, THINK_OPEN
from recllm.decoding.beam import recommend_by_beam
from recllm.decoding.trie import SidTrie
from recllm.sid.table import SidTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Token ids of every context -> items `BK`, -1 where fewer were reached.
Recommend = Callable[[Sequence[Sequence[int]]], np.ndarray]


@dataclass(frozen=True)
class RolloutBeam:
    """A reward function for TRL; `recommend` finds the beam's items after each context of prompt and thought."""

    tokenizer: PreTrainedTokenizerBase
    table: SidTable
    recommend: Recommend
    __name__ = "rollout_beam"

    @classmethod
    def over(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: SidTable, beams: int = 10
    ) -> RolloutBeam:
        """The beam is the model's own, in whatever state it is when the reward is asked for."""
        trie = SidTrie.from_table(table, tokenizer)

        def recommend(contexts: Sequence[Sequence[int]]) -> np.ndarray:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
            try:
                return recommend_by_beam(model, contexts, trie, beams)[0].cpu().numpy()
            finally:
                for module, mode in modes:
                    module.training = mode

        return cls(tokenizer, table, recommend)

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        target: Sequence[int],
        **columns: Any,
    ) -> list[float | None]:
        """The largest share of levels, 0..1, on which a sid of the beam has the target's code; None without a thought.

        The thought is what the model wrote up to the first closing marker; it must have opened it itself, or the chat
        template for it, and must not be blank.
        """
        values: list[float | None] = [None] * len(prompts)
        contexts: dict[int, list[int]] = {}
        for row, (prompt, ids) in enumerate(zip(prompts, completion_ids, strict=True)):
            opened = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            thought = thought_of(opened, self.tokenizer.decode(ids, skip_special_tokens=True))
            if thought is not None:
                contexts[row] = self.tokenizer(opened + thought, add_special_tokens=False)["input_ids"]
        if contexts:
            items_BK = self.recommend(list(contexts.values()))
            for (row, _), items_K in zip(contexts.items(), items_BK, strict=True):
                values[row] = best_match(self.table, items_K, target[row])
        return values


def thought_of(opened: str, text: str) -> str | None:
    """The beginning of `text` up to the end of its thought, None where it has none; `opened` is the prompt's text."""
    thought, mark, _ = text.partition(THINK_CLOSE)
    if not mark or not (thought.startswith(THINK_OPEN) or opened.rstrip().endswith(THINK_OPEN)):
        return None
    return thought + mark if thought.removeprefix(THINK_OPEN).strip() else None


def best_match(table: SidTable, items_K: np.ndarray, target: int) -> float:
    """The largest share of levels on which one of the items (-1 is none) has the target's code."""
    found_FL = table.codes_NL[items_K[items_K >= 0]]
    return float((found_FL == table.codes_NL[target]).mean(1).max()) if len(found_FL) else 0.0
