"""A world made in code where accuracy and tokens trade off: chains of small sums, to be answered at once or by steps.

A chain starts with a number and applies 2 to 4 operations, one after the other: `(1+3)*2-5=`. Brackets stand where
usual arithmetic needs them, so that a question means what any calculator says. No value on the way is negative or
larger than 9, unless the world is made larger: every step is a fact that a small model learns by heart. A whole chain
is none: a model that answers at once is right where it learned to take several steps in one, and a model that writes
the steps down, `1+3=4 4*2=8 8-5=3`, is right nearly always, at the price of its tokens.

Train and test are disjoint by the canonical expression, in which runs of sums and of products are sorted, so that no
test question is a training question in another order.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recllm.data.prompts import THINK_CLOSE, THINK_OPEN, assistant, user

Fold = Literal["train", "test"]
FOLDS = ("train", "test")
STYLES = ("direct", "thinking")
# One canonical expression in so many is a test question.
_TEST_SHARE = 5
# Draws without a new chain after which a world counts as used up.
_PATIENCE = 2000
_PRODUCT = "*"


@dataclass(frozen=True)
class Chain:
    """A start and the operations on it, each one of + - * and a positive number."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        """The start and the value after each step."""
        values = [self.start]
        for sign, number in self.steps:
            values.append(_apply(values[-1], sign, number))
        return values

    @property
    def answer(self) -> str:
        """The last value in digits."""
        return str(self.values[-1])

    @property
    def question(self) -> str:
        """`(1+3)*2-5=`, with brackets around sums that are multiplied."""
        text, is_sum = str(self.start), False
        for sign, number in self.steps:
            if sign == _PRODUCT and is_sum:
                text = f"({text})"
            text, is_sum = f"{text}{sign}{number}", sign != _PRODUCT
        return f"{text}="

    @property
    def thought(self) -> str:
        """`1+3=4 4*2=8 8-5=3`."""
        pairs = zip(itertools.pairwise(self.values), self.steps, strict=True)
        return " ".join(f"{before}{sign}{number}={after}" for (before, after), (sign, number) in pairs)

    @property
    def canonical(self) -> str:
        """The same for chains that differ in the order of a run of sums, or of a run of products, only."""
        text, parts = "", [("" if self.steps[0][0] == _PRODUCT else "+", self.start)]
        for step in self.steps:
            # The start belongs to the first run, whatever that is.
            if (step[0] == _PRODUCT) != (parts[-1][0] in (_PRODUCT, "")):
                text, parts = text + _run(parts), []
            parts.append(step)
        return text + _run(parts)

    @property
    def fold(self) -> Fold:
        """Whether it is a training or a test question."""
        digest = hashlib.sha256(f"arithmetic {self.canonical}".encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") % _TEST_SHARE == 0 else "train"

    def chat(self, style: str) -> list[dict[str, str]]:
        """Question and answer; in the style `thinking` with the thought before the answer."""
        thought = f"{THINK_OPEN}{self.thought}{THINK_CLOSE}" if style == "thinking" else ""
        return [*self.prompt, assistant(thought + self.answer)]

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The chat up to the question."""
        return [user(self.question)]


def _apply(value: int, sign: str, number: int) -> int:
    return value * number if sign == _PRODUCT else value + (number if sign == "+" else -number)


def _run(parts: list[tuple[str, int]]) -> str:
    # What starts a chain of products has no sign of its own, and is one factor among the others.
    return "".join(sorted(f"{sign or _PRODUCT}{number}" for sign, number in parts))


