"""What a recommender that speaks semantic ids answers: lists by beam, scores of every item, and the targets' ranks.

A rank is kept twice. At item level a target shares its place with the other items behind its sid (the expected rank);
at sid level the right sid is enough, which is how papers count that let items share one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

from recllm.backbones.base import Backbone
from recllm.backbones.fit import score_batches
from recllm.data.prompts import recommend_prompt
from recllm.data.splits import Examples
from recllm.decoding.beam import recommend_by_beam
from recllm.decoding.exact import score_items
from recllm.decoding.trie import SidTrie
from recllm.device import device_here
from recllm.metrics.ranking import rank_in_scored_list, rank_of_targets
from recllm.sid.quantizer import row_ids
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER, check_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP = 10


class Recommender:
    """A language model, its tokenizer and its SID table.

    `priority_N` (popularity, say) orders the items behind one sid, the highest first.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        table: SidTable,
        priority_N: np.ndarray | None = None,
    ):
        self.model, self.tokenizer, self.table = model, tokenizer, table
        self.trie = SidTrie.from_table(table, tokenizer, priority_N).to(model.device)
        self.texts = [table.text(item) for item in range(len(table))]
        self.sid_N = row_ids(table.codes_NL)
        # Place of every item where those behind one sid stand in the trie's order.
        self.place_N = np.empty(len(table), dtype=np.int64)
        self.place_N[self.trie.items_N.cpu().numpy()] = np.arange(len(table))

    @classmethod
    def load(
        cls, folder: str | Path, table: SidTable | None = None, priority_N: np.ndarray | None = None
    ) -> Recommender:
        """A delivered model folder with the table it carries, or with `table`.

        Raises:
            ValueError: the model was built on another SID table, or on none.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        table = SidTable.load(Path(folder) / TABLE_FOLDER) if table is None else table
        check_table(folder, table)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device_here()).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder), table, priority_N)

    def prompts(self, histories: Sequence[np.ndarray]) -> list[list[int]]:
        """Token ids of the chat that asks for the next item after each history (item ids, oldest first).

        Raises:
            ValueError: a prompt has no token (an empty history under a template that writes sids alone).
        """
        chats = [recommend_prompt([self.texts[item] for item in history.tolist()]) for history in histories]
        # Fine-tuning on answers without a thought has taught Qwen3's template to write an empty one before them. Other
        # templates do not know the word.
        prompts = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=False, enable_thinking=False
        )
        if not all(prompts):
            raise ValueError(f"history {[len(p) for p in prompts].index(0)} gives an empty prompt: it needs an item")
        return prompts

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        beams: int | None = None,
        exclude: Sequence[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items after each history but those in its `exclude`: `items_BK` (-1 pads), `scores_BK` (-inf)."""
        prompts = self.prompts(histories)
        found = recommend_by_beam(
            self.model, prompts, self.trie, k, beams=beams, exclude=exclude, batch_size=len(prompts)
        )
        items_BK, scores_BK = (part.cpu().numpy() for part in found)
        if np.isnan(scores_BK).any():
            raise FloatingPointError("the model's scores are NaN: its weights are damaged or its training diverged")
        return items_BK, scores_BK

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probability of every item after each history under the trie, `scores_BN` float32."""
        return score_items(self.model, self.prompts(histories), self.trie).cpu().numpy()

    def sid_lists_of(self, sids: int) -> int:
        """Length of an item list that is sure to hold the items behind the `sids` best sids."""
        return int(np.sort(np.bincount(self.sid_N))[-sids:].sum())


@dataclass(frozen=True)
class Answers:
    """Ranks of E targets and the lists they stand in.

    `rank_E` is the expected rank at item level and `sid_rank_E` the rank of the target's sid, both inf where a list
    does not hold it; `items_EK` the first ten items (-1 pads); `seconds` the wall time of all E answers.
    """

    rank_E: np.ndarray
    sid_rank_E: np.ndarray
    items_EK: np.ndarray
    seconds: float

    def __len__(self) -> int:
        return len(self.rank_E)


def by_beam(
    recommender: Recommender,
    examples: Examples,
    exclude_seen: bool,
    beams: int = 50,
    batch_size: int = 64,
    label: str | None = "beam",
) -> Answers:
    """Answer every example by beam search; without a `label` there is no progress bar.

    With `exclude_seen` the items of the history do not compete. The target always does, as in `full_ranks`.
    """
    depth = recommender.sid_lists_of(TOP)
    parts, began = [], time.monotonic()
    for rows in _batches(examples, batch_size, label):
        histories = [examples.history(row) for row in rows]
        exclude = banned_items(examples, rows) if exclude_seen else None
        items_BK, scores_BK = recommender.recommend(histories, depth, beams, exclude)
        ranks = ranks_in_lists(items_BK, scores_BK, examples.targets_E[rows], recommender.sid_N)
        parts.append((rows, *ranks, items_BK[:, :TOP]))
    return _joined(parts, len(examples), time.monotonic() - began)


def by_exact(
    recommender: Recommender, examples: Examples, exclude_seen: bool, batch_size: int = 64, label: str | None = "exact"
) -> Answers:
    """Answer every example by the log-probability of every item of the catalogue; otherwise as `by_beam`."""
    parts, began = [], time.monotonic()
    for rows in _batches(examples, batch_size, label):
        scores_BN = recommender.score([examples.history(row) for row in rows])
        exclude = banned_items(examples, rows) if exclude_seen else None
        targets_B = examples.targets_E[rows]
        parts.append((rows, *ranks_of_scores(scores_BN, targets_B, recommender.sid_N, recommender.place_N, exclude)))
    return _joined(parts, len(examples), time.monotonic() - began)


def by_backbone(
    model: Backbone, examples: Examples, exclude_seen: bool, sid_N: np.ndarray, batch_size: int = 256
) -> Answers:
    """Answer every example by a backbone's scores. A sid is worth as much as the best item behind it."""
    parts, began = [], time.monotonic()
    for rows, scores_BN in score_batches(model, examples, batch_size):
        exclude = banned_items(examples, rows) if exclude_seen else None
        scores_BN = scores_BN.float().cpu().numpy()
        parts.append((rows, *ranks_of_scores(scores_BN, examples.targets_E[rows], sid_N, None, exclude)))
    return _joined(parts, len(examples), time.monotonic() - began)


