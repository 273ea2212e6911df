"""A run whose result may be published: checked before training starts, delivered and pushed at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.hub.card import write_card
from recllm.hub.publish import preflight, publish_with_outcome
from recllm.provenance import RunRecord


@dataclass(frozen=True)
class Publishing:
    """Where a run's folder is to be pushed; not at all where `enabled` is false."""

    enabled: bool
    repo_id: str | None
    revision: str | None
    token: str | None
    private: bool


def start_run(recipe: str, configs: tuple[Any, ...], inputs: Mapping[str, str | Path]) -> tuple[RunRecord, Publishing]:
    """Open the run's record and, where its TRL arguments ask for a push, make sure now that the push can work.

    The trainer's own pushing is switched off: it would publish half a run, over what is there.

    Raises:
        PublishError, ValueError, FileExistsError: publishing cannot work (see `publish.preflight`).
    """
    trl = next(config for config in configs if hasattr(config, "push_to_hub"))
    publishing = Publishing(
        enabled=bool(trl.push_to_hub),
        repo_id=trl.hub_model_id,
        revision=getattr(trl, "hub_revision", None),
        token=trl.hub_token,
        private=trl.hub_private_repo is not False,
    )
    record = RunRecord.start(trl.output_dir, recipe, configs, inputs)
    if publishing.enabled and not record.complete:
        if not publishing.repo_id:
            raise ValueError("push_to_hub needs hub_model_id, for example --hub_model_id me/planner")
        preflight(publishing.repo_id, publishing.revision, publishing.token, private=publishing.private)
    trl.push_to_hub = False
    return record, publishing


def deliver_run(record: RunRecord, metrics: Mapping[str, Any], publishing: Publishing) -> None:
    """Write the card and `run.json`, then push; a failed push keeps the run and ends the process with status 1."""
    write_card(record, metrics)
    record.finish(metrics)
    publish_with_outcome(
        record.folder,
        publishing.repo_id,
        enabled=publishing.enabled,
        revision=publishing.revision,
        token=publishing.token,
        private=publishing.private,
    ).exit_if_failed()
