"""Evaluate a finished planner folder beside every other router.

Method: greedy episodes on the targets of one role, over the whole catalogue, with bootstrap 95% intervals; the
    thresholds of two routers are chosen on validation (TwiSTAR, arXiv 2605.11553, routing analysis).
Run: python recipes/evaluate.py --model outputs/quickstart/grpo_planner --dataset outputs/quickstart/dataset
    --sid_table outputs/quickstart/sid_table --tool_cache outputs/quickstart/tool_cache
    --output_dir outputs/quickstart/evaluation
Quick: about 20 seconds on 2 cores for the quickstart's 943 users.
Makes: metrics.json, frontier.png and the tables on the terminal: every router, who was sent where, and, where asked
    for, milliseconds at batch 1 and 16.
Expect: the numbers that the planner's own metrics.json holds, digit for digit.
"""

from dataclasses import dataclass, field
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Folder of the planner."})
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    sid_table: str = field(metadata={"help": "Folder of the SID table."})
    tool_cache: str = field(metadata={"help": "Folder of the cached tool answers."})
    output_dir: str = field(metadata={"help": "Folder for the report."})
    role: Literal["test", "validation", "routing"] = field(default="test", metadata={"help": "Whose targets."})
    cost_weight: float = field(default=0.15, metadata={"help": "Price of the slow tool for the threshold routers."})
    latency_requests: int = field(
        default=0, metadata={"help": "Time so many live requests (and a fifth as many batches of 16) as well; 0: none."}
    )


def main(args: Arguments) -> None:
    from recllm.evaluation.planner import evaluate_planner, load_planner, planner_latency
    from recllm.evaluation.report import plot_frontier, print_routers
    from recllm.provenance import RunRecord

    inputs = {name: getattr(args, name) for name in ("model", "dataset", "sid_table", "tool_cache")}
    record = RunRecord.start(args.output_dir, "evaluate", args, inputs=inputs)
    if record.complete:
        print_routers(record.metrics(), args.role)
        return

    model, tokenizer = load_planner(args.model, args.sid_table)

    metrics = evaluate_planner(model, tokenizer, inputs, args.cost_weight, args.role)
    if args.latency_requests:
        metrics |= planner_latency(model, tokenizer, inputs, args.latency_requests)

    plot_frontier(metrics, record.folder / "frontier.png")
    print_routers(metrics, args.role)
    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
