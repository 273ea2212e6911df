"""Models of living needs beside their ablations and the baselines, on the same test targets.

Method: HiAgentRec's comparison (methods 3.3). Services and categories by HR@1/3/5 and NDCG@5/10, on venues that are new
    to the user and on others, by popularity of the venue and of the derived need; needs by similarity to the derived
    one, type, and recoverability of the category; on synthetic cities by accuracy against the planted need, and the
    joint model in the other city. Baselines: popularity by context, the user's own history by context, a graph
    retrieval after PIGEON, SASRec and HSTU. Differs from the paper: users are resampled as clusters, the best baseline
    is chosen on validation, and a second one is named that is best at each metric.
Run: python recipes/evaluate_needs.py --dataset outputs/needs/dataset --patterns outputs/needs/patterns
    --joint outputs/needs/grpo --two_models outputs/needs/need_model outputs/needs/service_model
    --sasrec outputs/needs/sasrec --hstu outputs/needs/hstu --output_dir outputs/needs/report
    Every contestant may be left out; without any the baselines that need no folder are graded.
Quick: baselines in about 5 minutes on one core of 2, models about 15 ms a target and million parameters.
Makes: report.md, needs.png, metrics.json with `NAME/METRIC[_GROUP]` and `_lo`, `_hi` (`joint/hr@5_new`), the paired
    differences `over/NAME/METRIC` and the relative gains `gain/NAME/METRIC` of the joint model.
Expect: see docs/EXPERIMENTS.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set, with visits.parquet."})
    patterns: str = field(metadata={"help": "Folder of its patterns, whose derived needs are the reference."})
    output_dir: str = field(metadata={"help": "Folder for the report."})
    joint: str | None = field(default=None, metadata={"help": "Folder of the joint model."})
    two_models: list[str] = field(
        default_factory=list, metadata={"help": "Folders of the model of needs and of the one that is told the need."}
    )
    no_clustering: str | None = field(default=None, metadata={"help": "Folder of the model without clustering."})
    no_curriculum: str | None = field(default=None, metadata={"help": "Folder of the model without a curriculum."})
    no_semantic_reward: str | None = field(default=None, metadata={"help": "Folder of the one without that reward."})
    sasrec: str | None = field(default=None, metadata={"help": "Folder of a SASRec fitted with exclude_seen false."})
    hstu: str | None = field(default=None, metadata={"help": "Folder of an HSTU fitted with exclude_seen false."})
    cross_dataset: str | None = field(default=None, metadata={"help": "Folder of the other synthetic city."})
    cross_patterns: str | None = field(default=None, metadata={"help": "Folder of its patterns, where it has some."})
    encoder: Literal["minilm", "tfidf"] = field(default="minilm", metadata={"help": "What needs are compared with."})
    categories: list[int] = field(
        default_factory=lambda: [1, 4, 10],
        metadata={"help": "How many of a model's best categories bring services; of several the best on validation."},
    )
    max_rows: int | None = field(default=None, metadata={"help": "Grade whole users with so many targets at most."})
    graph_epochs: int = field(default=100, metadata={"help": "Most epochs of the graph retrieval."})
    seed: int = field(default=0, metadata={"help": "Seed of the graph retrieval."})


def main(args: Arguments) -> None:
    from recllm.evaluation.needs import MODELS, bayes_ahead, evaluate_needs, load_bench
    from recllm.evaluation.needs_cross import abroad, evaluate_abroad
    from recllm.evaluation.needs_report import needs_markdown, plot_needs, print_needs
    from recllm.provenance import RunRecord, several

    given = ("dataset", "patterns", *MODELS, "sasrec", "hstu", "cross_dataset", "cross_patterns")
    inputs = {name: folder for name in given if (folder := getattr(args, name))}
    record = RunRecord.start(args.output_dir, "evaluate_needs", args, inputs=inputs)
    if record.complete:
        print_needs(record.metrics())
        return

    bench = load_bench(args.dataset, args.patterns, args.encoder)
    models = {name: several(inputs[name]) for name in MODELS if name in inputs}
    backbones, graph = {"sasrec": args.sasrec, "hstu": args.hstu}, {"epochs": args.graph_epochs, "seed": args.seed}
    metrics = evaluate_needs(bench, models, backbones, graph, args.max_rows, args.categories)
    metrics |= bayes_ahead(args.dataset)

    if args.cross_dataset and args.joint:
        there = abroad(bench, args.cross_dataset, args.cross_patterns)
        metrics |= evaluate_abroad(bench, there, models["joint"], args.max_rows)

    plot_needs(metrics, record.folder)
    title = f"Living needs of {Path(args.output_dir).resolve().parent.name}"
    (record.folder / "report.md").write_text(needs_markdown(metrics, title), encoding="utf-8")
    print_needs(metrics)
    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
