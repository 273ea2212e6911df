"""What a planner answered to one request and how it came about: the record, and its tables.

What the planner writes is untrusted, as titles and categories are: everything is neutralised before it gets here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_MEGA = 1e6


@dataclass(frozen=True)
class Item:
    """An item as it is shown."""

    item: int
    title: str
    categories: list[str]
    sid: str


@dataclass(frozen=True)
class Call:
    """One call of a tool: its arguments as JSON, what it answered, the first of its items.

    `cost` are the FLOPs that the call added, `milliseconds` its wall time; a tool that is called again answers from
    memory. The first call of a trace is the retrieval that the prompt shows. A faulty call has no items and costs
    nothing.
    """

    tool: str
    arguments: str
    answer: str
    items: list[Item]
    cost: int
    milliseconds: float


@dataclass(frozen=True)
class Own:
    """The planner's part: its turns, tokens read and written, FLOPs, wall milliseconds, and faulty calls."""

    turns: int
    tokens_read: int
    tokens_written: int
    cost: int
    milliseconds: float
    faults: int


@dataclass(frozen=True)
class PlannedAnswer:
    """What comes next for a history (oldest first), by which tool's list, and how it came about."""

    user: int | None
    history: list[int]
    notes: list[str]
    tool: str
    rows: list[Item]
    calls: list[Call]
    planner: Own

    def totals(self) -> dict[str, float]:
        """Sums over the request: FLOPs of the tools, of the planner and of both, and milliseconds."""
        tools = sum(call.cost for call in self.calls)
        spent = sum(call.milliseconds for call in self.calls) + self.planner.milliseconds
        own = self.planner.cost
        return {"cost": tools, "own_cost": own, "total_cost": tools + own, "milliseconds": round(spent, 3)}

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"totals": self.totals()}


def answer_table(answer: PlannedAnswer) -> Table:
    """Place, title, categories and sid."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "title", "categories", "sid", title=f"what comes next, by {answer.tool}", title_justify="left")
    for place, row in enumerate(answer.rows, start=1):
        # Text, not markup: a title is not to colour the terminal.
        table.add_row(*map(Text, (str(place), row.title or f"#{row.item}", ", ".join(row.categories), row.sid)))
    return table


def trace_table(answer: PlannedAnswer) -> Table:
    """One row a call, then the planner's own part and the sums."""
    from rich.table import Table
    from rich.text import Text

    table = Table("call", "arguments", "answer", "first items", title="how it came about", title_justify="left")
    for name in ("MFLOPs", "ms"):
        table.add_column(name, justify="right")
    for call in answer.calls:
        titles = "\n".join(item.title or f"#{item.item}" for item in call.items)
        figures = f"{call.cost / _MEGA:,.2f}", f"{call.milliseconds:,.1f}"
        table.add_row(*map(Text, (call.tool, call.arguments or "before the first turn", call.answer, titles, *figures)))
    own, totals = answer.planner, answer.totals()
    said = f"{own.turns} turns, {own.tokens_read} tokens read, {own.tokens_written} written, {own.faults} faults"
    table.add_section()
    table.add_row("planner", "", said, "", f"{own.cost / _MEGA:,.2f}", f"{own.milliseconds:,.1f}")
    table.add_row("in all", "", "", "", f"{totals['total_cost'] / _MEGA:,.2f}", f"{totals['milliseconds']:,.1f}")
    return table


def print_planned(answer: PlannedAnswer, trace: bool) -> None:
    """The list, with the notes above it on stderr and, with `trace`, what led to it beneath."""
    from rich.console import Console

    errors = Console(stderr=True, soft_wrap=True)
    for note in answer.notes:
        errors.print(f"note: {note}", markup=False, highlight=False)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(answer_table(answer))
    if trace:
        console.print(trace_table(answer))
