"""A point of a merging sweep as a checkpoint to use and to publish, or the whole Pareto set as a family of branches.

Method: The Thinking Spectrum (methods 5). mergekit writes the chosen merge, in a process of its own; the card has the
    curve that it was taken from, both parents, the exact mergekit recipe, and what the parents' licences allow.
Run: python recipes/merge_deliver.py --sweep outputs/thinking/sweep --output_dir outputs/thinking/chosen --budget 300
    --key KEY or --best true instead of --budget; --push_to_hub true --hub_model_id me/chosen publishes it.
    python recipes/merge_deliver.py --sweep outputs/thinking/sweep --output_dir outputs/thinking/family
    --family true --push_to_hub true --hub_model_id me/family
Quick: the time of one mergekit merge, about 17 s for SmolLM2-135M.
Makes: the merged model with tokenizer and SID table, README.md, curve.png and curve.svg, mergekit_config.yml,
    point.json, metrics.json, run.json. Of a family a folder each below points/, and below family/ the page that lists
    them. Killed or cut off, the same command goes on; a branch that is up is neither merged nor pushed again.
Expect: see docs/EXPERIMENTS.md.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    sweep: str = field(metadata={"help": "Folder of the sweep; it need not be finished."})
    output_dir: str = field(metadata={"help": "Folder for the merged model."})
    key: str | None = field(default=None, metadata={"help": "The point's key, or how it begins."})
    budget: float | None = field(default=None, metadata={"help": "Take the best of at most so many mean tokens."})
    best: bool = field(default=False, metadata={"help": "Take the most accurate point."})
    family: bool = field(default=False, metadata={"help": "Take the whole Pareto set, a branch each."})
    seed: int = field(default=0, metadata={"help": "Seed of the half of the questions that the choice is made on."})
    direct: str | None = field(default=None, metadata={"help": "Where the direct parent is, if it has moved."})
    thinking: str | None = field(default=None, metadata={"help": "Where the thinking parent is, if it has moved."})
    base: str | None = field(default=None, metadata={"help": "Where their base is, if it has moved."})
    push_to_hub: bool = field(default=False, metadata={"help": "Publish what was made."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository, namespace/name."})
    hub_revision: str | None = field(default=None, metadata={"help": "New branch; by default named after the run."})
    hub_private_repo: bool = field(default=True, metadata={"help": "Create it privately and refuse a public one."})
    retries: int = field(default=5, metadata={"help": "Retries of each step of a push where a fault may pass."})
    keep: bool = field(default=False, metadata={"help": "Leave a family's merged folders on disk after their push."})


def main(args: Arguments) -> None:
    from recllm.hub.family import deliver_family, shelf_of
    from recllm.hub.merged import finish_point, open_delivery, open_sweep
    from recllm.merging.pick import pick, pick_front
    from recllm.provenance import RunRecord

    shelf = shelf_of(args.push_to_hub, args.hub_model_id, args.hub_private_repo, args.retries, args.keep)
    record = RunRecord.start(args.output_dir, "merge_deliver", args, inputs={"sweep": args.sweep})
    if record.complete and not (args.family and args.push_to_hub):
        shelf.push(record.folder, args.hub_revision)
        return

    sweep, found = open_sweep(args.sweep, args.seed)
    choice = (args.key, args.budget, args.best, args.seed)
    chosen = pick_front(sweep, found.results) if args.family else [pick(sweep, found.results, *choice)]

    elsewhere = {role: address for role in ("direct", "thinking", "base") if (address := getattr(args, role))}
    at_once = len(chosen) if args.keep or not args.push_to_hub else 1
    delivery = open_delivery(sweep, found, [one.point for one in chosen], record.folder, at_once, elsewhere)

    if args.family:
        record.finish(deliver_family(delivery, chosen, record, shelf))
        return
    finish_point(delivery, chosen[0], record)
    shelf.push(record.folder, args.hub_revision)


if __name__ == "__main__":
    main(*parse(Arguments))
