"""Publish a finished run folder to the Hub: privately, to a revision of its own, never over anything else.

Method: the folder's delivered files go up in one commit on a new branch, weights as safetensors only; checkpoints,
logs and optimizer state stay behind. An interrupted push is taken up where it stopped by the same command. The
access token comes from `hf auth login` or HF_TOKEN, the server from HF_ENDPOINT.

Run:
    python recipes/publish.py --folder outputs/quickstart/grpo_planner --hub_model_id my-name/my-planner

Quick (no request is made; a second):
    python recipes/publish.py --folder outputs/quickstart/grpo_planner --hub_model_id my-name/my-planner --dry_run true

Makes: a revision on the Hub, `run-<first 12 digits of the folder's fingerprint>` unless --revision names one; the
folder itself is left as it is.

Expect: one line with the address of the revision; status 1 and one paragraph with the cause and the remedy where
it could not be published.
"""

from dataclasses import dataclass, field

from recllm.hub.publish import publish_with_outcome
from recllm.hub.selection import select
from recllm.training.arguments import parse


@dataclass
class Arguments:
    """What to publish and where."""

    folder: str = field(metadata={"help": "output folder of a finished run"})
    hub_model_id: str = field(metadata={"help": "repository, namespace/name"})
    revision: str | None = field(default=None, metadata={"help": "new branch; by default named after the run"})
    private: bool = field(default=True, metadata={"help": "create the repository privately and refuse a public one"})
    repo_type: str = field(
        default="model", metadata={"help": "model, or dataset for chat data sets", "choices": ["model", "dataset"]}
    )
    retries: int = field(default=5, metadata={"help": "retries of each step where a fault may pass"})
    allow_incomplete: bool = field(default=False, metadata={"help": "publish a folder without a valid run.json too"})
    dry_run: bool = field(default=False, metadata={"help": "print what would go up and stop before any request"})


def main(args: Arguments) -> None:
    """Show the selection, push it, and end with status 1 where that failed."""
    selection = select(args.folder, args.revision, args.allow_incomplete)
    selection.show(args.hub_model_id)

    outcome = publish_with_outcome(
        args.folder,
        args.hub_model_id,
        enabled=not args.dry_run,
        revision=selection.revision,
        private=args.private,
        repo_type=args.repo_type,
        retries=args.retries,
        allow_incomplete=args.allow_incomplete,
    )
    outcome.exit_if_failed()


if __name__ == "__main__":
    main(*parse(Arguments))
