"""One user's request to a delivered planner, played live, with a trace of what it called and what that cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import Examples, load_split
from recllm.data.text import neutralise
from recllm.evaluation.planner_trace import Call, Item, Own, PlannedAnswer
from recllm.evaluation.serve import STAGES, find_items, inputs_of
from recllm.provenance import fingerprint, load_run

if TYPE_CHECKING:
    from recllm.planner.bench import Bench
    from recllm.planner.live import LiveBench
    from recllm.planner.rollout import Rollout
    from recllm.tools.build import Tools

TOOL_INPUTS = ("sasrec", "din", "letter_ranker", "reasoner")
# A cache was made with one of them.
RANKERS = ("din", "letter_ranker")
_SHOWN = 3
# A tool's answer is bounded as the planner reads it (planner/texts.py); so is what is shown of a call.
_CHARACTERS = 400


def recommend_by_planner(
    planner: str | Path,
    user: int | None = None,
    history: str | None = None,
    dataset: str | Path | None = None,
    tool_cache: str | Path | None = None,
    k: int = 10,
) -> PlannedAnswer:
    """At most `k` items for a user of the data set, after all of the user's events, or for a history of titles.

    The data set and the tool cache are those given, or those that the planner's `run.json` leads to; the cache leads
    to the tools. A history of titles knows no times, so the planner is not told how long it took.

    Raises:
        ValueError: neither or both of `user` and `history`, an unknown user or title, `k` below 1, a folder that cannot
            be found, or folders that do not belong together.
    """
    if (user is None) == (history is None):
        raise ValueError("a planner needs either --user ID or --history TITLES, and not both")
    if k < 1:
        raise ValueError(f"-k must be at least 1, got {k}")
    given = {"dataset": dataset, "tool_cache": tool_cache}
    folders = find_inputs(planner, {name: Path(path) for name, path in given.items() if path is not None})
    catalog, split = Catalog.load(folders["dataset"]), load_split(folders["dataset"])
    notes: list[str] = []
    if user is not None:
        items_T, times_T = events_of(split.sequences, user, folders["dataset"])
    else:
        items, notes = find_items(history, catalog, np.bincount(split.fitting.items_M, minlength=len(catalog)))
        items_T, times_T = np.array(items), np.arange(len(items))

    from recllm.evaluation.planner import load_planner
    from recllm.planner.bench import Bench
    from recllm.sid.vocabulary import TABLE_FOLDER

    table = Path(planner) / TABLE_FOLDER
    tools = load_served_tools(folders, table)
    bench = Bench.load(folders["dataset"], table, folders["tool_cache"], "test")
    bench = bench if user is not None else replace(bench, timed=False)
    model, tokenizer = load_planner(planner, table)
    played = play_request(model, tokenizer, tools, bench, catalog, request(items_T, times_T), k)
    return replace(played, user=user, notes=notes)


def find_inputs(planner: str | Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """The folders `dataset` and `tool_cache` of a planner, and the tools' own that the cache was made with.

    Raises:
        ValueError: a folder that is neither given nor found in its old content.
    """
    found = dict(given)
    for folder, names in ((Path(planner), ("dataset", "tool_cache")), (None, TOOL_INPUTS)):
        folder = folder or found["tool_cache"]
        marks = (load_run(folder) or {}).get("inputs", {})
        asked = [name for name in names if name in marks or name not in RANKERS]
        missing = [name for name in asked if name not in found]
        for path in _upstream(folder) if missing else ():
            mark = fingerprint(path)
            found |= {name: path for name in missing if name not in found and marks.get(name) == mark}
        for name in missing:
            if name not in found:
                remedy = "build the tool cache again" if name in TOOL_INPUTS else f"name its folder with --{name}"
                raise ValueError(f"{folder} does not lead to the {name} it was made with: {remedy}")
    return found


def _upstream(folder: Path) -> Iterator[Path]:
    """The inputs of a run, then theirs, and so on, each once."""
    waiting, visited = [folder], set()
    for _ in range(STAGES):
        waiting = [path for run in waiting for path in inputs_of(run) if path.resolve() not in visited]
        visited |= {path.resolve() for path in waiting}
        yield from waiting


def events_of(sequences: Sequences, user: int, dataset: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """All items `items_T` of a user and their times `times_T`, oldest first.

    Raises:
        ValueError: no such user.
    """
    ids_U = sequences.user_ids_U
    rows = np.flatnonzero(ids_U == user)
    if not len(rows):
        raise ValueError(f"no user {user} in {dataset}: it has {len(ids_U)} users from {ids_U.min()} to {ids_U.max()}")
    return sequences.items(rows[0]), sequences.timestamps(rows[0])


def request(items_T: np.ndarray, times_T: np.ndarray) -> Examples:
    """One example with all of `items_T` for its history; its target is unknown, and no item (-1)."""
    count = len(items_T)
    items_M, times_M = np.append(items_T, -1).astype(np.int32), np.append(times_T, times_T[-1])
    sequences = Sequences(np.zeros(1, dtype=np.int32), items_M, times_M, np.array([0, count + 1]))
    return Examples(np.array([0]), np.array([count]), sequences)


def load_served_tools(folders: Mapping[str, Path], table: Path) -> Tools:
    """The tools that a cache was made with, from the folders that `find_inputs` found; `table` is the planner's own."""
    from recllm.sid.table import SidTable
    from recllm.sid.vocabulary import check_table
    from recllm.tools.build import load_tools

    check_table(folders["reasoner"], SidTable.load(table))
    config = (load_run(folders["tool_cache"]) or {}).get("config", {})
    asked = {name: config[name] for name in ("think_tokens", "letter_score") if name in config}
    # The Hub's client prints where it loads weights from; stdout is for the answer.
    with redirect_stdout(sys.stderr):
        return load_tools(folders["dataset"], **{name: folders.get(name) for name in TOOL_INPUTS}, **asked)


