"""A second ranker beside DIN: a language model re-orders the fast tool's first ten items.

TwiSTAR's letter ranker shows up to ten candidates labelled A to J and ranks them by the logits of the letters at the
answer's place. A model may prefer a letter whatever stands behind it; `rotations` shows the list once in each cyclic
order and averages, so every candidate carries every letter once. `sid` asks for no letter at all: a candidate's score
is the log-probability of its sid after the history, which needs no training of its own.

The history is read once. What differs between candidates or rotations goes through the model side by side, under a
mask that lets each see the history and itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from recllm.data.prompts import RECOMMEND_HISTORY, assistant, letter_prompt, recommend_prompt
from recllm.data.splits import Examples, RolesSplit
from recllm.decoding.shared import Head, SharedPrompt
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER, check_table, sid_token_ids
from recllm.tools.answer import ToolAnswer
from recllm.tools.cost import LMCost
from recllm.tools.retrieve import Retrieve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = "ABCDEFGHIJ"
# letters: one reading, in the retriever's order. rotations: the mean over all cyclic orders. sid: no letters.
Score = Literal["letters", "rotations", "sid"]
SCORES = ("letters", "rotations", "sid")


def read_branches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], branch_BKC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden state `BD` of each prompt, and all hidden states `BKCD` of its K continuations of C tokens.

    Each prompt is read once and each continuation sees it and itself, so two forwards do for all of them.

    Raises:
        ValueError: an empty prompt, or a model that cannot be used this way (see `SharedPrompt`).
    """
    batch, width, tokens = branch_BKC.shape
    columns = width * tokens
    shared = SharedPrompt(model, prompts, room=columns)
    hidden_BD = shared.hidden_B1D[:, 0]
    if not columns:
        return hidden_BD, hidden_BD.new_empty(*branch_BKC.shape, hidden_BD.shape[1])
    own_XX = torch.block_diag(*[torch.ones(tokens, tokens, device=model.device).tril()] * width).bool()
    seen_BXT = torch.cat([shared.mask_BT[:, None].expand(-1, columns, -1), own_XX.expand(batch, -1, -1)], 2)
    bias_B1XT = torch.zeros_like(seen_BXT, dtype=hidden_BD.dtype)
    bias_B1XT = bias_B1XT.masked_fill_(~seen_BXT, torch.finfo(hidden_BD.dtype).min)[:, None]
    position_BX = shared.length_B[:, None] + torch.arange(tokens, device=model.device).repeat(width)
    # `SharedPrompt.extend` adds a token a call; this is the same for all tokens in one.
    inputs = {"input_ids": branch_BKC.flatten(1), "attention_mask": bias_B1XT, "position_ids": position_BX}
    hidden_BXD = shared.forward(**inputs)
    return hidden_BD, hidden_BXD.unflatten(1, (width, tokens))


@torch.no_grad()
def sid_scores(model: PreTrainedModel, prompts: Sequence[Sequence[int]], sid_BKL: torch.Tensor) -> torch.Tensor:
    """Log-probability of each candidate's sid tokens after its prompt, over the whole vocabulary: float32 `BK`."""
    hidden_BD, hidden_BKCD = read_branches(model, prompts, sid_BKL[:, :, :-1])
    head, width = Head(model), sid_BKL.shape[1]
    # The first code is read off the prompt, where all candidates stand at the same place.
    state_BKLD = torch.cat([hidden_BD[:, None, None].expand(-1, width, 1, -1), hidden_BKCD], 2)
    logit_BKL = (state_BKLD.float() * head.weight_VD[sid_BKL].float()).sum(-1)
    if head.bias_V is not None:
        logit_BKL = logit_BKL + head.bias_V[sid_BKL].float()
    total_BKC = head.log_total(hidden_BKCD.flatten(0, 2)).view(hidden_BKCD.shape[:3])
    return logit_BKL.sum(2) - total_BKC.sum(2) - head.log_total(hidden_BD)[:, None]


@torch.no_grad()
def letter_scores(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], branch_BRC: torch.Tensor, letter_N: torch.Tensor
) -> torch.Tensor:
    """Mean log-probability, among the letters, of each candidate's letter over R rotations: float32 `BN`.

    Branch r goes on from its prompt with the list that begins at candidate r and ends where the answer begins.
    `letter_N` holds the letters' token ids.
    """
    hidden_BRD = read_branches(model, prompts, branch_BRC)[1][:, :, -1]
    logit_XN = Head(model).logits(hidden_BRD.flatten(0, 1), letter_N)
    logp_BRN = logit_XN.log_softmax(-1).view(*branch_BRC.shape[:2], len(letter_N))
    place_N, turn_R = (torch.arange(size, device=letter_N.device) for size in logp_BRN.shape[:0:-1])
    own_RN = (place_N[None] - turn_R[:, None]) % len(letter_N)
    return logp_BRN.gather(2, own_RN.expand(len(logp_BRN), -1, -1)).mean(1)


