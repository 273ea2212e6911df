"""Does the filter keep what is faithful and drop what is not? Real evidence, honest texts, and faults that are planted.

Claim:  on 200 rationales, half of them with one fault each of eight kinds, the filter agrees with what was planted for
        at least 99%, and names the right reason.
Run:    python benchmarks/rationale_filter.py --rationales outputs/planner_frontier/rationales
            --dataset outputs/planner_frontier/dataset --json out.json
The folder is one of data_prep/rationales.py with the template teacher: its ledger holds each question's evidence and
the text that was written from it. Honest texts of a template are all alike; docs/EXPERIMENTS.md has a language model's.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.metrics import cohen_kappa_score

from recllm.data.catalog import Catalog
from recllm.rationales.filter import Rules, TitleIndex, judge, title_key
from recllm.rationales.questions import CONCLUSION, NEXT
from recllm.teachers.protocol import Answer

Row = Mapping[str, Any]


CLAIM = 0.99


class Planter:
    """Writes one fault into an honest text; every method answers with the text, or None where the row has no room."""

    def __init__(self, catalog: Catalog, rng: np.random.Generator):
        self.titles = [title for title in catalog.titles if 2 <= len(title_key(title)) <= 8 and '"' not in title]
        self.categories = sorted({name for names in catalog.categories for name in names})
        self.rng = rng

    def unknown_title(self, row: Row) -> str | None:
        """Cites a film or product that is not in the evidence."""
        known = json.dumps(row["facts"]).lower()
        for _ in range(20):
            title = self.titles[self.rng.integers(len(self.titles))]
            if title.lower() not in known and " ".join(title_key(title)) not in known.replace("&", " "):
                return f'Much like "{title}". {row["text"]}'
        return None

    def unknown_label(self, row: Row) -> str:
        """Cites a label that the evidence does not have."""
        return f"Goes with [H{self.rng.integers(11, 99)}]. {row['text']}"

    def wrong_category(self, row: Row) -> str | None:
        """Adds a category that the explained item has not."""
        own = explained(row)["categories"]
        others = [name for name in self.categories if not any(name in mine or mine in name for mine in own)]
        return f"{row['text']}, {others[self.rng.integers(len(others))]}" if CONCLUSION in row["text"] else None

    def no_category(self, row: Row) -> str | None:
        """Leaves the conclusion out."""
        return row["text"].partition(f"\n{CONCLUSION}")[0] if CONCLUSION in row["text"] else None

    def leaks_title(self, row: Row) -> str | None:
        """Gives the next item away."""
        title, shown = explained(row)["title"], [item["title"] for item in row["facts"].get("history", [])]
        if row["kind"] != NEXT or len(title_key(title)) < 2 or title in shown:
            return None
        return f"So {title} comes next. {row['text']}"

    def markers(self, row: Row) -> str:
        """Writes semantic ids into the thought."""
        return f"Think of <a_{self.rng.integers(64)}><b_{self.rng.integers(64)}>. {row['text']}"

    def length(self, row: Row) -> str:
        """Goes on and on."""
        return f"{'It is what people of this kind like. ' * 10}{row['text']}"

    def cut_off(self, row: Row) -> str:
        """Was stopped by the token limit; the text itself is honest."""
        return row["text"]


FAULTS: tuple[Callable[[Planter, Row], str | None], ...] = (
    *(Planter.unknown_title, Planter.unknown_label, Planter.wrong_category, Planter.no_category),
    *(Planter.leaks_title, Planter.markers, Planter.length, Planter.cut_off),
)


def explained(row: Row) -> Mapping[str, Any]:
    """The item that a row explains."""
    return row["facts"]["target"] if row["kind"] == NEXT else row["facts"]["items"][1]


def measure(rows: list[Row], catalog: Catalog, seed: int) -> dict[str, Any]:
    """Agreement of the filter with what was planted, over all and for each fault."""
    planter, titles = Planter(catalog, np.random.default_rng(seed)), TitleIndex(catalog.titles)
    planted, found, missed = [], [], defaultdict(Counter)
    for number, row in enumerate(rows):
        text, fault = row["text"], "kept"
        for shift in range(len(FAULTS) if number % 2 else 0):
            plant = FAULTS[(number // 2 + shift) % len(FAULTS)]
            if (changed := plant(planter, row)) is not None:
                text, fault = changed, plant.__name__
                break
        finish = "length" if fault == "cut_off" else "stop"
        verdict = judge(row["kind"], row["facts"], Answer(text, 0, 0, finish), titles, Rules())
        planted.append(fault)
        found.append(verdict.reason or "kept")
        if found[-1] != fault:
            missed[fault][found[-1]] += 1
    same = [(one == "kept") == (other == "kept") for one, other in zip(planted, found, strict=True)]
    exact = [one == other for one, other in zip(planted, found, strict=True)]
    kappa = cohen_kappa_score([one == "kept" for one in planted], [one == "kept" for one in found])
    return {
        "n": len(rows),
        "planted": dict(Counter(planted)),
        "agreement": float(np.mean(same)),
        "same_reason": float(np.mean(exact)),
        "kappa": float(kappa),
        "disagreements": {fault: dict(reasons) for fault, reasons in missed.items()},
    }


def main(
    rationales: Annotated[Path, typer.Option(help="Folder of data_prep/rationales.py, template teacher.")],
    dataset: Annotated[Path, typer.Option(help="Folder of its data set.")],
    n: Annotated[int, typer.Option(help="Rationales, drawn by the seed.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the faults.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
) -> None:
    """Print the agreement."""
    with (rationales / "ledger.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    found = measure([rows[i] for i in chosen], Catalog.load(dataset), seed)
    print(json.dumps(found, indent=2))
    assert min(found["agreement"], found["same_reason"]) >= CLAIM, f"less than the claimed {CLAIM}"
    if json_out:
        json_out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
