"""Build the reasoner's chat data set: history, thought about categories, next item.

Method: category rationales (TwiSTAR, arXiv 2605.11553, RA-SFT stage), from fitting-fold items only; the thought names
    the categories of the next three items, where the paper names those of the target alone.
Run: python data_prep/rationales.py --dataset outputs/quickstart/dataset --sid_table outputs/quickstart/sid_table
    --output_dir outputs/quickstart/rationales
Makes: a chat data set in TRL's conversational format with the columns messages, user, position.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    sid_table: str = field(metadata={"help": "Folder of the SID table."})
    output_dir: str = field(metadata={"help": "Folder for the chat data set."})
    stride: int = field(default=10, metadata={"help": "Events between two rows of a user."})
    passes: int = field(default=1, metadata={"help": "Times the folds are cut, each at other offsets."})
    seed: int = field(default=0, metadata={"help": "Seed of the offsets and the shuffle."})


def main(args: Arguments) -> None:
    from datasets import Dataset, concatenate_datasets

    from recllm.data.catalog import Catalog
    from recllm.data.splits import load_split
    from recllm.provenance import RunRecord
    from recllm.rationales.categories import rationale_rows
    from recllm.sid.table import SidTable

    inputs = {"dataset": args.dataset, "sid_table": args.sid_table}
    record = RunRecord.start(args.output_dir, "rationales", args, inputs=inputs)
    if record.complete:
        return

    catalog, split = Catalog.load(args.dataset), load_split(args.dataset)
    table = SidTable.load(args.sid_table)
    texts = [table.text(item) for item in range(len(catalog))]

    seeds = range(args.seed, args.seed + args.passes)
    passes = [Dataset.from_dict(rationale_rows(split, catalog, texts, args.stride, seed)) for seed in seeds]
    rows = concatenate_datasets(passes).shuffle(seed=args.seed)

    rows.save_to_disk(args.output_dir)
    record.finish({"rows": len(rows), "users": len(set(rows["user"]))})


if __name__ == "__main__":
    main(*parse(Arguments))
