"""The language model's answer to a request: the need it would write, and how it ranks categories and services.

The prompt is read once. Need and type are written greedily under the grammar; a beam over the names of the categories
goes on from there, and a beam over the services from the best categories. Everything before a beam is one text, so what
ranks a service is its probability as the first of the ten, given the need and the category; with several categories
its probabilities under each are summed, weighed by the category's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich.progress import track

from recllm.decoding.leaves import Leaves, best_leaves
from recllm.decoding.shared import Head, SharedPrompt
from recllm.decoding.trie import SidTrie
from recllm.device import device_here
from recllm.needs.answers import CATEGORIES, NeedsAnswers, joined
from recllm.needs.constrain import AnswerGrammar, State
from recllm.needs.schema import SERVICES, ServiceNames, read_answer
from recllm.needs.vocabulary import NeedsVocabulary
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER, check_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NEED_PART, _CATEGORY_PART, _SERVICE_PART = 1, 3, 4


class Written(NamedTuple):
    """What was written greedily: tokens of each row, and the hidden states `B1D` behind them."""

    tokens: list[list[int]]
    hidden_B1D: torch.Tensor


@dataclass(frozen=True, eq=False)
class NeedsModel:
    """A language model of needs with what its grammar is made of.

    beams: width of the searches. categories: how many of the best categories' services compete.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: NeedsVocabulary
    table: SidTable | None
    beams: int = 20
    categories: int = 1

    @cached_property
    def grammars(self) -> dict[str, AnswerGrammar]:
        """The grammar of each stage."""
        return self.vocabulary.grammars(self.tokenizer, self.table)

    @cached_property
    def tries(self) -> tuple[SidTrie, SidTrie]:
        """The categories' and the first service's, on the model's device."""
        parts = self.grammars["service"].parts
        return parts[_CATEGORY_PART].to(self.model.device), parts[_SERVICE_PART].to(self.model.device)

    @classmethod
    def load(cls, folder: str | Path, beams: int = 20, categories: int = 1) -> NeedsModel:
        """A delivered folder of a needs model.

        Raises:
            ValueError: the folder has no vocabulary of needs, or another SID table than its model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        vocabulary, table = NeedsVocabulary.load(folder), None
        if (Path(folder) / TABLE_FOLDER).is_dir():
            table = SidTable.load(Path(folder) / TABLE_FOLDER)
            check_table(folder, table)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device_here()).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder), vocabulary, table, beams, categories)

    def answer(
        self, chats: Sequence[list[dict[str, str]]], batch_size: int = 32, label: str | None = "needs"
    ) -> NeedsAnswers:
        """Answers to chats that ask for a stage `service`'s answer (`needs_prompt`), in their order.

        Without a `label` there is no progress bar.
        """
        prompts = self.prompts(chats)
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        shown = track(batches, description=f"{label} x {len(prompts)}") if label else batches
        found = joined([self._answer_batch([prompts[row] for row in rows]) for rows in shown])
        return found.take(np.argsort(order))

    def prompts(self, chats: Sequence[list[dict[str, str]]]) -> list[list[int]]:
        """Token ids of the chats, opened for the answer."""
        return self.tokenizer.apply_chat_template(
            list(chats), add_generation_prompt=True, return_dict=False, enable_thinking=False
        )

    @torch.no_grad()
    def write_needs(self, chats: Sequence[list[dict[str, str]]], batch_size: int = 32) -> list[tuple[str, str]]:
        """Need and type that a model which was asked for the stage `need` writes for each chat."""
        prompts, found = self.prompts(chats), []
        grammar = self.grammars["need"]
        for at in range(0, len(prompts), batch_size):
            part = self._opened(prompts[at : at + batch_size])
            shared = SharedPrompt(self.model, part, room=grammar.longest)
            found += [self._read(tokens) for tokens in self._write(shared, grammar, len(grammar.parts)).tokens]
        return found

    def _opened(self, prompts: list[list[int]]) -> list[list[int]]:
        """The prompts with the opening of the answer, which is no choice."""
        return [[*prompt, *self._opening] for prompt in prompts]

    @cached_property
    def _opening(self) -> list[int]:
        grammar, state, tokens = self.grammars["need"], State(), []
        while state.part < _NEED_PART:
            tokens.append(int(grammar.allowed(state)[0]))
            state = grammar.step(state, tokens[-1])
        return tokens

    @torch.no_grad()
    def _answer_batch(self, prompts: list[list[int]]) -> NeedsAnswers:
        grammar, head = self.grammars["service"], Head(self.model)
        of_categories, of_services = self.tries
        depth = of_categories.depth + of_services.depth
        room = grammar.longest + (depth + 1) * max(self.beams, CATEGORIES, SERVICES * self.categories)
        shared = SharedPrompt(self.model, self._opened(prompts), room)
        written = self._write(shared, grammar, _CATEGORY_PART)
        zero_B1 = torch.zeros(len(prompts), 1, device=self.model.device)
        wide = max(self.beams, CATEGORIES)
        ranked = best_leaves(shared, head, of_categories, written.hidden_B1D, zero_B1, CATEGORIES, wide)
        hidden_BKD, score_BK = ranked.read(shared, self.categories)
        # A service may stand behind several categories, so more than ten are kept.
        wide = max(self.beams, SERVICES * self.categories)
        services = best_leaves(shared, head, of_services, hidden_BKD, score_BK, wide, wide)
        if bool(ranked.score_BK.isnan().any()) or bool(services.score_BK.isnan().any()):
            raise FloatingPointError("the model's scores are NaN: its weights are damaged or its training diverged")
        needs, types = zip(*map(self._read, written.tokens), strict=True)
        names = self.vocabulary.categories
        categories = [[names[i] for i in row if i >= 0] for row in ranked.item_BK.tolist()]
        return NeedsAnswers(list(needs), list(types), categories, self._services(services))

    def _write(self, shared: SharedPrompt, grammar: AnswerGrammar, until: int) -> Written:
        """Write greedily under the grammar until part `until` begins; all rows go on together, done ones pause."""
        rows = len(shared.length_B)
        head = Head(self.model)
        states, tokens = [State(_NEED_PART)] * rows, [list(self._opening) for _ in range(rows)]
        hidden_B1D = shared.hidden_B1D
        going = list(range(rows))
        vocabulary = torch.arange(head.weight_VD.shape[0], device=hidden_B1D.device)
        same_B1 = torch.zeros(rows, 1, dtype=torch.long, device=hidden_B1D.device)
        while going:
            logits = dict(zip(going, head.logits(hidden_B1D[going, 0], vocabulary).cpu(), strict=True))
            next_B1 = same_B1.clone()
            for row in going:
                allowed = grammar.allowed(states[row])
                token = int(allowed[logits[row][allowed].argmax()])
                states[row] = grammar.step(states[row], token)
                tokens[row].append(token)
                next_B1[row] = token
            before_B1X = shared.own_BKX
            hidden_now_B1D = shared.extend(next_B1, same_B1)
            paused = torch.ones(rows, dtype=torch.bool, device=hidden_B1D.device)
            paused[going] = False
            # What a paused row read meanwhile is not its own.
            own_B1X = torch.nn.functional.pad(before_B1X, (0, 1))
            shared.own_BKX = torch.where(paused[:, None, None], own_B1X, shared.own_BKX)
            hidden_B1D = torch.where(paused[:, None, None], hidden_B1D, hidden_now_B1D)
            going = [row for row in going if states[row].part < until]
        return Written(tokens, hidden_B1D)

    def _read(self, tokens: list[int]) -> tuple[str, str]:
        """Need and type of an answer that was written as far as its type."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        text = text.removesuffix('", "category": "').removesuffix('"}') + '"}'
        answer = read_answer(text, "need", ServiceNames(self.table)).answer
        if answer is None:
            raise ValueError(f"the grammar let {text[:200]!r} pass, which is no answer: the tokenizer does not fit it")
        return answer.need, answer.need_type

    def _services(self, found: Leaves) -> np.ndarray:
        """The ten items of each row with the highest probability over all categories that lead to them."""
        items_BK, score_BK = found.item_BK.cpu().numpy(), found.score_BK.double().cpu().numpy()
        services = np.array(self.vocabulary.services)
        best_BK = np.full((len(items_BK), SERVICES), -1, dtype=np.int64)
        for best_K, items_K, score_K in zip(best_BK, items_BK, score_BK, strict=True):
            items_K, score_K = items_K[items_K >= 0], score_K[items_K >= 0]
            unique, place = np.unique(items_K, return_inverse=True)
            total = np.bincount(place, np.exp(score_K - score_K.max())) if len(unique) else unique
            order = np.argsort(-total, kind="stable")[:SERVICES]
            best_K[: len(order)] = services[unique[order]]
        return best_BK
