"""A recommender of tunable depth: how good its list is for a user, and how long it thought before it answered.

A direct recommender and a reasoner that were fitted from one base answer the same question, the reasoner's. A merge of
them decides by itself, user by user and draw by draw, whether it thinks. What it writes before its answer is drawn
freely; from there on the items are searched for under the trie, as the slow tool does, so a merge that writes nonsense
has a list, too.

A completion's length is what was written before the answer, the sid of one item, and the token that ends it: the list
of ten comes out of one search over the places of that sid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recllm.data.prompts import THINK_CLOSE, THINK_OPEN, reasoner_prompt
from recllm.data.splits import Examples, load_split, sampled
from recllm.decoding.beam import recommend_by_beam
from recllm.evaluation.completions import complete
from recllm.evaluation.recommender import TOP, Recommender, banned_items, ranks_in_lists
from recllm.evaluation.samples import Samples
from recllm.evaluation.tunable_depth_options import (
    METRICS,
    PlannerOptions,
    RecommendationOptions,
    options_mark,
    read_checked,
)
from recllm.planner.bench import Bench
from recllm.planner.env import PlannerEnv
from recllm.planner.parser import parse_turn
from recllm.planner.rewards import REWARDS
from recllm.planner.rollout import Rollout, play_batch
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import sid_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def recommendation_evaluator(options: Mapping[str, Any]) -> RecommendationEvaluator:
    """The evaluator of a data set's users; see `RecommendationOptions`.

    Raises:
        ValueError: an option that is unknown, missing or wrong, or a SID table of another catalogue.
    """
    read = read_checked(RecommendationOptions, options)
    table = SidTable.load(read.sid_table)
    examples = getattr(load_split(read.dataset), read.role)
    if not len(examples):
        raise ValueError(f"{read.dataset}: no user has a {read.role} target")
    if int(examples.sequences.items_M.max()) >= len(table):
        raise ValueError(f"{read.dataset} has items that {read.sid_table} lacks: they do not belong together")
    return RecommendationEvaluator(read, table, sampled(examples, read.users, read.seed))


class Preamble(NamedTuple):
    """What a completion says before its answer: its tokens, and whether a thought is among them."""

    tokens: list[int]
    thinks: bool


@dataclass(frozen=True)
class RecommendationEvaluator:
    """An `Evaluator`: a question for each example, `options.samples` completions each, in the examples' order."""

    options: RecommendationOptions
    table: SidTable
    examples: Examples
    name: str = "recommendation"
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", options_mark(self.name, self.options))

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Samples:
        """Ask every user.

        Raises:
            ValueError: the model speaks another SID table than the options name.
        """
        check_speaks(model, self.table)
        model.eval()
        recommender = Recommender(model, tokenizer, self.table)
        prompts = self.prompts(recommender)
        preambles = self.preambles(recommender, prompts)
        value_QS = self.values(recommender, prompts, preambles)
        answer = self.table.levels + 1
        tokens_QS = [[len(preamble.tokens) + answer for preamble in row] for row in preambles]
        thinks_QS = [[preamble.thinks for preamble in row] for row in preambles]
        return Samples(value_QS, np.array(tokens_QS, dtype=np.int32), np.array(thinks_QS, dtype=bool))

    def prompts(self, recommender: Recommender) -> list[list[int]]:
        """Token ids of the reasoner's question after each history."""
        histories = [self.examples.history(row) for row in range(len(self.examples))]
        chats = [reasoner_prompt([recommender.texts[item] for item in history.tolist()]) for history in histories]
        return recommender.tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)

    def preambles(self, recommender: Recommender, prompts: Sequence[Sequence[int]]) -> list[list[Preamble]]:
        """What each sample of each question says before its answer."""
        asked, tokenizer = self.options, recommender.tokenizer
        written = complete(
            recommender.model,
            tokenizer,
            prompts,
            samples=asked.samples,
            max_new_tokens=asked.think_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            batch_size=asked.batch_size,
        )
        starts = set(sid_token_ids(tokenizer, self.table)[0].tolist())
        return [[read_preamble(ids, tokenizer, starts, asked.think_tokens) for ids in row] for row in written]

    def values(
        self, recommender: Recommender, prompts: Sequence[Sequence[int]], preambles: Sequence[Sequence[Preamble]]
    ) -> np.ndarray:
        """The metric of the list after each preamble, float32 `QS`. Samples that say the same are searched once."""
        place: dict[tuple[int, ...], int] = {}
        index_QS = np.array(
            [[place.setdefault((q, *said.tokens), len(place)) for said in row] for q, row in enumerate(preambles)]
        )
        question_C = np.array([key[0] for key in place])
        contexts = [[*prompts[key[0]], *key[1:]] for key in place]
        items_CK, scores_CK = (
            part.cpu().numpy()
            for part in recommend_by_beam(
                recommender.model,
                contexts,
                recommender.trie,
                recommender.sid_lists_of(TOP),
                beams=self.options.beams,
                normalisation="trie",
                exclude=banned_items(self.examples, question_C) if self.options.exclude_seen else None,
                batch_size=self.options.batch_size,
            )
        )
        # A broken merge may answer with no number at all; what it puts first is then no answer.
        lost_CK = np.isnan(scores_CK)
        items_CK, scores_CK = np.where(lost_CK, -1, items_CK), np.where(lost_CK, -np.inf, scores_CK)
        targets_C = self.examples.targets_E[question_C]
        rank_C, _ = ranks_in_lists(items_CK, scores_CK, targets_C, recommender.sid_N)
        return METRICS[self.options.metric](rank_C, TOP)[index_QS].astype(np.float32)


