"""Let every tool answer every example once, so that planner rollouts cost only the planner's own tokens.

Method: the top-50 of retrieve, rank and reason for half B's routing targets, validation and test, and for half A's
    routing targets, which only place margins among their tenths. Costs are FLOPs (see recllm/tools/cost.py).
Run: python data_prep/tool_cache.py --dataset outputs/quickstart/dataset --sasrec outputs/quickstart/sasrec
    --din outputs/quickstart/din --reasoner outputs/quickstart/reasoner --output_dir outputs/quickstart/tool_cache
Makes: cache.parquet, metrics.json with each tool's NDCG@10 on routing and validation and its mean cost.
"""

from dataclasses import dataclass, field
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    sasrec: str = field(metadata={"help": "Folder of the retriever."})
    reasoner: str = field(metadata={"help": "Folder of the reasoner."})
    output_dir: str = field(metadata={"help": "Folder for the cache."})
    din: str | None = field(default=None, metadata={"help": "Folder of the ranker."})
    letter_ranker: str | None = field(
        default=None, metadata={"help": "In its place, a language model that re-orders the first ten."}
    )
    letter_score: Literal["letters", "rotations", "sid"] = field(
        default="sid", metadata={"help": "How it does: by letters, all rotations of them, or the items' own sids."}
    )
    think_tokens: int = field(default=24, metadata={"help": "Budget of the reasoner's thought, in tokens."})


def main(args: Arguments) -> None:
    from recllm.provenance import RunRecord
    from recllm.tools.build import build_cache, load_tools

    folders = {name: getattr(args, name) for name in ("dataset", "sasrec", "din", "letter_ranker", "reasoner")}
    inputs = {name: folder for name, folder in folders.items() if folder}
    record = RunRecord.start(args.output_dir, "tool_cache", args, inputs=inputs)
    if record.complete:
        return

    tools = load_tools(**folders, think_tokens=args.think_tokens, letter_score=args.letter_score)

    metrics = build_cache(args.dataset, tools, args.output_dir)

    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
