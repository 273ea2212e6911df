"""A bench whose tools answer now: what a planner is served on and timed on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from recllm.data.splits import Examples
from recllm.planner.bench import Bench
from recllm.planner.env import MAX_CALLS, PlannerEnv
from recllm.planner.parser import parse_turn
from recllm.planner.texts import TOOLS
from recllm.tools.answer import ToolAnswer
from recllm.tools.build import Tools
from recllm.tools.cache import DEPTH, ToolCache
from recllm.tools.retrieve import Retrieve


class LiveBench:
    """A `Bench` for requests of any kind: its methods, with the answers of loaded tools in the place of cached ones.

    Every example is a request. Retrieve answers all of them at once in the beginning, since every prompt shows what it
    found; the other tools answer when they are asked, once a request. They answer at the cache's depth, so items, cost
    and text are those of a cache. `bench` lends what is known of items, and half A's deciles of the margins.

    `seconds` holds the wall time of each tool so far; rank's is without the retrieval that it starts from.

    Raises:
        ValueError: a request has fewer than `DEPTH` unseen items.
    """

    def __init__(self, tools: Tools, bench: Bench, examples: Examples):
        shape = (len(TOOLS), len(examples))
        cache = ToolCache(
            items_PEK=np.full((*shape, DEPTH), -1, dtype=np.int32),
            margin_PE=np.zeros(shape, dtype=np.float32),
            cost_PE=np.zeros(shape, dtype=np.int64),
            targets_E=examples.targets_E,
            edges_P9=bench.cache.edges_P9,
            entropy_PE=np.zeros(shape, dtype=np.float32),
        )
        self.examples, self.seconds = examples, dict.fromkeys(TOOLS, 0.0)
        self._tools, self._bench = tools, replace(bench, examples=examples, cache=cache)
        self._known_PE = np.zeros(shape, dtype=bool)
        self._scores_EK = np.zeros((len(examples), DEPTH), dtype=np.float32)
        self.ask("retrieve", range(len(examples)))

    def __len__(self) -> int:
        return len(self.examples)

    def prompt(self, row: int) -> list[dict[str, str]]:
        """As `Bench.prompt`."""
        return self._bench.prompt(row)

    def items(self, tool: str, row: int, count: int = DEPTH, m: int = DEPTH) -> np.ndarray:
        """As `Bench.items`."""
        self.ask(tool, [row])
        return self._bench.items(tool, row, count, m)

    def cost(self, tool: str, row: int, m: int = DEPTH) -> int:
        """As `Bench.cost`."""
        self.ask(tool, [row])
        return self._bench.cost(tool, row, m)

    def result(self, tool: str, row: int, items: np.ndarray, before: np.ndarray | None) -> str:
        """As `Bench.result`."""
        self.ask(tool, [row])
        return self._bench.result(tool, row, items, before)

    def ask(self, tool: str, rows: Sequence[int]) -> None:
        """Have a tool answer these requests in one batch, but for those it has answered before."""
        place, cache = TOOLS.index(tool), self._bench.cache
        rows_E = np.unique(np.asarray(rows, dtype=np.int64))
        rows_E = rows_E[~self._known_PE[place, rows_E]]
        if not len(rows_E):
            return
        began = time.perf_counter()
        with no_progress_bars():
            answer = self._tool(tool, rows_E).answer(self.examples.subset(rows_E), DEPTH)
        self.seconds[tool] += time.perf_counter() - began
        cache.items_PEK[place, rows_E] = answer.items_EK
        cache.margin_PE[place, rows_E], cache.cost_PE[place, rows_E] = answer.margin_E, answer.cost_E
        if tool == "retrieve":
            self._scores_EK[rows_E] = answer.scores_EK
        self._known_PE[place, rows_E] = True

    def listen(self, envs: list[PlannerEnv], texts: list[str], *_: list[int]) -> None:
        """Answer the calls of a turn in one batch a tool, before they are played one by one (see `play_batch`).

        A call whose arguments turn out to be faulty has been answered in vain.
        """
        calls = [(env, name) for env, text in zip(envs, texts, strict=True) for name, _ in parse_turn(text).calls]
        for tool in TOOLS:
            asking = [env for env, name in calls if name == tool and len(env.episode.calls) < MAX_CALLS]
            self.ask(tool, [env.episode.row for env in asking])

    def _tool(self, tool: str, rows_E: np.ndarray):
        if tool != "rank":
            return getattr(self._tools, tool)
        # The list to rank is there: the prompt showed its head.
        items_EK = self._bench.cache.items_PEK[TOOLS.index("retrieve"), rows_E]
        cost_E = self._bench.cache.cost_PE[TOOLS.index("retrieve"), rows_E]
        found = ToolAnswer(items_EK, self._scores_EK[rows_E], cost_E)
        return self._tools.rank.over(_Retrieved(self._tools.retrieve, found))


@dataclass(frozen=True)
class _Retrieved:
    """A retriever that has answered already."""

    tool: Retrieve
    found: ToolAnswer

    def cost(self, history_length: int) -> int:
        return self.tool.cost(history_length)

    def answer(self, examples: Examples, k: int) -> ToolAnswer:
        return self.found


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the tools' progress bars, made for whole splits, away from the output of single requests."""
    import rich

    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
