"""Generation that writes answers only: the need is free text, everything else is held to the schema and the catalogue.

An answer is a row of parts, each a trie over token ids but the need: the opening of the JSON, the need, a need type, a
category, ten services. What follows a name in the text (its closing quote and the next key, or the comma) is part of
the name's tokens, so no name is the beginning of another, and a tokenizer's merges over the quote are kept. Taken
services drop out of the trie, so the ten are distinct.

The distribution that is drawn from is the model's, renormalised over the open tokens; a token that was the only open
one was not drawn (`drawn` tells), and teaches a policy nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from recllm.decoding.trie import ROOT, SidTrie
from recllm.needs.schema import SERVICES, STAGES, ServiceNames, plain, stage_keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = '{"need": "', '", "need_type": "'
_NEED_PART, _TYPE_PART, _SERVICE_PART = 1, 2, 4


class State(NamedTuple):
    """Where an answer stands: its part, the node in that part's trie, the need's tokens, the services taken."""

    part: int = 0
    node: int = ROOT
    need_tokens: int = 0
    taken: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class FreeText:
    """Token ids of a need, rising: `starts` have a letter or digit, `all` may follow, `closers` end it."""

    starts: torch.Tensor
    all: torch.Tensor
    closers: torch.Tensor

    @cached_property
    def closing(self) -> frozenset[int]:
        """The closers as a set."""
        return frozenset(self.closers.tolist())

    @cached_property
    def going_on(self) -> frozenset[int]:
        """All but the closers, as a set."""
        return frozenset(self.all.tolist())

    @cached_property
    def open(self) -> torch.Tensor:
        """All of them and the closers."""
        return torch.cat([self.all, self.closers])


@dataclass(frozen=True, eq=False)
class AnswerGrammar:
    """The answers of a stage in token ids. `parts` are tries, None for the need; `end` is the end-of-sequence id."""

    parts: tuple[SidTrie | None, ...]
    text: FreeText
    need_budget: int
    end: int

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, its end included: what `max_new_tokens` must allow."""
        return sum(self.need_budget + 1 if trie is None else trie.depth for trie in self.parts)

    def allowed(self, state: State) -> torch.Tensor:
        """Token ids that may follow, int64, never empty; behind the end only the end itself."""
        if state.part == len(self.parts):
            return torch.tensor([self.end])
        trie = self.parts[state.part]
        if trie is None:
            if state.need_tokens == 0:
                return self.text.starts
            return self.text.open if state.need_tokens < self.need_budget else self.text.closers
        return _children_left(trie, state.node, state.taken) if state.taken else trie.children(state.node)

    def step(self, state: State, token: int) -> State:
        """The state behind a token; KeyError for one that is not allowed. Behind the end everything is padding."""
        if state.part == len(self.parts):
            return state
        trie = self.parts[state.part]
        if trie is None:
            return self._step_need(state, token)
        node = trie.step(state.node, token)
        item = trie.item(node)
        if item is None:
            return state._replace(node=node)
        taken = state.taken
        if state.part >= _SERVICE_PART:
            if item in taken:
                raise KeyError(f"token {token} completes a service that the answer already has")
            taken = (*taken, item)
        return State(state.part + 1, ROOT, state.need_tokens, taken)

    def _step_need(self, state: State, token: int) -> State:
        if state.need_tokens and token in self.text.closing:
            return State(_TYPE_PART, ROOT, state.need_tokens)
        if token not in self.text.going_on or state.need_tokens == self.need_budget:
            raise KeyError(f"token {token} is not open after {state.need_tokens} tokens of the need")
        return state._replace(need_tokens=state.need_tokens + 1)

    def walk(self, tokens: Sequence[int], state: State | None = None) -> State:
        """The state behind `tokens`; KeyError where they leave the grammar."""
        state = state or State()
        for token in tokens:
            state = self.step(state, int(token))
        return state

    def drawn(self, tokens: Sequence[int]) -> list[int]:
        """1 for each token of an answer that had an alternative, 0 for those that the grammar forced."""
        state, choices = State(), []
        for token in tokens:
            choices.append(int(len(self.allowed(state)) > 1))
            state = self.step(state, int(token))
        return choices


