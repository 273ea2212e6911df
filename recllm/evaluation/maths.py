"""Evaluators of verifiable maths: a question has one right number, a completion is right or wrong.

`arithmetic` asks the world of `arithmetic.py`, `gsm8k` word problems in the layout of GSM8K (Cobbe et al. 2021, arXiv
2110.14168): JSON lines or parquet with `question` and an `answer` that ends in `#### 42`. Such problems are for
evaluation only; nothing in the project trains on them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recllm.data.amazon import DATA_VARIABLE
from recllm.data.jsonl import read_json_lines
from recllm.data.prompts import THINK_CLOSE, THINK_OPEN, user
from recllm.evaluation.arithmetic import ArithmeticWorld
from recllm.evaluation.completions import complete
from recllm.evaluation.final_answer import final_number, thought_and_answer
from recllm.evaluation.options import check_least, check_share, mark, read_options
from recllm.evaluation.samples import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# They change how long a result takes, not what it is.
_IDLE = ("batch_size",)
_LEAST = {"questions": 1, "samples": 1, "max_new_tokens": 1, "temperature": 0, "batch_size": 1, "seed": 0}


@dataclass(frozen=True)
class ArithmeticOptions:
    """Options of `arithmetic_evaluator`.

    Attributes:
        questions: so many test questions, all different.
        least, most, operand, largest: the world, see `ArithmeticWorld`; those of the training data.
        samples: completions a question. At temperature 0 they are equal.
        max_new_tokens: a completion is cut off after so many tokens.
        temperature, top_p: of the draws.
        seed: of the questions and of the draws.
        batch_size: completions side by side.
    """

    questions: int = 500
    least: int = 2
    most: int = 4
    operand: int = 9
    largest: int = 9
    samples: int = 2
    max_new_tokens: int = 64
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    batch_size: int = 256


@dataclass(frozen=True)
class Gsm8kOptions:
    """Options of `gsm8k_evaluator`.

    Attributes:
        path: .jsonl, .jsonl.gz or .parquet file; without it `gsm8k/test.jsonl.gz` under RECLLM_DATA.
        questions: so many, chosen by the seed; all where there are not more, or without a number.
        instruction: what the prompt says after the question.
        samples, max_new_tokens, temperature, top_p, seed, batch_size: see `ArithmeticOptions`.
    """

    path: str | None = None
    questions: int | None = None
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    samples: int = 2
    max_new_tokens: int = 2048
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class MathsEvaluator:
    """An `Evaluator`: asks each chat, reads the number that follows the thought, and compares it with the gold one.

    A completion thinks where something stands between `<think>` and `</think>`, or after a `<think>` that was never
    closed; such a thought has no answer and is wrong. Where the chat template opens the thought in the prompt, the
    completion begins within it.
    """

    name: str
    fingerprint: str
    chats: Sequence[list[dict[str, str]]]
    gold: Sequence[Fraction]
    options: ArithmeticOptions | Gsm8kOptions
    read: Callable[[str], Fraction | None] = final_number

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Samples:
        """Ask every question, in batches of prompts of similar length."""
        asked = self.options
        texts = tokenizer.apply_chat_template(list(self.chats), add_generation_prompt=True, tokenize=False)
        prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
        drawing = (asked.max_new_tokens, asked.temperature, asked.top_p, asked.seed, asked.batch_size)
        completions = complete(model, tokenizer, prompts, asked.samples, *drawing)
        shape = (len(prompts), asked.samples)
        value_QS, tokens_QS, thinks_QS = (np.zeros(shape, dtype=dtype) for dtype in (np.float32, np.int32, bool))
        for question, own in enumerate(completions):
            opened = texts[question].rstrip().endswith(THINK_OPEN)
            for sample, tokens in enumerate(own):
                thought, answer = thought_and_answer(plain_text(tokenizer, tokens), opened)
                value_QS[question, sample] = self.read(answer) == self.gold[question]
                tokens_QS[question, sample], thinks_QS[question, sample] = len(tokens), bool(thought)
        return Samples(value_QS, tokens_QS, thinks_QS)


def plain_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Text without special tokens, but with the marks of a thought, which some tokenizers count among these."""
    marks = (THINK_OPEN, THINK_CLOSE)
    added = tokenizer.added_tokens_decoder.items()
    dropped = {place for place, token in added if token.special and token.content not in marks}
    return tokenizer.decode([token for token in tokens if token not in dropped])