@dataclass(frozen=True)
class ArithmeticWorld:
    """Which chains there are.

    least, most: operations of a chain; each number between is as frequent. operand: the largest number that a chain
    starts with or applies (products take 2 at least). largest: of all values on the way and the answer.

    Raises:
        ValueError: a bound that leaves no chain.
    """

    least: int = 2
    most: int = 4
    operand: int = 9
    largest: int = 9

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"operations must be at least 1 and rise, got {self.least} to {self.most}")
        if self.operand < 2 or self.largest < self.operand:
            raise ValueError(
                f"operands up to {self.operand} and values up to {self.largest}: need 2 <= operand <= largest"
            )

    def chains(self, fold: Fold, seed: int) -> Iterator[Chain]:
        """Chains of one fold without end; the same one may come again. Each fold has draws of its own."""
        if fold not in FOLDS:
            raise ValueError(f"fold must be one of {', '.join(FOLDS)}; got {fold!r}")
        # The standard library's generator: numpy's takes five times as long for one small number.
        rng, misses = random.Random(f"arithmetic {fold} {seed}"), 0
        while misses < _PATIENCE:
            chain = self._draw(rng)
            misses = 0 if chain.fold == fold else misses + 1
            if not misses:
                yield chain
        raise ValueError(f"{self} has no {fold} question; allow more operations or larger numbers")

    def _draw(self, rng: random.Random) -> Chain:
        start = value = rng.randint(1, self.operand)
        steps: list[tuple[str, int]] = []
        for _ in range(rng.randint(self.least, self.most)):
            sign, number = self._step(rng, value)
            steps.append((sign, number))
            value = _apply(value, sign, number)
        return Chain(start, tuple(steps))

    def _step(self, rng: random.Random, value: int) -> tuple[str, int]:
        """An operation that stays within bounds: its sign first, each as likely, so that products are no rarity."""
        highest = {"+": self.largest - value, "-": value, _PRODUCT: self.largest // max(value, 1)}
        ranges = {
            sign: (2 if sign == _PRODUCT else 1, min(self.operand, bound))
            for sign, bound in highest.items()
            if sign != _PRODUCT or value > 0
        }
        signs = [sign for sign, (low, high) in ranges.items() if low <= high]
        sign = rng.choice(signs)
        return sign, rng.randint(*ranges[sign])

    def questions(self, count: int, seed: int, fold: Fold = "test") -> list[Chain]:
        """`count` chains of a fold, no canonical expression twice.

        Raises:
            ValueError: the world has fewer of them.
        """
        found: dict[str, Chain] = {}
        misses = 0
        for chain in self.chains(fold, seed):
            if len(found) == count:
                break
            misses = misses + 1 if chain.canonical in found else 0
            if misses > _PATIENCE:
                raise ValueError(
                    f"{count} different {fold} questions are asked for, and {self} has hardly more than {len(found)}; "
                    "ask for fewer, or allow more operations or larger numbers"
                )
            found.setdefault(chain.canonical, chain)
        return list(found.values())


def chat_columns(world: ArithmeticWorld, thinking: float, rows: int, seed: int, block: int = 1) -> dict[str, list]:
    """`rows` training chats in columns `messages`, `style`, `operations`; a share `thinking` of them thinks.

    Each `block` rows in turn are of one style. A batch of so many rows in their order is then not padded to the longer
    style, and the few tokens of its direct answers do not drown in those of thoughts.

    Raises:
        ValueError: no row or block, or a share outside 0 to 1.
    """
    if rows < 1 or block < 1 or not 0 <= thinking <= 1:
        raise ValueError(
            f"{rows} rows in blocks of {block} of which a share {thinking} thinks: need at least one row, blocks of "
            "at least one, and a share in [0, 1]"
        )
    blocks = -(-rows // block)
    thinks_R = np.repeat(np.random.default_rng(seed).permutation(blocks) < round(thinking * blocks), block)[:rows]
    columns: dict[str, list] = {"messages": [], "style": [], "operations": []}
    for thinks, chain in zip(thinks_R, world.chains("train", seed), strict=False):
        style = STYLES[int(thinks)]
        columns["messages"].append(chain.chat(style))
        columns["style"].append(style)
        columns["operations"].append(len(chain.steps))
    return columns
