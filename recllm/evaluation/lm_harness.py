"""Any generative task of EleutherAI's lm-evaluation-harness as an evaluator; the package `lm-eval` is optional.

The harness renders prompts, generates and scores; what it logs for each document becomes `Samples`. It cuts a
completion at the task's stop strings and drops special tokens before it logs it, so tokens are counted on that text,
with one more for the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.evaluation.final_answer import thought_and_answer
from recllm.evaluation.options import check_least, check_share, mark, read_options
from recllm.evaluation.samples import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INSTALL = "pip install 'lm-eval[hf]>=0.4.5'"


@dataclass(frozen=True)
class LmEvalOptions:
    """Options of `lm_eval_evaluator`.

    Attributes:
        task: name of one task that generates text, `gsm8k` for instance.
        metric: a metric of the task that is between 0 and 1 for each document.
        filter: which of the task's answer filters counts; needed where it has several.
        questions: the task's first so many documents; all without a number.
        shots: examples in the prompt; the task's own number without one.
        chat_template: whether prompts are chats.
        samples: runs over the task, each with a seed of its own. At temperature 0 they are equal.
        max_new_tokens, temperature, top_p: of the generation.
        seed: of the first run.
        batch_size: prompts side by side.
    """

    task: str
    metric: str = "exact_match"
    filter: str | None = None
    questions: int | None = None
    shots: int | None = None
    chat_template: bool = True
    samples: int = 1
    max_new_tokens: int = 2048
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class LmEvalEvaluator:
    """An `Evaluator` that runs one task of the harness."""

    name: str
    fingerprint: str
    options: LmEvalOptions

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Samples:
        """Run the task `samples` times.

        Raises:
            ValueError: the task has no such metric or filter, several filters where none is named, or no documents.
        """
        evaluate, wrapper = _harness()
        harnessed = wrapper(pretrained=model, tokenizer=tokenizer, batch_size=self.options.batch_size)
        runs = [
            self._run(evaluate, harnessed, _seed(self.options.seed, sample)) for sample in range(self.options.samples)
        ]
        texts_SQ = [[row["resps"][0][0] for row in rows] for rows in runs]
        most = self.options.max_new_tokens
        tokens_SQ = [[min(len(ids) + 1, most) for ids in _encoded(tokenizer, texts)] for texts in texts_SQ]
        thinks_SQ = [[bool(thought_and_answer(text)[0]) for text in texts] for texts in texts_SQ]
        value_SQ = [[float(row[self.options.metric]) for row in rows] for rows in runs]
        return Samples(
            np.array(value_SQ, dtype=np.float32).T, np.array(tokens_SQ, dtype=np.int32).T, np.array(thinks_SQ).T
        )

    def _run(self, evaluate: Any, harnessed: Any, seed: int) -> list[dict[str, Any]]:
        asked = self.options
        drawing = f"do_sample=True,temperature={asked.temperature},top_p={asked.top_p}"
        generation = drawing if asked.temperature > 0 else "do_sample=False"
        found = evaluate(
            model=harnessed,
            tasks=[asked.task],
            num_fewshot=asked.shots,
            limit=asked.questions,
            bootstrap_iters=0,
            apply_chat_template=asked.chat_template,
            gen_kwargs=f"{generation},max_gen_toks={asked.max_new_tokens}",
            torch_random_seed=seed,
        )
        return pick_rows(found["samples"].get(asked.task, []), asked)


def pick_rows(rows: Sequence[Mapping[str, Any]], asked: LmEvalOptions) -> list[dict[str, Any]]:
    """The logged rows of the filter that counts, one a document, in the documents' order.

    Raises:
        ValueError: see `LmEvalEvaluator.__call__`.
    """
    if not rows:
        raise ValueError(f"lm-eval logged no document of {asked.task}: task must name one task, and no group of tasks")
    filters = sorted({str(row.get("filter")) for row in rows})
    if asked.filter not in filters and (asked.filter is not None or len(filters) > 1):
        raise ValueError(f"evaluator_options: filter must be one of {', '.join(filters)}; got {asked.filter!r}")
    chosen = [dict(row) for row in rows if asked.filter is None or str(row.get("filter")) == asked.filter]
    if asked.metric not in chosen[0]:
        known = ", ".join(chosen[0].get("metrics", []))
        raise ValueError(f"evaluator_options: {asked.task} has no metric {asked.metric!r}; it has {known}")
    return sorted(chosen, key=lambda row: row["doc_id"])


def _seed(seed: int, sample: int) -> int:
    """A seed of its own for every run of every seed."""
    return int(np.random.SeedSequence((seed, sample)).generate_state(1)[0])


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def _harness() -> tuple[Any, Any]:
    """The harness's evaluation and its wrapper of a transformers model."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ValueError(f"evaluator lm_eval needs the package lm-eval, which is not installed: {_INSTALL}") from error
    return simple_evaluate, HFLM


def _version() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError:  # imported from a checkout that was never installed
        return ""


def lm_eval_evaluator(options: Mapping[str, Any]) -> LmEvalEvaluator:
    """A task of lm-eval.

    Raises:
        ValueError: an option that is unknown, missing or wrong, or lm-eval is not installed.
    """
    asked = read_options(LmEvalOptions, options)
    positive = dict.fromkeys(("questions", "samples", "max_new_tokens", "batch_size"), 1)
    check_least(asked, {**positive, "shots": 0, "temperature": 0, "seed": 0})
    check_share(asked, "top_p")
    _harness()
    # Draws of a batch come from one stream there, so the size of batches counts, too.
    return LmEvalEvaluator(f"lm_eval_{asked.task}", mark("lm_eval", _version(), asdict(asked)), asked)
