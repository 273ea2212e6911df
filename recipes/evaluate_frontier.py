"""The accuracy-cost frontier of planners that were trained with different cost weights, beside every other router.

Method: TwiSTAR (arXiv 2605.11553, routing analysis). The planner is the one with the best NDCG@10 on validation whose
    tools cost at most `cost_ceiling` of always-reason's, the cheapest where none does; thresholds on the retriever's
    margin and entropy are fitted on validation, a learned router on the routing fold. All are graded on test targets
    over the whole catalogue.
Run: python recipes/evaluate_frontier.py
    --planners outputs/planner_frontier/planner_0 outputs/planner_frontier/planner_3
    --dataset outputs/planner_frontier/dataset --sid_table outputs/planner_frontier/sid_table
    --tool_cache outputs/planner_frontier/tool_cache --output_dir outputs/planner_frontier/report
Quick: about 20 ms a planner and user on 2 cores.
Makes: report.md with every router, the aims, and what limits the planner; frontier.png and frontier.svg; metrics.json;
    ranks.parquet for `recllm compare` (roles test, always_retrieve, always_rank and always_reason).
Expect: see docs/EXPERIMENTS.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

from recllm.training.arguments import parse


@dataclass
class Arguments:
    planners: list[str] = field(metadata={"help": "Folders of planners that differ in their cost weight alone."})
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    sid_table: str = field(metadata={"help": "Folder of the SID table."})
    tool_cache: str = field(metadata={"help": "Folder of the cached tool answers."})
    output_dir: str = field(metadata={"help": "Folder for the report."})
    cost_ceiling: float = field(default=0.5, metadata={"help": "Most that a planner's tools may cost, of reason."})
    latency_requests: int = field(
        default=100, metadata={"help": "Time so many live requests (and a fifth as many batches of 16); 0: none."}
    )


def main(args: Arguments) -> None:
    from recllm.evaluation.frontier import check_tools, evaluate_frontier, frontier_latency
    from recllm.evaluation.frontier_report import markdown, plot_planners
    from recllm.evaluation.report import print_routers
    from recllm.metrics.compare import save_ranks
    from recllm.provenance import RunRecord

    inputs = {name: getattr(args, name) for name in ("planners", "dataset", "sid_table", "tool_cache")}
    record = RunRecord.start(args.output_dir, "evaluate_frontier", args, inputs=inputs)
    if record.complete:
        print_routers(record.metrics())
        return

    if args.latency_requests:
        check_tools(args.planners[0], inputs)
    metrics, chosen, ranks = evaluate_frontier(args.planners, inputs, args.cost_ceiling)
    if args.latency_requests:
        metrics |= frontier_latency(chosen, inputs, args.latency_requests, metrics)

    save_ranks(record.folder, ranks)
    plot_planners(metrics, record.folder)
    title = f"Frontier of {Path(args.output_dir).resolve().parent.name}"
    (record.folder / "report.md").write_text(markdown(metrics, title), encoding="utf-8")
    print_routers(metrics)
    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
