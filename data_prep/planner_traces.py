"""Build the planner's two data sets from cached tool answers: warm-up traces for SFT and prompts for GRPO.

Method: oracle plans on half B's routing targets (TwiSTAR, arXiv 2605.11553, stage 6). Differs from the paper: the
    label is the cheapest tool that reaches the best cached NDCG@10, and the prompt shows what retrieve
    found; `--labels published` is the paper's rule. At least half of the rows are decisive: their tools
    differ in NDCG.
Run: python data_prep/planner_traces.py --dataset outputs/quickstart/dataset --sid_table outputs/quickstart/sid_table
    --tool_cache outputs/quickstart/tool_cache --output_dir outputs/quickstart/planner_traces
Makes: traces/ (messages, row, tool) and prompts/ (prompt, row, tool), chat data sets; metrics.json with label shares.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    sid_table: str = field(metadata={"help": "Folder of the SID table."})
    tool_cache: str = field(metadata={"help": "Folder of the cached tool answers."})
    output_dir: str = field(metadata={"help": "Folder for the two chat data sets."})
    labels: str = field(default="oracle", metadata={"help": "oracle, or published for the paper's rule."})
    decisive_share: float = field(default=0.5, metadata={"help": "Least share of decisive rows, 0 to 1."})
    up_routing: float = field(
        default=0.0, metadata={"help": "Share of retrieve labels given to rank or reason; the paper has 0.2."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice and order of rows."})


def main(args: Arguments) -> None:
    from recllm.planner.bench import Bench
    from recllm.planner.dataset import label_metrics, label_rows, prompt_rows, trace_rows
    from recllm.provenance import RunRecord

    inputs = {"dataset": args.dataset, "sid_table": args.sid_table, "tool_cache": args.tool_cache}
    record = RunRecord.start(args.output_dir, "planner_traces", args, inputs=inputs)
    if record.complete:
        return

    bench = Bench.load(args.dataset, args.sid_table, args.tool_cache, role="routing")
    labels = label_rows(bench, args.labels, args.decisive_share, args.seed, args.up_routing)

    trace_rows(bench, labels).save_to_disk(f"{args.output_dir}/traces")
    prompt_rows(bench, labels).save_to_disk(f"{args.output_dir}/prompts")

    record.finish(label_metrics(bench, labels))


if __name__ == "__main__":
    main(*parse(Arguments))