def whole_number(text: str) -> Fraction | None:
    """The number where `text` is nothing but one: a small model is right where it says the answer and no more."""
    text = text.strip()
    return Fraction(int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else None


def arithmetic_evaluator(options: Mapping[str, Any]) -> MathsEvaluator:
    """Test questions of the arithmetic world; an answer is right where it is the number and nothing else.

    Raises:
        ValueError: an option that is unknown or wrong, or a world with fewer questions.
    """
    asked = _checked(read_options(ArithmeticOptions, options))
    world = ArithmeticWorld(asked.least, asked.most, asked.operand, asked.largest)
    chains = world.questions(asked.questions, asked.seed)
    chats, gold = [chain.prompt for chain in chains], [Fraction(chain.answer) for chain in chains]
    return MathsEvaluator("arithmetic", _mark("arithmetic", chats, gold, asked), chats, gold, asked, whole_number)


def gsm8k_evaluator(options: Mapping[str, Any]) -> MathsEvaluator:
    """Word problems from a file in GSM8K's layout.

    Raises:
        ValueError: an option that is unknown or wrong, or a row that is no problem.
        FileNotFoundError: there is no such file.
    """
    asked = _checked(read_options(Gsm8kOptions, options))
    path = problems_file(asked.path)
    questions, gold = read_problems(path)
    if asked.questions is not None and asked.questions < len(gold):
        chosen = np.sort(np.random.default_rng(asked.seed).choice(len(gold), asked.questions, replace=False))
        questions, gold = [questions[row] for row in chosen], [gold[row] for row in chosen]
    chats = [[user(f"{question}\n{asked.instruction}" if asked.instruction else question)] for question in questions]
    return MathsEvaluator("gsm8k", _mark("gsm8k", chats, gold, asked), chats, gold, asked)


def _checked(asked: Any) -> Any:
    check_least(asked, _LEAST)
    check_share(asked, "top_p")
    return asked


def _mark(name: str, chats: Sequence[Any], gold: Sequence[Fraction], asked: Any) -> str:
    # A file is known by what it asks; the path that led to it does not matter.
    settings = {key: value for key, value in asdict(asked).items() if key not in (*_IDLE, "path")}
    return mark(name, list(chats), [str(number) for number in gold], settings)


def problems_file(path: str | None) -> Path:
    """The file that was named, or GSM8K's test problems in the folder of outside data.

    Raises:
        FileNotFoundError: neither is there.
    """
    root = os.environ.get(DATA_VARIABLE)
    if not path and not root:
        raise FileNotFoundError(
            "no maths problems: give evaluator_options the key path, a .jsonl or .parquet file such as the Hub's "
            f"openai/gsm8k has, or set {DATA_VARIABLE} to a folder with gsm8k/test.jsonl.gz"
        )
    found = Path(path) if path else Path(str(root)) / "gsm8k" / "test.jsonl.gz"
    if not found.is_file():
        raise FileNotFoundError(f"{found} is no file; it needs rows with a question and an answer that ends in #### 42")
    return found


def read_problems(path: Path) -> tuple[list[str], list[Fraction]]:
    """Questions and their numbers.

    Raises:
        ValueError: no rows, no such columns, or a row without a question or without a number after `####`.
    """
    columns = ("question", "answer")
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
        if missing := [name for name in columns if name not in frame.columns]:
            raise ValueError(f"{path} has no column {missing[0]}; it has {', '.join(frame.columns)}")
    else:
        table = read_json_lines(path, dict.fromkeys(columns, pl.String()))
        if table.bad.height:
            first = table.bad.row(0, named=True)
            raise ValueError(f"{path}, line {first['row']}: {first['reason']}")
        frame = table.frame
    if not frame.height:
        raise ValueError(f"{path} holds no problem")
    questions, gold = [], []
    for row, (question, answer) in enumerate(frame.select(columns).iter_rows()):
        _, marked, said = answer.rpartition("####") if isinstance(answer, str) else ("", "", "")
        number = final_number(said) if marked else None
        if not isinstance(question, str) or not question.strip() or number is None:
            raise ValueError(f"{path}, row {row}: needs a question, and an answer that ends in #### and a number")
        questions.append(question.strip())
        gold.append(number)
    return questions, gold
