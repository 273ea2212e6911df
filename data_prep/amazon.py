"""Amazon reviews (2014, 2018, 2023, or TSV folders made from them) -> dataset/.

Method: every review counts as one positive implicit event. Repeats, then k-core, then ids; equal timestamps keep
    input order (Amazon stamps days, so ties are common and the rule changes scores).
Run: python data_prep/amazon.py --data DIR --name amazon2014-beauty --output_dir outputs/beauty2014/dataset
    (or RECLLM_DATA=DIR; the files lie in DIR/NAME, or in DIR itself)
Quick: python data_prep/amazon.py --config recipes/configs/amazon/scientific2018.yaml (1 s on 2 cores)
Makes: catalog.parquet, interactions.parquet, quarantine.parquet, dataset.json.
Expect: amazon2014-beauty as published: 22,328 users, 12,101 items (21 never seen), 198,185 events, 1.3 s.
    amazon2018-scientific as published: 8,317 users, 4,344 items, 58,492 events, 1 s.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from recllm.data.amazon import LICENCE, SOURCE, locate, read_amazon
from recllm.data.prepare import prepare, write_dataset
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder that becomes the data set."})
    name: str = field(metadata={"help": "Name of the set, and of its folder under --data or RECLLM_DATA."})
    data: str | None = field(default=None, metadata={"help": "Folder of the files; RECLLM_DATA where not given."})
    format: Literal["auto", "2014", "2018", "2023", "tsv", "sequences"] = field(
        default="auto", metadata={"help": "Layout of the files; auto tells it by their names."}
    )
    split: Literal["roles", "leave_one_out"] = field(default="roles", metadata={"help": "Split recorded in the set."})
    routing_items: int = field(default=1, metadata={"help": "Routing targets per user before validation (roles)."})
    role_share: float = field(default=1.0, metadata={"help": "Share of the users with targets (roles); 0 to 1."})
    split_seed: int = field(default=0, metadata={"help": "Decides which user falls in which half (roles)."})
    k_core: int = field(default=5, metadata={"help": "Least events per user and item; 0 keeps all."})
    dedup: Literal["first", "last", "none"] = field(
        default="first", metadata={"help": "Which event of a repeated (user, item) pair stays; none keeps all."}
    )
    sample_users: int | None = field(default=None, metadata={"help": "Users drawn before the k-core; None keeps all."})
    sample_seed: int = field(default=0, metadata={"help": "Decides which users are drawn."})
    keep_unseen: bool = field(default=False, metadata={"help": "Keep items that have no event."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Stop above this share of malformed rows."})


def main(args: Arguments) -> None:
    folder = locate(args.name, args.data)
    record = RunRecord.start(args.output_dir, recipe="amazon", config=args, inputs={"data": folder})
    if record.complete:
        return

    raw = read_amazon(folder, args.format)

    prepared = prepare(
        raw,
        k=args.k_core,
        dedup=args.dedup,
        keep_unseen=args.keep_unseen,
        max_bad_fraction=args.max_bad_fraction,
        sampled_users=args.sample_users,
        sample_seed=args.sample_seed,
    )

    description = {"name": args.name, "source": SOURCE, "licence": LICENCE}
    counts = write_dataset(args.output_dir, prepared, raw, args, description)

    record.finish({**counts, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
