"""KuaiRec -> dataset/.

Method: a view with a watch ratio above `min_watch_ratio` (1: watched to the end and on) is one positive event. Repeats,
    then k-core, then ids; equal timestamps keep input order.
Run: python data_prep/kuairec.py --data DIR --output_dir outputs/kuairec/dataset
    (or RECLLM_DATA=DIR; the files lie in DIR/kuairec or its data/, or in DIR itself)
Makes: catalog.parquet, interactions.parquet, quarantine.parquet, dataset.json.
Expect: not run here on the published files. GLASS reports 3,790 users and 10,728 items of it, mean length 884.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from recllm.data.amazon import locate
from recllm.data.kuairec import LICENCE, SOURCE, read_kuairec
from recllm.data.prepare import prepare, write_dataset
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder that becomes the data set."})
    data: str | None = field(default=None, metadata={"help": "Folder of the files; RECLLM_DATA where not given."})
    matrix: Literal["big", "small"] = field(default="big", metadata={"help": "Which of the two matrices."})
    min_watch_ratio: float = field(default=1.0, metadata={"help": "A view above this ratio is an event."})
    split: Literal["roles", "leave_one_out"] = field(default="roles", metadata={"help": "Split recorded in the set."})
    routing_items: int = field(default=1, metadata={"help": "Routing targets per user before validation (roles)."})
    split_seed: int = field(default=0, metadata={"help": "Decides which user falls in which half (roles)."})
    k_core: int = field(default=5, metadata={"help": "Least events per user and item; 0 keeps all."})
    dedup: Literal["first", "last", "none"] = field(
        default="first", metadata={"help": "Which event of a repeated (user, item) pair stays; none keeps all."}
    )
    keep_unseen: bool = field(default=False, metadata={"help": "Keep items that have no event."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Stop above this share of malformed rows."})


def main(args: Arguments) -> None:
    folder = locate("kuairec", args.data)
    record = RunRecord.start(args.output_dir, recipe="kuairec", config=args, inputs={"data": folder})
    if record.complete:
        return

    raw = read_kuairec(folder, args.matrix, args.min_watch_ratio)

    prepared = prepare(
        raw,
        k=args.k_core,
        dedup=args.dedup,
        keep_unseen=args.keep_unseen,
        max_bad_fraction=args.max_bad_fraction,
    )

    description = {"name": f"kuairec-{args.matrix}", "source": SOURCE, "licence": LICENCE}
    description["min_watch_ratio"] = args.min_watch_ratio
    counts = write_dataset(args.output_dir, prepared, raw, args, description)

    record.finish({**counts, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
