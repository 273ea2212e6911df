"""The card of a data set of rationales: where it comes from, who wrote it, what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recllm.provenance import RunRecord

_TEXT = """\
# Rationales

Chats from which a recommender learns to think before it recommends, in TRL's conversational format: `messages`, `kind`,
`user` (-1 where no user is meant) and `position` of the explained item in the user's sequence.

- Data set: {name}, licence {licence}. Only the fitting fold was read: no validation, test or routing target is among
  the rows.
- Kinds: {kinds}. `category` names the categories of the next items, `direct` is the same rows without a thought; `next`
  and `pair` are a teacher's explanations.
- Teacher: {teacher}. Its text is kept only where all that it cites is in the evidence, the categories that it ends
  with are the item's, and the title to be found is not in it.

| | number |
|---|---|
{rows}
"""


def write_card(folder: str | Path, record: RunRecord, teacher: str, metrics: Mapping[str, float]) -> None:
    """Write README.md; counts that are 0 are left out."""
    described: Mapping[str, Any] = record.extra.get("dataset", {})
    rows = "\n".join(f"| {name} | {value:,.10g} |" for name, value in metrics.items() if value)
    text = _TEXT.format(
        name=described.get("name", "unknown"),
        licence=described.get("licence", "unknown"),
        kinds=", ".join(record.config["kinds"]),
        teacher=teacher,
        rows=rows,
    )
    front = "---\ntags:\n- recllm\n- recommendation\n- rationales\n---\n\n"
    (Path(folder) / "README.md").write_text(front + text, encoding="utf-8")
