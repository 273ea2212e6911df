"""A local-life log as CSV -> dataset/ with visits.parquet: PIGEON's layout, or any other through a map of its columns.

Method: every row is an event, repeats included. The last `targets` visits of each user that may be asked for are test,
    as many before validation. Needs that the file states are kept in `need`.
Run: python data_prep/local_life.py --data FILE --output_dir outputs/local_life/dataset
    (userid, hour, loc, order, living_need; other columns by --columns user=... category=...)
Makes: catalog.parquet, interactions.parquet, visits.parquet, quarantine.parquet, dataset.json.
Expect: five rows of PIGEON are published and no full file: not run here on one.
"""

import time
from dataclasses import dataclass, field

from recllm.data.checkins import last_folds
from recllm.data.local_life import PIGEON, TIME_FORMAT, column_map, read_local_life
from recllm.data.prepare import prepare, write_dataset
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder that becomes the data set."})
    data: str = field(metadata={"help": "The CSV file; comma, semicolon or tab, as its header line has it."})
    name: str = field(default="local-life", metadata={"help": "Name of the set."})
    licence: str = field(default="not stated", metadata={"help": "Licence of the data, recorded in the set."})
    columns: list[str] = field(
        default_factory=lambda: list(PIGEON), metadata={"help": "FIELD=COLUMN for each field that the file has."}
    )
    time_format: str = field(default=TIME_FORMAT, metadata={"help": "How the file writes local date and time."})
    context: list[str] = field(
        default_factory=list, metadata={"help": "Categories or roots that are never targets, as homes and offices."}
    )
    targets: int = field(default=1, metadata={"help": "Last visits of a user that are test targets."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Stop above this share of malformed rows."})


def main(args: Arguments) -> None:
    columns = column_map(args.columns)
    record = RunRecord.start(args.output_dir, recipe="local_life", config=args, inputs={"data": args.data})
    if record.complete:
        return

    raw = read_local_life(args.data, columns, args.context, args.time_format)

    prepared = prepare(raw, k=0, dedup="none", max_bad_fraction=args.max_bad_fraction)
    visits = prepared.interactions.with_columns(last_folds(prepared.interactions, args.targets))

    description = {"name": args.name, "source": "a log of local-life services", "licence": args.licence}
    description |= {"columns": columns, "folds": {"by": "last", "targets": args.targets}}
    counts = write_dataset(args.output_dir, prepared, raw, args, description, visits)

    record.finish({**counts, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