def build_grammars(
    tokenizer: PreTrainedTokenizerBase,
    types: Sequence[str],
    categories: Sequence[str],
    services: Sequence[int],
    names: ServiceNames,
    need_budget: int = 24,
) -> dict[str, AnswerGrammar]:
    """The grammar of each stage, over the need types, category names and candidate services (item ids) of a catalogue.

    need_budget: tokens of the need at most.

    Raises:
        ValueError: no type or category, a name that no answer could hold, fewer than ten services, a budget below 1,
            or a tokenizer that does not spell pieces of text as they are or has no end-of-sequence token.
    """
    if need_budget < 1 or tokenizer.eos_token_id is None:
        raise ValueError(f"need_budget is {need_budget}, the end of sequence {tokenizer.eos_token_id}: both are needed")
    services = list(dict.fromkeys(services))
    if len(services) < SERVICES:
        raise ValueError(f"an answer has {SERVICES} services, and the catalogue {len(services)}")
    end, quote = tokenizer.eos_token_id, "" if names.table is None else '"'
    close = _spell(tokenizer, [_CLOSE])[0]
    text = free_text(tokenizer, tokenizer.decode(close[:1]))
    opening = SidTrie.from_sequences(_spell(tokenizer, [_OPEN]))
    bodies = [json.dumps(names.write(item)) for item in services]
    ranked = [
        SidTrie.from_sequences(_spell(tokenizer, pieces))
        for pieces in ([f"{body.removeprefix(quote)}," for body in bodies], [f" {body}," for body in bodies])
    ]
    last = SidTrie.from_sequences([[*ids, end] for ids in _spell(tokenizer, [f" {body}]}}" for body in bodies])])
    grammars = {}
    for stage in STAGES:
        keys, more = stage_keys(stage), {"category": '", "category": "', "services": f'", "services": [{quote}'}
        parts: list[SidTrie | None] = [opening, None]
        for key, options in zip(keys[1:3], (types, categories), strict=False):
            following = keys[keys.index(key) + 1 :]
            ids = _name_tokens(tokenizer, key, options, more[following[0]] if following else '"}')
            before, after = close[1:] if key == "need_type" else [], [] if following else [end]
            parts.append(SidTrie.from_sequences([[*before, *each, *after] for each in ids]))
        if "services" in keys:
            parts += [ranked[0], *[ranked[1]] * (SERVICES - 2), last]
        grammars[stage] = AnswerGrammar(tuple(parts), text, need_budget, end)
    return grammars


def free_text(tokenizer: PreTrainedTokenizerBase, close: str) -> FreeText:
    """The tokens of free text inside a JSON string, and those that end it with `close`, a token's text.

    Left out are quotes, backslashes and all that `schema.plain` refuses; also tokens that hold a part of a character.
    A closer may bring the need's last characters along, a full stop for one.
    """
    spelled = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    inside = [token for token, text in enumerate(spelled) if text and _is_free(text)]
    starts = [token for token in inside if plain(spelled[token])]
    closers = [token for token, text in enumerate(spelled) if text.endswith(close) and _is_free(text[: -len(close)])]
    if not starts or not closers:
        raise ValueError(f"the tokenizer has {len(starts)} tokens that begin a need and {len(closers)} that end one")
    return FreeText(*(torch.tensor(tokens) for tokens in (starts, inside, closers)))


def allowed_tokens_fn(
    grammar_R: Sequence[AnswerGrammar], prompt_length: int
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """A `prefix_allowed_tokens_fn` for `model.generate`: row r is held to `grammar_R[r]` behind the (padded) prompt.

    For one call of `generate`: it remembers each row's state, and reads a row anew where that is not what grew.
    """
    seen: dict[int, tuple[list[int], State]] = {}

    def allowed(row: int, ids_T: torch.Tensor) -> torch.Tensor:
        tokens, grammar = ids_T[prompt_length:].tolist(), grammar_R[row]
        before, state = seen.get(row, ([], State()))
        grew = tokens[: len(before)] == before
        state = grammar.walk(tokens[len(before) :], state) if grew else grammar.walk(tokens)
        seen[row] = tokens, state
        return grammar.allowed(state)

    return allowed


def _children_left(trie: SidTrie, node: int, taken: Sequence[int]) -> torch.Tensor:
    # An edge is open while more items lie behind it than were taken there; edge e leads to node e + 1.
    first, last = trie.offsets_V1[node : node + 2].tolist()
    left_C = trie.items_under_V[first + 1 : last + 1].clone()
    passed = trie.path_NL[list(taken)].flatten()
    passed = passed[(passed > first) & (passed <= last)] - first - 1
    left_C.index_add_(0, passed, -torch.ones_like(passed))
    return trie.tokens_E[first:last][left_C > 0]


def _is_free(text: str) -> bool:
    return text.isprintable() and not set('"\\<>\ufffd') & set(text)


def _name_tokens(tokenizer: PreTrainedTokenizerBase, key: str, options: Sequence[str], after: str) -> list[list[int]]:
    if wrong := [name for name in options if not plain(name)]:
        raise ValueError(f"{key} {wrong[0]!r} cannot stand in an answer: neutralise the catalogue's names")
    return _spell(tokenizer, [json.dumps(name, ensure_ascii=False)[1:-1] + after for name in dict.fromkeys(options)])


def _spell(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[list[int]]:
    ids = tokenizer(list(pieces), add_special_tokens=False)["input_ids"] if len(pieces) else []
    for piece, tokens in zip(pieces, ids, strict=True):
        if (spelled := tokenizer.decode(tokens)) != piece:
            raise ValueError(f"the tokenizer spells {piece!r} as {spelled!r}: a byte-level one is needed")
    return ids
