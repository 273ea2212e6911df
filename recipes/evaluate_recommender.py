"""Evaluate a recommender that speaks semantic ids over the whole catalogue, beside exact scoring and a backbone.

Method: beam search over the catalogue's trie, or the log-probability of every item (`--method exact`, or both to see
    what the beam lost). NDCG and Recall at 5 and 10 with bootstrap 95% intervals, at item level (the expected rank over
    the items behind a shared sid) and at sid level; coverage, Gini and novelty of the first ten.
Run: python recipes/evaluate_recommender.py --model outputs/beauty2014/recommender
    --dataset outputs/beauty2014/dataset --backbone outputs/beauty2014/sasrec
    --output_dir outputs/beauty2014/evaluation
Quick: seconds on 2 cores with --config recipes/configs/evaluate_recommender/smoke.yaml.
Makes: metrics.json and the table on the terminal.
Expect: the validation NDCG@10 that training printed, with --role validation and the same users and beams.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Folder of the recommender."})
    dataset: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder for metrics.json."})
    sid_table: str | None = field(
        default=None, metadata={"help": "Folder of the SID table; by default the one in the model's folder."}
    )
    backbone: str | None = field(default=None, metadata={"help": "Folder of a SASRec to put beside."})
    role: str = field(default="test", metadata={"help": "test or validation."})
    method: str = field(default="beam", metadata={"help": "beam, exact or both."})
    beams: int = field(default=50, metadata={"help": "Width of the beam, at least 10."})
    users: int | None = field(default=None, metadata={"help": "At most so many users, drawn by seed; default all."})
    exclude_seen: bool = field(default=True, metadata={"help": "Whether items of the history do not compete."})
    batch_size: int = field(default=64, metadata={"help": "Users that go through the model at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the drawn users."})


def main(args: Arguments) -> None:
    from recllm.evaluation.recommender_metrics import Targets, evaluate_recommender, load_backbone, load_recommender
    from recllm.evaluation.report import print_recommenders
    from recllm.provenance import RunRecord

    inputs = {
        name: getattr(args, name) for name in ("model", "dataset", "sid_table", "backbone") if getattr(args, name)
    }
    record = RunRecord.start(args.output_dir, "evaluate_recommender", args, inputs=inputs)
    if record.complete:
        print_recommenders(record.metrics(), args.role)
        return

    targets = Targets.load(args.dataset, args.role, args.users, args.seed)

    recommender = load_recommender(args.model, targets, args.sid_table)
    backbone = load_backbone(args.backbone, args.dataset, len(targets.events_N)) if args.backbone else None

    options = {name: getattr(args, name) for name in ("beams", "exclude_seen", "batch_size")}
    metrics = evaluate_recommender(recommender, targets, args.method, backbone=backbone, **options)

    print_recommenders(metrics, args.role)
    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
