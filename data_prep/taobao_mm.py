"""TAOBAO-MM -> dataset/, sampled as for GLASS.

Method: clicks only; target items with at least `min_item_clicks` clicks in train that test clicks, too, `items` of them
    drawn; users who clicked one, with at least `min_history` items among the last 50. A sequence is the history and
    then the clicks; the last click is the target, of validation for one half of the users and of test for the other
    (`recllm.data.taobao_mm` tells what differs). There is no time but order.
Run: python data_prep/taobao_mm.py --data DIR --output_dir outputs/taobao-mm/dataset
    (or RECLLM_DATA=DIR; the parquet files lie in DIR/taobao-mm or its raw/, or in DIR itself)
Makes: catalog.parquet, interactions.parquet, quarantine.parquet, dataset.json, and item_embeddings.safetensors where
    the SCL vectors are there.
Expect: not run here on the published files (139 GB). GLASS reports 189,423 users, 10,000 items, mean length 987.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from recllm.data.amazon import locate
from recllm.data.prepare import prepare, write_dataset
from recllm.data.taobao_mm import LICENCE, SOURCE, read_taobao_mm, read_vectors
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder that becomes the data set."})
    data: str | None = field(default=None, metadata={"help": "Folder of the files; RECLLM_DATA where not given."})
    items: int = field(default=10_000, metadata={"help": "Target items drawn."})
    min_item_clicks: int = field(default=5, metadata={"help": "Least clicks of a target item in the train file."})
    min_history: int = field(default=40, metadata={"help": "Least items among the last 50 of a history."})
    users: int | None = field(default=None, metadata={"help": "Users drawn; all where not given."})
    sampled_history: bool = field(default=False, metadata={"help": "Keep only the drawn items in histories, too."})
    seed: int = field(default=42, metadata={"help": "Seed of the draws."})
    split: Literal["roles", "leave_one_out", "last_event"] = field(
        default="last_event", metadata={"help": "Split recorded in the set."}
    )
    routing_items: int = field(default=1, metadata={"help": "Routing targets per user before validation (roles)."})
    split_seed: int = field(default=0, metadata={"help": "Decides which user falls in which half (roles)."})
    k_core: int = field(default=0, metadata={"help": "Least events per user and item; 0 keeps all."})
    dedup: Literal["first", "last", "none"] = field(
        default="none", metadata={"help": "Which event of a repeated (user, item) pair stays; none keeps all."}
    )
    keep_unseen: bool = field(default=False, metadata={"help": "Keep items that have no event."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Stop above this share of malformed rows."})


def main(args: Arguments) -> None:
    from recllm.sid.embeddings import save_embeddings

    folder = locate("taobao-mm", args.data)
    record = RunRecord.start(args.output_dir, recipe="taobao_mm", config=args, inputs={"data": folder})
    if record.complete:
        return

    options = ("items", "min_item_clicks", "min_history", "users", "sampled_history", "seed")
    sampling = {name: getattr(args, name) for name in options}
    raw = read_taobao_mm(folder, **sampling)

    prepared = prepare(
        raw, k=args.k_core, dedup=args.dedup, keep_unseen=args.keep_unseen, max_bad_fraction=args.max_bad_fraction
    )

    description = {"name": "taobao-mm", "source": SOURCE, "licence": LICENCE, "sampling": sampling}
    counts = write_dataset(args.output_dir, prepared, raw, args, description)
    vectors_ND = read_vectors(folder, prepared.catalog["source_id"].to_list())
    if vectors_ND is not None:
        save_embeddings(args.output_dir, vectors_ND)

    record.finish({**counts, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
