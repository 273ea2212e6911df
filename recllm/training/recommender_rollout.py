"""Rollouts of the recommender: a group of G sids for each prompt, drawn over the trie in one pass, for TRL's trainer.

TRL hands over every prompt G times. The copies become one draw: without replacement by default, so that no answer of a
group comes twice, or independently.

What the loss then sees. A completion is the sid's tokens and, where the model's chat template ends an answer with a
token of its own, that token. The end was not drawn, and decoding under the trie never leaves it a choice, so it is
masked (`env_mask` 0): it closes the sequence and teaches nothing. The template of models that speak sids alone has no
end; TRL then counts every completion as clipped, which means nothing here. TRL's loss takes the log-probability over
the whole vocabulary, the draw the one over the trie; `allowed` tells, for a few groups, how far the two are apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from recllm.data.prompts import assistant, user
from recllm.decoding.sample import Samples, sample_items
from recllm.decoding.trie import SidTrie
from recllm.training.validation import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOTrainer

Draw = Literal["without_replacement", "independent"]
DRAWS = ("without_replacement", "independent")
# Prompts that are read at once: their caches are held together.
_PROMPTS = 64
# Groups of a call whose allowed mass is recorded: it takes the head's whole vocabulary, the draw itself a few tokens.
_MEASURED = 4


def answer_end(tokenizer: PreTrainedTokenizerBase, sid_text: str) -> list[int]:
    """The token that the chat template puts after an answer if it is one that ends generation, else none."""
    chat = [user(sid_text), assistant(sid_text)]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    sid = tokenizer(sid_text, add_special_tokens=False)["input_ids"]
    for start in range(len(ids) - len(sid), -1, -1):
        if ids[start : start + len(sid)] == sid:
            after = ids[start + len(sid) : start + len(sid) + 1]
            return [token for token in after if token == tokenizer.eos_token_id]
    raise ValueError(f"the chat template does not write the answer {sid_text} as it stands; give the model another one")


@dataclass
class GroupRollout:
    """A `rollout_func` for GRPOTrainer: `draw` of each prompt's group over `trie`.

    Returns `prompt_ids`, `completion_ids`, `logprobs` (over the trie, at temperature 1; for the record, the loss
    computes its own), `env_mask`, and for the rewards one value a completion: `drawn` (item), `group`, `place` (0 is
    the group's best by log-probability), `logp` (of the whole sid), `inclusion`, `allowed` (see
    `Samples`; NaN but for the first groups).

    Draws depend on `seed`, the optimizer step, the number of the draw within it and the process, so a resumed run draws
    what the uninterrupted one drew.
    """

    trie: SidTrie
    end: Sequence[int]
    draw: Draw = "without_replacement"
    seed: int = 0
    _calls: tuple[int, int] = field(default=(-1, 0), init=False)

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise ValueError(f"draw must be one of {', '.join(DRAWS)}; got {self.draw!r}")

    def __call__(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> dict[str, list]:
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        groups = group_prompts(prompts, size, strict=training)
        chats = [prompts[members[0]] for members in groups]
        prompt_ids = trainer.processing_class.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=False, **trainer.chat_template_kwargs
        )
        generator = self._generator(trainer, training)
        columns: dict[str, list] = defaultdict(lambda: [None] * len(prompts))
        with decoding(trainer) as model:
            for start, count in _chunks([len(members) for members in groups]):
                drawn = sample_items(
                    model,
                    prompt_ids[start : start + count],
                    self.trie,
                    len(groups[start]),
                    temperature=trainer.temperature,
                    replacement=self.draw == "independent",
                    generator=generator,
                    with_mass=start == 0,
                )
                for number in range(start, start + count):
                    self._fill(columns, groups[number], number, prompt_ids[number], drawn, number - start)
        return dict(columns)

    def state_dict(self) -> dict[str, list[int]]:
        """How many draws this step has seen, for a checkpoint (evaluation draws, too)."""
        return {"calls": list(self._calls)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Go on drawing where a checkpoint was written."""
        step, count = state["calls"]
        self._calls = (int(step), int(count))

    def _fill(
        self, columns: dict[str, list], members: list[int], number: int, prompt: list[int], drawn: Samples, row: int
    ) -> None:
        """Write one group's draw (row `row` of `drawn`) to its members' places in the columns."""
        total_K = drawn.logp_BKL[row].sum(1)
        place_K = total_K.argsort(descending=True, stable=True).argsort()
        parts = (drawn.items_BK, drawn.tokens_BKL, drawn.logp_BKL, drawn.allowed_BKL, drawn.inclusion_BK)
        items, tokens, logps, allowed, inclusion = (part[row].tolist() for part in parts)
        for k, i in enumerate(members):
            columns["prompt_ids"][i] = prompt
            columns["completion_ids"][i] = [*tokens[k], *self.end]
            columns["logprobs"][i] = [*logps[k], *(0.0 for _ in self.end)]
            columns["env_mask"][i] = [*(1 for _ in tokens[k]), *(0 for _ in self.end)]
            columns["drawn"][i], columns["group"][i], columns["place"][i] = items[k], number, int(place_K[k])
            columns["logp"][i], columns["allowed"][i] = float(total_K[k]), allowed[k]
            columns["inclusion"][i] = inclusion[k]

    def _generator(self, trainer: GRPOTrainer, training: bool) -> torch.Generator:
        step, calls = trainer.state.global_step, self._calls
        self._calls = (step, calls[1] + 1 if calls[0] == step else 0)
        words = [self.seed, step, self._calls[1], trainer.accelerator.process_index, int(training)]
        # A torch seed is a signed 64-bit number.
        state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator().manual_seed(state)


@contextmanager
def decoding(trainer: GRPOTrainer) -> Iterator[PreTrainedModel]:
    """The trainer's model without wrappers, in evaluation mode and in the precision that it trains in."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    # Evaluation mode also lets the cache work beside gradient checkpointing.
    with evaluating(model), trainer.accelerator.autocast():
        yield model


def group_prompts(prompts: Sequence[Any], size: int, strict: bool) -> list[list[int]]:
    """Positions of each group's copies of a prompt.

    In training the prompts come as runs of `size` equal ones. In evaluation they may be shuffled or cut off: then all
    equal prompts are one group, and another layout raises only where it is `strict`.

    Raises:
        RuntimeError: strict, and the prompts do not come in whole groups.
    """
    runs = [list(range(start, min(start + size, len(prompts)))) for start in range(0, len(prompts), size)]
    if len(prompts) % size == 0 and all(prompts[i] == prompts[run[0]] for run in runs for i in run):
        return runs
    if strict:
        raise RuntimeError(
            f"{len(prompts)} prompts arrived that are not runs of num_generations={size} equal ones, so groups "
            "straddle processes or micro-batches; leave accelerate's split_batches and dispatch_batches as they are by "
            "default"
        )
    equal: dict[str, list[int]] = defaultdict(list)
    for position, prompt in enumerate(prompts):
        equal[repr(prompt)].append(position)
    # Of one size next to each other, so that they can be drawn together.
    return sorted(equal.values(), key=len)


def _chunks(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of runs of groups that have one size: at most `_MEASURED` groups, then `_PROMPTS` a run."""
    found: list[tuple[int, int]] = []
    for number, size in enumerate(sizes):
        if found and sizes[found[-1][0]] == size and found[-1][1] < (_MEASURED if len(found) == 1 else _PROMPTS):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found
