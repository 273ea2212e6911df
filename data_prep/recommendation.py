"""Build chat data sets that align semantic ids with text and teach a language model to recommend.

Method: itemic alignment (OneRec-Think; TwiSTAR, arXiv 2605.11553, stage 1) and next-item rows (stage 2), from the
    fitting fold and the catalogue only. The mixture maps each task to a weight, which multiplies its rows.
Run: python data_prep/recommendation.py --dataset outputs/beauty2014/dataset --sid_table outputs/beauty2014/sid_table
    --output_dir outputs/beauty2014/recommendation --tasks '{"sequence_to_sid": 1, "titles_to_sid": 0.5}'
Makes: a chat data set in TRL's conversational format with the columns messages, task, user, position, item;
    metrics.json with the rows of each task and those left out for want of a title or categories.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set; its split says which events may be read."})
    sid_table: str = field(metadata={"help": "Folder of the SID table."})
    output_dir: str = field(metadata={"help": "Folder for the chat data set."})
    tasks: str = field(
        default="sequence_to_sid",
        metadata={"help": "A task, or a mapping of tasks to weights: 1 takes all rows once, 0.5 half of them."},
    )
    targets: str = field(
        default="all", metadata={"help": "all: a row for every event; last: rows of 21 items tile a user's events."}
    )
    stride: int = field(default=0, metadata={"help": "Events between two targets; 0 is 1 for all, 21 for last."})
    drop_items: float = field(default=0.0, metadata={"help": "Chance of a history item to be dropped in a copy."})
    copies: int = field(default=0, metadata={"help": "Further copies of sequence_to_sid rows, with dropped items."})
    seed: int = field(default=0, metadata={"help": "Seed of samples, dropped items and order."})


def main(args: Arguments) -> None:
    from recllm.data.catalog import Catalog
    from recllm.data.splits import load_split
    from recllm.data.tasks import RowOptions, parse_mixture
    from recllm.data.tasks_text import chat_rows
    from recllm.provenance import RunRecord
    from recllm.sid.table import SidTable

    inputs = {"dataset": args.dataset, "sid_table": args.sid_table}
    record = RunRecord.start(args.output_dir, "recommendation", args, inputs=inputs)
    if record.complete:
        return

    weights = parse_mixture(args.tasks)
    options = RowOptions(args.targets, args.stride, args.drop_items, args.copies, args.seed)
    catalog, fold = Catalog.load(args.dataset), load_split(args.dataset).fitting
    table = SidTable.load(args.sid_table)
    texts = [table.text(item) for item in range(len(table))]

    rows, counts = chat_rows(fold, catalog, texts, weights, options)

    rows.save_to_disk(args.output_dir)
    record.finish(counts)


if __name__ == "__main__":
    main(*parse(Arguments))
