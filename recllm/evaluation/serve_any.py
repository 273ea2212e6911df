"""One request to whatever model a folder holds: which options go with it, who answers, and how that is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Options that go with some kinds of model only.
_GOES_WITH = {
    **{"beams": ("--model",), "tool_cache": ("--planner",), "trace": ("--planner",), "user": ("--planner", "--needs")},
    **dict.fromkeys(("hour", "weekday", "weather", "scene"), ("--needs",)),
}
_BEAMS = 50


def answer_request(folders: Mapping[str, Path | None], asked: Mapping[str, Any]) -> tuple[Any, Callable[[Any], None]]:
    """The answer of the one model that is given, and what prints it.

    folders: `--model`, `--planner` and `--needs`, all but one None. asked: the other options of `recllm recommend`,
    None (or False) where they are not given.

    Raises:
        ValueError: not one model, options that do not go with it, or as the model's own function.
    """
    given = [name for name, folder in folders.items() if folder is not None]
    if len(given) != 1:
        raise ValueError("give either --model DIR (a recommender) or --planner DIR or --needs DIR (a model of needs)")
    kind, folder = given[0], folders[given[0]]
    if kind == "--model" and asked["history"] is None:
        raise ValueError("--model needs --history TITLES")
    for name, kinds in _GOES_WITH.items():
        if asked[name] is not None and asked[name] is not False and kind not in kinds:
            raise ValueError(f"--{name} does not go with {kind}")

    from transformers.utils import logging

    logging.disable_progress_bar()
    history, dataset, k = asked["history"], asked["dataset"], asked["k"]
    if kind == "--needs":
        from recllm.evaluation.serve_needs import print_needs_answer, recommend_needs

        told = {name: asked[name] for name in ("hour", "weekday", "weather", "scene")}
        return recommend_needs(folder, asked["user"], history, dataset, k, **told), print_needs_answer
    if kind == "--planner":
        from recllm.evaluation.planner_trace import print_planned
        from recllm.evaluation.serve_planner import recommend_by_planner

        answer = recommend_by_planner(folder, asked["user"], history, dataset, asked["tool_cache"], k)
        return answer, lambda answer: print_planned(answer, asked["trace"])
    from recllm.evaluation.serve import print_answer, recommend_titles

    return recommend_titles(folder, history, dataset, k, asked["beams"] or _BEAMS), print_answer
