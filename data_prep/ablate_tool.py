"""Take one tool out of a tool cache, for an ablation: a call of it answers what retrieve answers, at its own cost.

Method: TwiSTAR (arXiv 2605.11553) ablates the ranker and the slow path. Everything downstream runs as it is: where
    retrieve costs less no oracle label names the tool, so a planner learns to leave it alone.
Run: python data_prep/ablate_tool.py --tool_cache outputs/quickstart/tool_cache --tool rank
    --output_dir outputs/quickstart/tool_cache_without_rank
Quick: seconds.
Makes: cache.parquet as data_prep/tool_cache.py, metrics.json with the rows that were replaced.
"""

from dataclasses import dataclass, field
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    tool_cache: str = field(metadata={"help": "Folder of the whole cache."})
    tool: Literal["rank", "reason"] = field(metadata={"help": "The tool that is taken out."})
    output_dir: str = field(metadata={"help": "Folder for the cache without it."})


def main(args: Arguments) -> None:
    from recllm.provenance import RunRecord
    from recllm.tools.cache import without_tool

    record = RunRecord.start(args.output_dir, "ablate_tool", args, inputs={"tool_cache": args.tool_cache})
    if record.complete:
        return

    rows = without_tool(args.tool_cache, args.tool, args.output_dir)

    record.finish({"replaced_rows": rows})


if __name__ == "__main__":
    main(*parse(Arguments))
