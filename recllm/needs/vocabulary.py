"""What a needs model can answer with: need types, category names and candidate services, kept beside its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.needs.rewards import Places
from recllm.needs.schema import SERVICES, ServiceNames, plain
from recllm.provenance import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recllm.needs.constrain import AnswerGrammar
    from recllm.needs.patterns import Patterns
    from recllm.sid.table import SidTable

FILE = "needs.json"
_FORMAT = 1


@dataclass(frozen=True)
class NeedsVocabulary:
    """Need types, category names and candidate services (item ids), each sorted and without doubles.

    dataset: `dataset_hash` of the data set that they were taken from, "" where unknown.

    Raises:
        ValueError: no type or category, fewer than ten services, one of them negative, or a name that no answer could
            hold.
    """

    types: tuple[str, ...]
    categories: tuple[str, ...]
    services: tuple[int, ...]
    dataset: str = ""

    def __post_init__(self) -> None:
        for name in ("types", "categories", "services"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if not self.types or not self.categories or len(self.services) < SERVICES or self.services[0] < 0:
            raise ValueError(
                f"{len(self.types)} need types, {len(self.categories)} categories and {len(self.services)} services "
                f"are no vocabulary of needs: it has one of each at least, and {SERVICES} services"
            )
        if wrong := [name for name in (*self.types, *self.categories) if not plain(name)]:
            raise ValueError(f"{wrong[0]!r} cannot stand in an answer; neutralise the names of types and categories")

    @classmethod
    def of(cls, visits: Visits, catalog: Catalog, patterns: Patterns) -> NeedsVocabulary:
        """The vocabulary of a data set: the types of its patterns, and the candidates of its catalogue."""
        places = Places.from_catalog(catalog, candidates(visits, catalog))
        types = tuple(name for name in patterns.need_types if name)
        return cls(types, tuple(places.categories), tuple(places.candidates), dataset_hash(visits, catalog))

    def save(self, folder: str | Path) -> None:
        """Write needs.json into `folder`."""
        write_json(Path(folder) / FILE, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def load(cls, folder: str | Path) -> NeedsVocabulary:
        """Read needs.json of a model's folder.

        Raises:
            ValueError: the file is missing, torn, of another format, or holds something else.
        """
        path = Path(folder) / FILE
        known = read_json(path)
        names = {field.name for field in fields(cls)}
        if not isinstance(known, dict) or known.pop("format", None) != _FORMAT or known.keys() != names:
            raise ValueError(f"{path} is not the vocabulary of a needs model (format {_FORMAT}); train the model again")
        for name, kind in {"types": str, "categories": str, "services": int}.items():
            if not isinstance(known[name], list) or any(type(value) is not kind for value in known[name]):
                raise ValueError(f"{path}: {name} must be a list of {kind.__name__}; train the model again")
        return cls(**known)

    def check(self, visits: Visits, catalog: Catalog) -> None:
        """Raise ValueError where this was taken from another data set."""
        if self.dataset != (found := dataset_hash(visits, catalog)):
            raise ValueError(
                f"the model's vocabulary is of data set {self.dataset[:12] or 'unknown'}, the one at hand is "
                f"{found[:12]}: item numbers of one mean nothing in the other; name the model's own"
            )

    def places(self, catalog: Catalog) -> Places:
        """The candidates as rewards see them."""
        return Places.from_catalog(catalog, self.services)

    def grammars(
        self, tokenizer: PreTrainedTokenizerBase, table: SidTable | None, need_budget: int = 24
    ) -> dict[str, AnswerGrammar]:
        """The grammar of each stage, services written with `table` (None: as item numbers)."""
        from recllm.needs.constrain import build_grammars

        names = ServiceNames(table)
        return build_grammars(tokenizer, self.types, self.categories, self.services, names, need_budget)


def candidates(visits: Visits, catalog: Catalog) -> list[int]:
    """Items that may be answered, rising: those with a category that stand for something that may be asked for.

    Where every visit to an item is context it is none, and neither is an unvisited item of a category all of whose
    visits are.
    """
    category_N = [category for _, category in catalog.kinds]
    asked = set(visits.frame.filter("target")["item_id"].unique().to_list())
    context = set(visits.frame["item_id"].unique().to_list()) - asked
    context_only = {category_N[item] for item in context} - {category_N[item] for item in asked}
    return [
        item
        for item, category in enumerate(category_N)
        if plain(category) and item not in context and (item in asked or category not in context_only)
    ]


def dataset_hash(visits: Visits, catalog: Catalog) -> str:
    """sha256 (hex) of a data set's items and events, whatever file they were read from."""
    digest = hashlib.sha256(json.dumps([catalog.titles, catalog.categories]).encode())
    visits.feed(digest)
    return digest.hexdigest()
