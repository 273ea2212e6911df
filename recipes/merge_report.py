"""The accuracy-token curve of a merging sweep, or of somebody else's results, with everything that may be said of it.

Method: The Thinking Spectrum (merges of a direct and a thinking parent between speed and depth). Pareto set and
    hypervolume over mean tokens and accuracy; improvements over a parent by a paired bootstrap over questions,
    corrected by Holm for all comparisons; points for a budget chosen on one half of the questions and read on the
    other.
Run: python recipes/merge_report.py --sweep outputs/thinking/sweep --output_dir outputs/thinking/report
    python recipes/merge_report.py --table theirs.csv --accuracy_scale percent --output_dir outputs/theirs
Quick: seconds; with --divergence true about a second for each hundred million parameters and parent.
Makes: report.md, curve.png and curve.svg, results.csv, metrics.json.
Expect: see docs/EXPERIMENTS.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder for the report."})
    sweep: str | None = field(default=None, metadata={"help": "Folder of a sweep; it need not be finished."})
    table: str | None = field(
        default=None, metadata={"help": "CSV with method, strength, accuracy, tokens, n, and think_share if known."}
    )
    accuracy_scale: Literal["auto", "fraction", "percent"] = field(
        default="auto", metadata={"help": "What the table's accuracy is in."}
    )
    budgets: list[float] = field(
        default_factory=list,
        metadata={"help": "Mean tokens to recommend points for; by default three along the front."},
    )
    margin: float = field(default=0.0, metadata={"help": "Accuracy that a point may lose and still be no worse."})
    divergence: bool = field(default=True, metadata={"help": "Compare the weights of the sweep's parents."})
    seed: int = field(default=0, metadata={"help": "Seed of the halves and of the resamples."})


def main(args: Arguments) -> None:
    from recllm.merging.analysis import analyse, flat_metrics
    from recllm.merging.divergence import parents_apart
    from recllm.merging.report import print_report, write_report
    from recllm.merging.results_csv import read_results
    from recllm.provenance import RunRecord

    inputs = {name: value for name in ("sweep", "table") if (value := getattr(args, name))}
    record = RunRecord.start(args.output_dir, "merge_report", args, inputs=inputs)
    if record.complete:
        print_report(record.folder)
        return

    results = read_results(args.sweep, args.table, args.accuracy_scale)
    apart = parents_apart(args.sweep) if args.divergence else {}
    found = analyse(results, args.budgets, args.margin, args.seed, apart)

    write_report(found, record.folder, f"Merges of {Path(args.output_dir).resolve().parent.name}")
    print_report(record.folder)
    record.finish(flat_metrics(found))


if __name__ == "__main__":
    main(*parse(Arguments))
