"""Build the reasoner's chat data set: history, thought, next item; and explanations of pairs.

Method: TwiSTAR (arXiv 2605.11553, stages 3 and 4), from fitting-fold items only. `category`: the thought names the
    categories of the next three items, where the paper names those of the target alone. `direct`: the same rows without
    a thought, for a recommender that answers the reasoner's question at once. `next`, `pair`: a teacher
    explains a user's next item, or two items that Swing links, from structured evidence; what the evidence does not
    bear out is dropped (recllm/rationales/filter.py). The teacher is a template without a language model by default.
Run: python data_prep/rationales.py --dataset outputs/quickstart/dataset --sid_table outputs/quickstart/sid_table
    --output_dir outputs/quickstart/rationales
Makes: a chat data set in TRL's conversational format with the columns messages, kind, user, position; ledger.jsonl, the
    teacher's answers, from which a killed run goes on; README.md, the card; metrics.json, kept and dropped by reason.
"""

from dataclasses import dataclass, field
from pathlib import Path

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    sid_table: str = field(metadata={"help": "Folder of the SID table."})
    output_dir: str = field(metadata={"help": "Folder for the chat data set."})
    kinds: list[str] = field(default_factory=lambda: ["category"], metadata={"help": "category, direct, next, pair."})
    teacher: str = field(default="template", metadata={"help": "template, local:FOLDER_OR_HUB_ID or endpoint:MODEL."})
    base_url: str | None = field(default=None, metadata={"help": "Of an endpoint; OPENAI_BASE_URL where not given."})
    temperature: float = field(default=0.0, metadata={"help": "Of a teacher that is a language model; 0 is greedy."})
    max_tokens: int = field(default=160, metadata={"help": "Longest answer of such a teacher."})
    prompt_usd: float | None = field(default=None, metadata={"help": "Price of a million prompt tokens."})
    completion_usd: float | None = field(default=None, metadata={"help": "Price of a million completion tokens."})
    stride: int = field(default=10, metadata={"help": "Events between two rows of a user."})
    passes: int = field(default=1, metadata={"help": "Times the folds are cut, each at other offsets."})
    per_item: int = field(default=5, metadata={"help": "Neighbours of an item that become pairs."})
    limit: int | None = field(default=None, metadata={"help": "At most so many questions of each kind; all."})
    seed: int = field(default=0, metadata={"help": "Seed of the offsets, the choice and the shuffle."})


def main(args: Arguments) -> None:
    from datasets import Dataset

    from recllm.data.catalog import Catalog
    from recllm.data.splits import load_split
    from recllm.provenance import RunRecord
    from recllm.rationales.card import write_card
    from recllm.rationales.generate import Plan, make_rows
    from recllm.rationales.questions import TEMPLATES
    from recllm.sid.table import SidTable
    from recllm.teachers.build import load_teacher
    from recllm.teachers.ledger import spending
    from recllm.teachers.protocol import Sampling

    inputs = {"dataset": args.dataset, "sid_table": args.sid_table}
    record = RunRecord.start(args.output_dir, "rationales", args, inputs=inputs)
    if record.complete:
        return

    catalog, split = Catalog.load(args.dataset), load_split(args.dataset)
    table = SidTable.load(args.sid_table)
    texts = [table.text(item) for item in range(len(catalog))]

    sampling = Sampling(args.temperature, max_tokens=args.max_tokens, seed=args.seed)
    options = {"base_url": args.base_url} if args.base_url else {}
    teacher = load_teacher(args.teacher, sampling, TEMPLATES, **options)
    plan = Plan(args.kinds, args.stride, args.passes, args.seed, args.per_item, args.limit)
    ledger = Path(args.output_dir) / "ledger.jsonl"
    columns, metrics = make_rows(split, catalog, texts, plan, teacher, ledger)
    rows = Dataset.from_dict(columns).shuffle(seed=args.seed)

    rows.save_to_disk(args.output_dir)
    if ledger.exists():
        metrics |= spending(ledger, teacher, args.prompt_usd, args.completion_usd)
    metrics = {"rows": len(rows), "users": len(set(rows["user"]) - {-1}), **metrics}
    write_card(args.output_dir, record, teacher.name, metrics)
    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