class LetterRank:
    """A language model over the head of the retriever's list, with `Rank`'s interface.

    `score` is one of `SCORES`. Cost: the retriever's query, the history read once, and every candidate or rotation
    after it.
    """

    name = "rank"

    def __init__(
        self,
        retrieve: Retrieve,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        table: SidTable,
        score: Score = "letters",
    ):
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}; got {score!r}")
        self.retrieve, self.model, self.tokenizer, self.score = retrieve, model.eval(), tokenizer, score
        self.texts = [table.text(item) for item in range(len(table))]
        ids = sid_token_ids(tokenizer, table)
        self.tokens_NL = np.stack([ids[level][table.codes_NL[:, level]] for level in range(table.levels)], axis=1)
        self.lm_cost = LMCost.of(model)
        if score != "sid":
            self.letter_ids = self._letter_ids()

    @classmethod
    def load(cls, folder: str | Path, retrieve: Retrieve, score: Score = "letters") -> LetterRank:
        """Read a model folder that speaks sids; ValueError where its SID table is not the one it was built on."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        table = SidTable.load(Path(folder) / TABLE_FOLDER)
        check_table(folder, table)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return cls(retrieve, model, AutoTokenizer.from_pretrained(folder), table, score)

    def over(self, retrieve: Retrieve) -> LetterRank:
        """The same ranker over the lists of another retriever."""
        other = copy.copy(self)
        other.retrieve = retrieve
        return other

    def cost(self, history_length: int, m: int) -> int:
        """FLOPs of retrieving m candidates and ranking the first ten."""
        found, shown = self.retrieve.cost(history_length), min(len(LETTERS), m)
        if shown < 2:
            return found
        # Every sid has the same number of tokens, so any items do.
        history_T = np.zeros(min(history_length, RECOMMEND_HISTORY), dtype=np.int64)
        ids = self._prompts([history_T], np.zeros((1, shown), dtype=np.int64))[0]
        if self.score == "sid":
            levels = self.tokens_NL.shape[1]
            return found + self.lm_cost.prefill(len(ids)) + self.lm_cost.beam(shown, levels, len(ids))
        tail, turns = -int(self._places(ids, shown)[0, 0]), shown if self.score == "rotations" else 1
        prompt = len(ids) - tail
        # The head is evaluated at the end of each rotation, and not where they begin.
        read = self.lm_cost.prefill(prompt) - 2 * self.lm_cost.head_parameters
        return found + read + turns * self.lm_cost.read(tail, prompt)

    def answer(self, examples: Examples, m: int, batch_size: int = 16) -> ToolAnswer:
        """The retriever's first m items of each history: ten at most in the model's order, the others behind them.

        Ties keep the retriever's order. The first scores are the model's log-probabilities; those behind go on from the
        last of them by the retriever's own differences, for the two scales have nothing in common.
        """
        found = self.retrieve.answer(examples, m)
        shown = min(len(LETTERS), m)
        items_EK, scores_EK = found.items_EK.copy(), found.scores_EK.copy()
        if shown > 1:
            order_E = np.argsort(examples.lengths_E, kind="stable")
            for begin in range(0, len(order_E), batch_size):
                rows = order_E[begin : begin + batch_size]
                items_BN = found.items_EK[rows, :shown]
                score_BN = self.scores([examples.history(row) for row in rows], items_BN)
                order_BN = np.argsort(-score_BN, axis=1, kind="stable")
                items_EK[rows, :shown] = np.take_along_axis(items_BN, order_BN, 1)
                scores_EK[rows, :shown] = np.take_along_axis(score_BN, order_BN, 1)
            scores_EK[:, shown:] += scores_EK[:, shown - 1 : shown] - found.scores_EK[:, shown : shown + 1]
        known = {int(length): self.cost(int(length), m) for length in np.unique(examples.lengths_E)}
        cost_E = np.array([known[length] for length in examples.lengths_E.tolist()], dtype=np.int64)
        return ToolAnswer(items_EK, scores_EK, cost_E)

    def scores(self, histories: Sequence[np.ndarray], items_BN: np.ndarray) -> np.ndarray:
        """float32 log-probabilities `BN` of 2 to 10 candidate items a history, oldest item first.

        Raises:
            ValueError: another number of candidates, or a chat template that drops them.
        """
        shown, device = items_BN.shape[1], self.model.device
        if not 2 <= shown <= len(LETTERS):
            raise ValueError(f"the ranker takes 2 to {len(LETTERS)} candidates, got {shown}")
        prompts = self._prompts(histories, items_BN)
        if self.score == "sid":
            sid_BNL = torch.from_numpy(self.tokens_NL[items_BN]).to(device)
            return sid_scores(self.model, prompts, sid_BNL).cpu().numpy()
        # The words between the sids are the same in all rotations: only the sids' tokens move.
        places_NL = self._places(prompts[0], shown)
        begin, turns = int(places_NL[0, 0]), shown if self.score == "rotations" else 1
        branch_BRC = np.repeat(np.array([ids[begin:] for ids in prompts])[:, None], turns, axis=1)
        for turn in range(turns):
            branch_BRC[:, turn, places_NL - begin] = self.tokens_NL[np.roll(items_BN, -turn, axis=1)]
        heads = [ids[:begin] for ids in prompts]
        branch, letters = (torch.from_numpy(ids).to(device) for ids in (branch_BRC, self.letter_ids[:shown]))
        return letter_scores(self.model, heads, branch, letters).cpu().numpy()

    def _prompts(self, histories: Sequence[np.ndarray], items_BN: np.ndarray) -> list[list[int]]:
        chats = []
        for history, items in zip(histories, items_BN, strict=True):
            recent = [self.texts[item] for item in history[-RECOMMEND_HISTORY:]]
            candidates = [self.texts[item] for item in items]
            chats.append(recommend_prompt(recent) if self.score == "sid" else letter_prompt(recent, candidates))
        texts = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _places(self, ids: Sequence[int], shown: int) -> np.ndarray:
        # Where the candidates' tokens stand in a prompt, counted from its end: the last of all sid tokens.
        levels = self.tokens_NL.shape[1]
        places = np.flatnonzero(np.isin(ids, self.tokens_NL)) - len(ids)
        if len(places) < shown * levels:
            raise ValueError("the chat template drops the candidates: use one that keeps text, or score 'sid'")
        return places[-shown * levels :].reshape(shown, levels)

    def _letter_ids(self) -> np.ndarray:
        # What a letter is once it stands behind the prompt: one token, or its logit would not be the answer's.
        chat = letter_prompt(self.texts[:1], self.texts[:1] * len(LETTERS))
        prompt = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        rows = self.tokenizer([prompt, *(prompt + letter for letter in LETTERS)], add_special_tokens=False)["input_ids"]
        self._places(rows[0], len(LETTERS))
        for letter, ids in zip(LETTERS, rows[1:], strict=True):
            if ids[:-1] != rows[0]:
                raise ValueError(f"the tokenizer does not write the letter {letter} as one token: use score 'sid'")
        return np.array([ids[-1] for ids in rows[1:]])


def letter_rows(split: RolesSplit, items_EK: np.ndarray, sid_texts: Sequence[str], seed: int) -> dict[str, list]:
    """Columns `messages`, `user` and `position` of the chat data set that teaches letters.

    `items_EK` are the retriever's lists for `split.routing("A")`, -1 where they end early: no tool may see half B.
    A row for each of these examples whose target is among its list's first ten; they are shuffled, so that a letter
    says nothing of the retriever's rank. Where another of them has the target's sid no letter is right, and there is no
    row.

    Raises:
        ValueError: another number of lists than half A has routing targets.
    """
    examples = split.routing("A")
    if len(items_EK) != len(examples):
        raise ValueError(f"{len(items_EK)} lists for the {len(examples)} routing targets of half A: pass one for each")
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {"messages": [], "user": [], "position": []}
    for row, (items, target) in enumerate(zip(items_EK[:, : len(LETTERS)], examples.targets_E.tolist(), strict=True)):
        shown = rng.permutation(items[items >= 0]).tolist()
        texts = [sid_texts[item] for item in shown]
        if target not in shown or len(shown) < 2 or texts.count(sid_texts[target]) > 1:
            continue
        history = [sid_texts[item] for item in examples.history(row)[-RECOMMEND_HISTORY:]]
        answer = assistant(LETTERS[shown.index(target)])
        columns["messages"].append([*letter_prompt(history, texts), answer])
        columns["user"].append(int(examples.user_ids_E[row]))
        columns["position"].append(int(examples.position_E[row]))
    return columns