def check_speaks(model: PreTrainedModel, table: SidTable) -> None:
    """Raise ValueError where the model was built on another SID table."""
    known = getattr(model.config, "sid_table_hash", None)
    if known is not None and known != table.hash:
        raise ValueError(f"the model speaks SID table {known[:12]}, the evaluator was given {table.hash[:12]}")


def read_preamble(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, starts: Collection[int], budget: int
) -> Preamble:
    """What was written up to the answer: the first of `starts` outside of a thought, the end, or `budget` tokens.

    A thought that is open there is closed, and that token counts.
    """
    opens, closes = (tokenizer.convert_tokens_to_ids(text) for text in (THINK_OPEN, THINK_CLOSE))
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    said: list[int] = []
    is_open = False
    for token in ids[:budget]:
        if token in ends or (token in starts and not is_open):
            break
        is_open = token == opens or (is_open and token != closes)
        said.append(token)
    if is_open:
        said.append(closes)
    return Preamble(said, has_thought(tokenizer.decode(said)))


def has_thought(text: str) -> bool:
    """Whether a thought with words in it was written. Its opening marker may stand in the prompt, as some templates
    have it."""
    before, closed, _ = text.partition(THINK_CLOSE)
    return bool((closed or THINK_OPEN in text) and before.rpartition(THINK_OPEN)[2].strip())


def planner_evaluator(options: Mapping[str, Any]) -> PlannerEvaluator:
    """The evaluator of a planner's greedy episodes; see `PlannerOptions`.

    Raises:
        ValueError: an option that is unknown, missing or wrong, or weights under which nothing counts.
    """
    read = read_checked(PlannerOptions, options)
    bench = Bench.load(read.dataset, read.sid_table, read.tool_cache, read.role)
    return PlannerEvaluator(read, bench if read.users >= len(bench) else bench.first(read.users))


@dataclass(frozen=True)
class PlannerEvaluator:
    """An `Evaluator`: an episode for each example of the bench, one sample each, as it is played greedily.

    The value is the reward of `grpo_planner.py` on a scale from the worst plan (faulty, and as dear as the slow tool:
    0) to the best one (the target first, free of cost: 1); what lies below the scale counts as 0. The length is all
    that the planner wrote, turn by turn.
    """

    options: PlannerOptions
    bench: Bench
    name: str = "planner"
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        low, high = self.scale()
        if low == high:
            raise ValueError("evaluator_options: every weight of the reward is 0, so nothing counts")
        object.__setattr__(self, "fingerprint", options_mark(self.name, self.options))

    def weights(self) -> dict[str, float]:
        """The weight of each term of the reward."""
        return {name: getattr(self.options, f"{name}_weight") for name in REWARDS}

    def scale(self) -> tuple[float, float]:
        """Rewards that become 0 and 1."""
        weights = self.weights()
        return -weights["cost"] - weights["invalid"], weights["quality"] + weights["dense"] + weights["valid"]

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Samples:
        """Play every episode."""
        model.eval()
        written: dict[int, int] = defaultdict(int)
        thinks: dict[int, bool] = defaultdict(bool)

        def listen(envs: list[PlannerEnv], texts: list[str], _: list[int], tokens: list[int]) -> None:
            for env, text, count in zip(envs, texts, tokens, strict=True):
                written[env.episode.row] += count
                thinks[env.episode.row] |= has_thought(text)

        rows = np.arange(len(self.bench))
        rollouts: list[Rollout] = []
        for chunk in np.split(rows, np.arange(self.options.batch_size, len(rows), self.options.batch_size)):
            rollouts += play_batch(model, tokenizer, self.bench, chunk, self.options.turn_tokens, listen)
        low, high = self.scale()
        value_Q = (np.clip(self.rewards(rollouts), low, high) - low) / (high - low)
        tokens_Q, thinks_Q = (np.array([found[row] for row in rows.tolist()]) for found in (written, thinks))
        return Samples(value_Q[:, None].astype(np.float32), tokens_Q[:, None].astype(np.int32), thinks_Q[:, None])

    def rewards(self, rollouts: Sequence[Rollout]) -> np.ndarray:
        """The reward of each episode, float64 `Q`, by the functions that training uses."""
        columns = {
            "environments": [rollout.env for rollout in rollouts],
            "completions": [_as_in_training(rollout.messages) for rollout in rollouts],
        }
        return sum(weight * np.array(REWARDS[name](**columns)) for name, weight in self.weights().items())


def _as_in_training(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The completion as TRL hands it to a reward: calls out of the text, malformed ones left in it."""
    completion: list[dict[str, Any]] = []
    for message in messages[1:]:  # after the user's
        if message["role"] == "assistant":
            turn = parse_turn(message["content"])
            content = message["content"] if turn.malformed else ""
            completion.append({"role": "assistant", "content": content, "tool_calls": turn.calls})
        else:
            completion.append(dict(message))
    return completion
