"""The Pareto set of a sweep as one repository: a branch for each point, and on `main` what they are.

A branch is named after its point and the parents, so that a branch that is up is known by its name alone: it is neither
merged nor pushed again, whoever begins anew and from wherever.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.evaluation.report import markdown_table
from recllm.hub import card_parts as parts
from recllm.hub.client import PublishError
from recllm.hub.merged import RECIPE, Delivery, finish_point, parent_name
from recllm.hub.publish import open_repository, preflight, publish, publish_with_outcome
from recllm.hub.selection import select
from recllm.merging.pick import Pick
from recllm.merging.report_plot import plot_curve
from recllm.merging.results import Row
from recllm.provenance import RunRecord

logger = logging.getLogger(__name__)
INDEX_FOLDER, POINTS_FOLDER = "family", "points"
_MAIN = "main"


@dataclass(frozen=True)
class Shelf:
    """Where a family goes: a repository; nowhere but to disk where `repo_id` is None.

    keep: leave each merged folder on disk after its push.
    """

    repo_id: str | None
    private: bool = True
    retries: int = 5
    keep: bool = False

    def check(self) -> None:
        """Make sure that a push can work before anything is merged; errors as of `publish.preflight`."""
        if self.repo_id:
            preflight(self.repo_id, private=self.private)

    def push(self, folder: Path, revision: str | None, takes_over: bool = False) -> None:
        """Publish a finished folder where there is somewhere to publish it to; end with the reason where that fails.

        takes_over: as in `publish.publish`.
        """
        options = {"revision": revision, "private": self.private, "retries": self.retries, "takes_over": takes_over}
        publish_with_outcome(folder, self.repo_id, self.repo_id is not None, **options).exit_if_failed()


def shelf_of(enabled: bool, repo_id: str | None, private: bool, retries: int, keep: bool) -> Shelf:
    """Where a recipe's result goes, checked before anything is merged.

    Raises:
        ValueError: a push was asked for without a repository.
        PublishError: it cannot work (see `publish.preflight`).
    """
    if enabled and not repo_id:
        raise ValueError("push_to_hub needs hub_model_id, for example --hub_model_id me/merged")
    shelf = Shelf(repo_id if enabled else None, private, retries, keep)
    shelf.check()
    return shelf


def branch_of(delivery: Delivery, chosen: Pick) -> str:
    """The point's branch: method, strength, and eight digits of the point and its parents."""
    strength = "" if chosen.row.strength is None else f"-{chosen.row.strength:g}"
    digits = hashlib.sha256(f"{chosen.point.key} {delivery.mark}".encode()).hexdigest()[:8]
    return f"{chosen.point.method}{strength}-{digits}"


def deliver_family(delivery: Delivery, chosen: Sequence[Pick], record: RunRecord, shelf: Shelf) -> dict[str, Any]:
    """Merge, describe and push every point that is not up; then the page that lists them.

    Returns:
        Metrics: how many points there are, and how many were up before.

    Raises:
        SystemExit: a push failed, with the reason; the same call goes on with that point.
    """
    up = _branches(shelf)
    before = 0
    for one in chosen:
        branch = branch_of(delivery, one)
        folder = record.folder / POINTS_FOLDER / branch
        if branch in up:
            before += 1
        else:
            _make(delivery, one, folder)
            # A merge that was made again has a card with other times: other content of the same branch.
            shelf.push(folder, branch, takes_over=True)
        if shelf.repo_id and not shelf.keep:
            shutil.rmtree(folder, ignore_errors=True)
    index = _index(delivery, chosen, record.folder / INDEX_FOLDER, shelf)
    if shelf.repo_id:
        _push_index(index, shelf)
    return {"points": len(chosen), "up_before": before}


def _branches(shelf: Shelf) -> set[str]:
    """Branches of the repository that hold a whole push."""
    if not shelf.repo_id:
        return set()
    with open_repository(shelf.repo_id, shelf.retries) as repository:
        return repository.complete_branches() if repository.info() is not None else set()


def _make(delivery: Delivery, chosen: Pick, folder: Path) -> None:
    # What makes this point alone, for its card: of the family's own settings none does.
    config = {"sweep": str(delivery.sweep.folder), "key": chosen.point.key, "output_dir": folder.name}
    record = RunRecord.start(folder, RECIPE, config, inputs={"sweep": delivery.sweep.folder})
    if not record.complete:
        finish_point(delivery, chosen, record)


def _index(delivery: Delivery, chosen: Sequence[Pick], folder: Path, shelf: Shelf) -> Path:
    """The family's own page: nothing in it differs from one start to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_curve(delivery.found, folder)
    name = shelf.repo_id or "REPOSITORY"
    rows = [["", "revision", "point", "accuracy", "mean tokens", "thinks"]]
    for place, one in enumerate(chosen, 1):
        rows.append([f"{place}", parts.code(branch_of(delivery, one)), parts.code(one.point.label), *_told(one.row)])
    sweep = delivery.sweep
    parents = [["parent", "what", "licence"]]
    parents += [
        [role, parts.code(parent_name(role, entry)), parts.code(delivery.licences[role])]
        for role, entry in sweep.parents.items()
    ]
    first = branch_of(delivery, chosen[-1])
    text = (
        "---\ntags:\n- recllm\n- merge\n- mergekit\nlibrary_name: transformers\n---\n\n"
        "# A family of merges between speed and depth\n\n"
        "Every merge of a direct and a thinking parent that no other beats both in accuracy and in tokens, measured "
        f"on {chosen[0].row.n:,} questions of {parts.code(sweep.evaluator.get('name'))}. Each is a revision of this "
        "repository with a card of its own; choose by how many tokens you can spend.\n\n"
        f"![Accuracy against tokens](curve.png)\n\n{markdown_table(rows)}\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}", revision="{first}")\n```\n\n'
        f"{markdown_table(parents)}\n"
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def _told(row: Row) -> list[str]:
    share = "-" if row.think_share is None else f"{row.think_share:.1%}"
    return [f"{row.accuracy:.4f} [{row.accuracy_lo:.4f}, {row.accuracy_hi:.4f}]", f"{row.tokens:,.1f}", share]


def _push_index(folder: Path, shelf: Shelf) -> None:
    """To `main` where that is free or has this very page, else to a branch named after the page."""
    options = {"private": shelf.private, "retries": shelf.retries, "allow_incomplete": True}
    try:
        publish(folder, shelf.repo_id, _MAIN, **options)
    except PublishError as error:
        raise SystemExit(str(error)) from None
    except FileExistsError:
        mark = select(folder, "family", allow_incomplete=True).content_id()[:12]
        result = publish(folder, shelf.repo_id, f"family-{mark}", **options)
        logger.warning(
            "main of %s holds something else and was left alone; the list is at %s", shelf.repo_id, result.url
        )