def ranks_in_lists(
    items_BK: np.ndarray, scores_BK: np.ndarray, targets_B: np.ndarray, sid_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each target, and of its sid, in a scored list; inf where the list does not hold it.

    Args:
        items_BK, scores_BK: item ids, best first, -1 pads with score -inf. Items behind one sid share their score.
        targets_B: item ids. sid_N: the number of each item's sid.
    """
    real_BK = items_BK >= 0
    sid_BK = np.where(real_BK, sid_N[items_BK], -1)
    earlier_BKK = np.tril(sid_BK[:, :, None] == sid_BK[:, None, :], -1)
    first_BK = real_BK & ~earlier_BKK.any(2)
    rank_B = rank_in_scored_list(items_BK == targets_B[:, None], scores_BK, real_BK)
    sid_rank_B = rank_in_scored_list((sid_BK == sid_N[targets_B][:, None]) & first_BK, scores_BK, first_BK)
    return rank_B, sid_rank_B


def ranks_of_scores(
    scores_BN: np.ndarray,
    targets_B: np.ndarray,
    sid_N: np.ndarray,
    place_N: np.ndarray | None = None,
    exclude: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank of each target, of its sid, and the first ten items, from a score for every item.

    A sid's score is that of its best item that competes; `place_N` orders items of equal score.
    """
    scores_BN = scores_BN.copy()
    for row, items in enumerate(exclude or ()):
        scores_BN[row, items] = -np.inf
    order_N = np.argsort(sid_N, kind="stable")
    firsts_S = np.flatnonzero(np.diff(sid_N[order_N], prepend=-1))
    best_BS = np.maximum.reduceat(scores_BN[:, order_N], firsts_S, axis=1)
    ranks = rank_of_targets(scores_BN, targets_B), rank_of_targets(best_BS, sid_N[targets_B])
    # Wide enough that whoever ties with the tenth is in it.
    width = min(TOP - 1 + int(np.bincount(sid_N).max()), scores_BN.shape[1])
    top_BK = np.argpartition(-scores_BN, width - 1, axis=1)[:, :width]
    top_scores_BK = np.take_along_axis(scores_BN, top_BK, axis=1)
    order_BK = np.lexsort((top_BK if place_N is None else place_N[top_BK], -top_scores_BK))
    items_BK = np.where(np.isneginf(top_scores_BK), -1, top_BK)
    return *ranks, np.take_along_axis(items_BK, order_BK, axis=1)[:, :TOP]


def _batches(examples: Examples, batch_size: int, label: str | None) -> Iterator[np.ndarray]:
    """Rows of `examples` in batches of like history length."""
    order_E = np.argsort(examples.lengths_E, kind="stable")
    batches = np.split(order_E, np.arange(batch_size, len(order_E), batch_size))
    yield from track(batches, description=f"{label} x {len(examples)}") if label else batches


def banned_items(examples: Examples, rows: np.ndarray) -> list[np.ndarray]:
    """The seen items of each example without its target: a target bought before still competes."""
    return [np.setdiff1d(examples.history(row), examples.targets_E[row : row + 1]).astype(np.int64) for row in rows]


def _joined(parts: Sequence[tuple[np.ndarray, ...]], count: int, seconds: float) -> Answers:
    rank_E, sid_rank_E, items_EK = np.zeros(count), np.zeros(count), np.full((count, TOP), -1, dtype=np.int64)
    for rows, rank_B, sid_rank_B, items_BK in parts:
        rank_E[rows], sid_rank_E[rows] = rank_B, sid_rank_B
        items_EK[rows, : items_BK.shape[1]] = items_BK
    return Answers(rank_E, sid_rank_E, items_EK, seconds)
