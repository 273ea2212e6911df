"""What a delivered needs model says to one request: the need, its type, the category, and services with their titles.

What was typed is untrusted: weather and scene are neutralised, titles become items, and what is printed is plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.data.text import neutralise
from recllm.evaluation.serve import find_dataset, find_items
from recllm.needs.prompts import VISITS, Context
from recllm.needs.schema import SERVICES

# Other categories that are told beside the first, and the most characters of a typed weather or scene and a prompt.
_CATEGORIES, _LONGEST, _PROMPT = 3, 40, 4000


@dataclass(frozen=True)
class Service:
    """One row of the answer; `own` is whether the user had been there."""

    item: int
    title: str
    category: str
    own: bool


@dataclass(frozen=True)
class NeedsAnswer:
    """The request as the model was told it, and its answer, services best first; `others` are the next categories."""

    asked: str
    notes: list[str]
    need: str
    need_type: str
    category: str
    others: list[str]
    services: list[Service]

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def recommend_needs(
    model: str | Path,
    user: int | None = None,
    history: str | None = None,
    dataset: str | Path | None = None,
    k: int = SERVICES,
    **told: Any,
) -> NeedsAnswer:
    """The answer for a user of the data set or for a context that is told, with at most ten services.

    told: `hour`, `weekday` (0 is Monday), `weather` and `scene`; what is None is unknown, or with `user` that of the
    user's last visit, which is then asked about anew, the visits before it being known. `history` holds titles or
    `#123` item ids instead, oldest first.

    Raises:
        ValueError: an unknown user or title, both of `user` and `history`, a context out of range, `k` not 1 to 10, or
            a data set that is not the model's.
    """
    if not 1 <= k <= SERVICES:
        raise ValueError(f"-k must be 1 to {SERVICES} with --needs, got {k}")
    if user is not None and history is not None:
        raise ValueError("give either --user ID or --history TITLES, and not both")
    told = _checked({name: value for name, value in told.items() if value is not None})
    folder = find_dataset(Path(model)) if dataset is None else Path(dataset)
    visits, catalog = Visits.load(folder), Catalog.load(folder)
    past_T, hours, context, notes = _known(visits, catalog, folder, user, history)

    from recllm.needs.asking import Asking
    from recllm.needs.model import NeedsModel
    from recllm.needs.schema import ServiceNames

    needs = NeedsModel.load(model)
    needs.vocabulary.check(visits, catalog)
    places = needs.vocabulary.places(catalog)
    asking = Asking(visits, places, ServiceNames(needs.table))
    chat = asking.asked(Context(**{**context, **told}), past_T, hours, "service")
    found = needs.answer([chat], label=None)
    services = [
        Service(item, neutralise(catalog.titles[item]), neutralise(places.category_N[item]), item in past_T)
        for item in found.services_EK[0, :k].tolist()
        if item >= 0
    ]
    ranked = [neutralise(name) for name in found.categories_EK[0]]
    asked = neutralise(chat[-1]["content"], max_length=_PROMPT)
    return NeedsAnswer(asked, notes, found.needs[0], found.types[0], ranked[0], ranked[1 : 1 + _CATEGORIES], services)


def _checked(told: dict[str, Any]) -> dict[str, Any]:
    if not 0 <= told.get("hour", 0) <= 24:
        raise ValueError(f"--hour must be 0 to 24, got {told['hour']:g}")
    if told.get("weekday", 0) not in range(7):
        raise ValueError(f"--weekday must be 0 (Monday) to 6, got {told['weekday']}")
    words = {name: neutralise(told[name], max_length=_LONGEST) for name in ("weather", "scene") if name in told}
    return told | words


def _known(
    visits: Visits, catalog: Catalog, folder: Path, user: int | None, history: str | None
) -> tuple[np.ndarray, list[float | None], dict[str, Any], list[str]]:
    """Items visited before, the hours of the last ones, the context that the data set knows of the request, and notes
    on the titles."""
    if user is not None:
        row, names = _last_row(visits, user, folder), ("hour", "weekday", "weather", "scene")
        context = dict(zip(names, visits.frame.select(names).row(row), strict=True))
        past_T = visits.history(row)
        hours = visits.frame["hour"].gather(past_T[-VISITS:]).to_list()
        return visits.sequences.items_M[past_T], hours, context, []
    if history is None:
        return np.zeros(0, dtype=np.int64), [], {}, []
    items, notes = find_items(history, catalog, visits.fitted_counts(len(catalog)))
    return np.array(items), [], {}, notes


def _last_row(visits: Visits, user: int, folder: Path) -> int:
    ids_U = visits.sequences.user_ids_U
    place = np.flatnonzero(ids_U == user)
    if not len(place):
        raise ValueError(f"no user {user} in {folder}: it has {len(ids_U)} users from {ids_U.min()} to {ids_U.max()}")
    return int(visits.sequences.offsets_U1[place[0] + 1]) - 1


def print_needs_answer(answer: NeedsAnswer) -> None:
    """Need, type and category, then the services, with the notes above on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    errors = Console(stderr=True, soft_wrap=True)
    for note in answer.notes:
        errors.print(f"note: {note}", markup=False, highlight=False)
    console = Console(width=None if Console().is_terminal else 150, highlight=False)
    for name, value in _lines(answer):
        console.print(f"{name:<10}{value}", markup=False)
    table = Table("", "service", "category", "visited before", title="services", title_justify="left")
    for place, row in enumerate(answer.services, start=1):
        # Text, not markup: a title is not to colour the terminal.
        cells = (str(place), row.title or f"#{row.item}", row.category, "yes" if row.own else "")
        table.add_row(*map(Text, cells))
    console.print(table)


def _lines(answer: NeedsAnswer) -> Sequence[tuple[str, str]]:
    category = f"{answer.category} (then {', '.join(answer.others)})" if answer.others else answer.category
    return ("asked", answer.asked), ("need", answer.need), ("type", answer.need_type), ("category", category)