def play_request(
    model, tokenizer, tools: Tools, bench: Bench, catalog: Catalog, asked: Examples, k: int = 10
) -> PlannedAnswer:
    """Play the one request of `asked` live and list at most `k` items; the answer names no user."""
    from recllm.planner.env import answer_items
    from recllm.planner.live import LiveBench
    from recllm.planner.rollout import play_batch

    turns: list[tuple[int, int]] = []

    def listen(_, __, read_B: list[int], written_B: list[int]) -> None:
        turns.append((read_B[0], written_B[0]))

    began = time.perf_counter()
    live = LiveBench(tools, bench, asked)
    (rollout,) = play_batch(model, tokenizer, live, np.array([0]), listen=listen)
    spent = time.perf_counter() - began - sum(live.seconds.values())
    written = sum(wrote for _, wrote in turns)
    # The last turn's prompt holds all that was read before it, and what the planner had written by then.
    read = turns[-1][0] - (written - turns[-1][1])
    own = Own(len(turns), read, written, rollout.own_cost, round(1000 * spent, 3), rollout.faults)
    rows = _shown(answer_items(rollout.env)[:k], catalog, bench)
    tool = rollout.env.episode.tool or "retrieve"
    return PlannedAnswer(None, asked.history(0).tolist(), [], tool, rows, _trace(rollout, live, catalog, bench), own)


def _shown(items_K: np.ndarray, catalog: Catalog, bench: Bench) -> list[Item]:
    names = catalog.categories
    return [
        Item(item, neutralise(catalog.titles[item]), [neutralise(name) for name in names[item]], bench.sid_texts[item])
        for item in items_K.tolist()
    ]


def _trace(rollout: Rollout, live: LiveBench, catalog: Catalog, bench: Bench) -> list[Call]:
    """The retrieval that the prompt shows, then every call in order."""
    from recllm.planner.env import LIMIT_TEXT
    from recllm.planner.parser import parse_turn

    milliseconds = {tool: round(1000 * seconds, 3) for tool, seconds in live.seconds.items()}
    base, found_K = live.cost("retrieve", 0), live.items("retrieve", 0, 10)
    text, head = neutralise(live.result("retrieve", 0, found_K, None)), _shown(found_K[:_SHOWN], catalog, bench)
    traced = [Call("retrieve", "", text, head, base, milliseconds.pop("retrieve"))]
    turns = [message["content"] for message in rollout.messages if message["role"] == "assistant"]
    asked = [call for turn in turns for call in parse_turn(turn).calls]
    answers = [message["content"] for message in rollout.messages if message["role"] == "tool"]
    played = iter(rollout.env.episode.calls)
    for (name, arguments), answer in zip(asked, answers, strict=True):
        told = (neutralise(text, max_length=_CHARACTERS) for text in (name, json.dumps(arguments), answer))
        if answer.startswith("{'error':") or answer == LIMIT_TEXT:
            traced.append(Call(*told, [], 0, 0.0))
            continue
        tool, items_K, cost = next(played)
        # The retrieval is paid once, as in `tools_cost`.
        added = cost - (0 if tool == "reason" else base)
        traced.append(Call(*told, _shown(items_K[:_SHOWN], catalog, bench), added, milliseconds.pop(tool, 0.0)))
    return traced
