"""The table of sampled completions: what the model says at this step, what it earned, and whether it was valid.

Completions and prompts are untrusted: they are shown as plain text on one line, without markup, and every control or
invisible character as its escape, so that none can move a cursor, colour a terminal or pass for another text.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from recllm.recommender.rewards import read_item
from recllm.sid.table import SidTable

# Rows: so many best, so many worst, and so many drawn among the rest.
_BEST, _WORST, _DRAWN = 2, 2, 2
PROMPT_WIDTH, COMPLETION_WIDTH, _ANSWER_WIDTH = 60, 160, 60
# Characters: of a number with its sign, and what the two texts need beside the numbers.
_FIGURE_WIDTH, _TEXTS_WIDTH = 6, 80


def sample_table(trainer: Any, step: int, encoding: str = "utf-8", width: int = 200) -> Table:
    """Rows of the last batch that a GRPOTrainer drew: the best and the worst by reward, and some others.

    The others are drawn by a generator of their own, seeded by `args.seed` and `step`. `valid` is whether the reward
    of that name is positive, or for a recommender whether the completion is the sid of an item; `-` where neither can
    be told. `total` is the weighted sum of the reward's parts; a part that does not apply is `-`. Where `width`
    characters leave the texts too little room, the parts share one column.
    """
    logs = trainer._logs
    prompts, completions = list(logs["prompt"]), list(logs["completion"])
    parts = {name: list(values) for name, values in logs["rewards"].items()}
    labels = [visible(name, encoding) for name in parts]
    totals = _totals(parts, trainer.reward_func_names, trainer.reward_weights)
    known = _sid_table(trainer.reward_funcs)
    numbers = sum(max(len(name), _FIGURE_WIDTH) + 3 for name in (*labels, "total", "advantage"))
    roomy = width - numbers >= _TEXTS_WIDTH
    table = Table(title=f"step {step}: {len(prompts)} completions, some of them", title_justify="left")
    table.add_column("prompt ends", overflow="fold", ratio=2, min_width=8)
    table.add_column("completion", overflow="fold", ratio=3, min_width=12)
    table.add_column("valid", no_wrap=True)
    for label in (*(labels if roomy else ["parts"]), "total", "advantage"):
        table.add_column(Text(label), justify="right", no_wrap=True)
    for row in _rows(totals, seed=(trainer.args.seed, step)):
        figures = [_figure(values[row]) for values in parts.values()]
        pairs = zip(labels, figures, strict=True)
        together = "\n".join(f"{label} {figure:>{_FIGURE_WIDTH}}" for label, figure in pairs)
        table.add_row(
            Text(ending(visible(chat_text(prompts[row]), encoding), PROMPT_WIDTH)),
            Text(cut(visible(chat_text(completions[row]), encoding), COMPLETION_WIDTH)),
            _valid(parts, row, completions[row], known),
            *(map(Text, figures) if roomy else [Text(together)]),
            _figure(totals[row]),
            _figure(float(logs["advantages"][row])),
        )
    return table


def _totals(parts: dict[str, list[float]], names: Sequence[str], weights: torch.Tensor) -> list[float]:
    weight = dict(zip(names, weights.tolist(), strict=True))
    columns = [np.asarray(values, float) * weight[name] for name, values in parts.items()]
    if not columns:
        return []
    values = np.stack(columns)
    return np.where(np.isnan(values).all(0), np.nan, np.nansum(values, 0)).tolist()


def _rows(totals: Sequence[float], seed: Sequence[int]) -> list[int]:
    """Indices of the best, the worst and some drawn rows, by falling reward."""
    order = sorted(range(len(totals)), key=lambda i: -math.inf if math.isnan(totals[i]) else totals[i], reverse=True)
    if len(order) > _BEST + _WORST + _DRAWN:
        middle = order[_BEST:-_WORST]
        drawn = np.random.default_rng([abs(int(number)) for number in seed]).choice(len(middle), _DRAWN, replace=False)
        order = [*order[:_BEST], *(middle[i] for i in sorted(drawn)), *order[-_WORST:]]
    return order


def _valid(parts: dict[str, list[float]], row: int, completion: Any, known: SidTable | None) -> str:
    if "valid" in parts and not math.isnan(parts["valid"][row]):
        return "yes" if parts["valid"][row] > 0 else "no"
    if known is not None:
        return "no" if read_item(known, completion) is None else "yes"
    return "-"


def _sid_table(functions: Sequence[Any]) -> SidTable | None:
    """The catalogue's table, out of a recommender's rewards, guarded or not."""
    for function in functions:
        table = getattr(getattr(function, "__wrapped__", function), "table", None)
        if isinstance(table, SidTable):
            return table
    return None


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def chat_text(content: Any) -> str:
    """A text as it is; of a chat every message: what was said, `-> tool(arguments)` for a call, `<- answer`."""
    if isinstance(content, str):
        return content
    told = []
    for message in content:
        said = message.get("content")
        if isinstance(said, list):  # parts of several kinds
            said = " ".join(str(part.get("text", f"[{part.get('type')}]")) for part in said)
        if message.get("role") == "tool":
            answer = said or ""
            told.append("<- " + (answer if len(answer) <= _ANSWER_WIDTH else answer[:_ANSWER_WIDTH] + "..."))
        elif said:
            told.append(said)
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            arguments = function.get("arguments", {})
            if isinstance(arguments, dict):
                arguments = ", ".join(f"{key}={json.dumps(value, default=str)}" for key, value in arguments.items())
            told.append(f"-> {function.get('name')}({arguments})")
    return " ".join(told)


def visible(text: str, encoding: str = "utf-8") -> str:
    """The text on one line, with control, invisible and unprintable characters as their escapes."""
    shown = "".join(_escaped(c) if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def cut(text: str, width: int) -> str:
    """The text, its middle left out where it is longer than `width`."""
    if len(text) <= width:
        return text
    head = (width - 5) * 2 // 3
    return f"{text[:head]} ... {text[len(text) - (width - 5 - head) :]}"


def ending(text: str, width: int) -> str:
    """The end of the text, at most `width` characters."""
    return text if len(text) <= width else "..." + text[len(text) - (width - 3) :]
