"""Visits -> patterns: which derived need leads to which category when, and which visits are typical enough to keep.

Method: HiAgentRec's behavioural clustering (methods: 3.3). HDBSCAN within each category (or mini-batch k-means), Ward's
    merging of clusters across categories, and a mixture of needs and accidents that starts there (recllm/needs/
    mixture.py); typicality with a cut where the fewest mistakes are expected; a teacher names the needs from their
    centroids, by default a template of rules. Everything is fitted on the fold "fit".
Run: python data_prep/need_patterns.py --dataset outputs/needs/matdata --output_dir outputs/needs/patterns
Quick: python data_prep/need_patterns.py --config recipes/configs/need_patterns/quickstart.yaml
Makes: patterns.parquet, events.parquet, patterns.json (recllm/needs/patterns.py); ledger.jsonl, the teacher's answers;
    metrics.json, with precision and recall of the filter and need_nmi, each beside the Bayes observer's, where the
    truth was planted.
Expect: quickstart (79,420 events, a fifth accidental), 24 s of CPU time: 14 needs, 84 patterns; the filter's precision
    is .869 and its recall .715 (Bayes .878 and .732), need_nmi .889 (Bayes .913). matdata, 14 s: 37 needs, 489
    patterns, .882 of the fitted targets kept. nyc, 15 s: 32 needs, 386 patterns, .802 kept.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of a data set with visits."})
    output_dir: str = field(metadata={"help": "Folder for the patterns."})
    method: Literal["hdbscan", "kmeans"] = field(
        default="hdbscan", metadata={"help": "Clustering within a category; kmeans for logs of millions."}
    )
    most_needs: int = field(default=20, metadata={"help": "Needs to start from; they are merged to what fits best."})
    classes: list[int] = field(
        default_factory=lambda: [1, 4, 8, 12, 16], metadata={"help": "Numbers of classes of users to choose from."}
    )
    steps: int = field(default=30, metadata={"help": "Steps of expectation and maximisation."})
    least_users: int = field(default=5, metadata={"help": "Distinct users behind a pattern."})
    least_support: int = field(default=10, metadata={"help": "Kept visits behind a pattern."})
    teacher: str = field(default="template", metadata={"help": "template, local:FOLDER_OR_HUB_ID or endpoint:MODEL."})
    base_url: str | None = field(default=None, metadata={"help": "Of an endpoint; OPENAI_BASE_URL where not given."})
    seed: int = field(default=0, metadata={"help": "Seed of k-means."})


def main(args: Arguments) -> None:
    from recllm.data.catalog import Catalog
    from recllm.data.checkins import Visits
    from recllm.needs.clusters import ClusterOptions
    from recllm.needs.find_patterns import PatternOptions, find_patterns
    from recllm.needs.naming import TEMPLATES
    from recllm.needs.pattern_scores import planted_scores
    from recllm.provenance import RunRecord
    from recllm.teachers.build import load_teacher
    from recllm.teachers.protocol import Sampling

    record = RunRecord.start(args.output_dir, "need_patterns", args, inputs={"dataset": args.dataset})
    if record.complete:
        return

    visits, catalog = Visits.load(args.dataset), Catalog.load(args.dataset)
    given = {"base_url": args.base_url} if args.base_url else {}
    teacher = load_teacher(args.teacher, Sampling(max_tokens=128, seed=args.seed), TEMPLATES, **given)

    sizes = {"least_users": args.least_users, "least_support": args.least_support}
    clusters = ClusterOptions(args.method, seed=args.seed)
    options = PatternOptions(
        clusters, most_needs=args.most_needs, classes=args.classes, steps=args.steps, seed=args.seed, **sizes
    )
    ledger = Path(args.output_dir) / "ledger.jsonl"
    patterns, counts = find_patterns(visits, catalog, options, teacher, ledger)
    patterns.save(args.output_dir, visits)

    scores = planted_scores(patterns, visits, args.dataset)
    record.finish({**counts, **scores, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
