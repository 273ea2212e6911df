"""A run whose result may be published: checked before training starts, delivered and pushed at the end.

`hub_strategy` says what is pushed besides: with `checkpoint` or `all_checkpoints` every saved checkpoint goes to a
revision of its own while training goes on (`during.py`). Any other, transformers' default `every_save` among them,
means the final push alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recllm.hub.card import write_card
from recllm.hub.during import STRATEGIES, CheckpointPusher
from recllm.hub.publish import PublishOutcome, preflight, publish_with_outcome
from recllm.provenance import RunRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publishing:
    """Where a run's folder is to be pushed; not at all where `enabled` is false.

    `pusher` is there where checkpoints are pushed, too; it needs `callbacks` on the trainer.
    """

    enabled: bool
    repo_id: str | None
    revision: str | None
    token: str | None
    private: bool
    pusher: CheckpointPusher | None = field(default=None, repr=False)

    def callbacks(self) -> list[Any]:
        """What the trainer has to call for pushes while training goes on; none where none were asked for."""
        return [self.pusher.callback()] if self.pusher else []

    def give_up(self) -> None:
        """The run failed: push the checkpoints that are in line, and say which did not reach the Hub."""
        if self.pusher and (missing := self.pusher.finish()):
            logger.warning("%s", missing)


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
    return record, replace(publishing, pusher=_pusher(record, publishing, trl))


def _pusher(record: RunRecord, publishing: Publishing, trl: Any) -> CheckpointPusher | None:
    strategy = getattr(trl, "hub_strategy", None)
    strategy = str(getattr(strategy, "value", strategy))
    if not publishing.enabled or record.complete or strategy not in STRATEGIES:
        return None
    if getattr(trl.save_strategy, "value", trl.save_strategy) == "no":
        logger.warning("hub_strategy: %s pushes saved checkpoints, and save_strategy: no saves none", strategy)
    target = (publishing.repo_id, publishing.revision, publishing.token, publishing.private)
    return CheckpointPusher(record, *target, strategy)


def deliver_run(record: RunRecord, metrics: Mapping[str, Any], publishing: Publishing) -> None:
    """Write the card and `run.json`, then push; a failed push keeps the run and ends the process with status 1.

    Checkpoints that are still in line go first. One that cannot be pushed counts as a failed push.
    """
    write_card(record, metrics)
    record.finish(metrics)
    # One push at a time: the Hub's client is shared by the process, and each push sets its limits.
    missing = publishing.pusher.finish() if publishing.pusher else None
    if missing:
        print(f"NOT PUBLISHED: {missing}", flush=True)
    outcome = publish_with_outcome(
        record.folder,
        publishing.repo_id,
        enabled=publishing.enabled,
        revision=publishing.revision,
        token=publishing.token,
        private=publishing.private,
    )
    PublishOutcome(error="; ".join(filter(None, (outcome.error, missing))) or None).exit_if_failed()
