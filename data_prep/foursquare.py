"""Foursquare check-ins in New York -> dataset/ with visits.parquet.

Method: every check-in is an event, repeats included. Homes, workplaces, campuses and transit are context and never
    targets (`recllm.data.foursquare` lists them). nyc: the last `targets` visits of each of 150 users that may be asked
    for are test, as many before validation. matdata: whole weeks by the calendar, since nobody can tell which sessions
    are one person's. Both are one source: no claim from the two together.
Run: python data_prep/foursquare.py --source nyc --data DIR --output_dir outputs/foursquare/nyc
    (or RECLLM_DATA=DIR; the files lie in DIR/foursquare_nyc, or in DIR itself)
Quick: python data_prep/foursquare.py --config recipes/configs/foursquare/matdata.yaml
Makes: catalog.parquet, interactions.parquet, visits.parquet, quarantine.parquet, dataset.json.
Expect: nyc: 150 users, 11,195 venues, 52,148 check-ins (21,019 of them context), 1,500 targets for validation and for
    test each, 6 s. matdata: 3,079 sessions, 15,224 venues, 66,962 check-ins (27,272 context), validation from
    2012-10-15 with 5,476 targets, test from 2012-12-10 with 5,253, no session cut, 5 s.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from recllm.assets import fetch, source_of
from recllm.data.amazon import locate
from recllm.data.checkins import calendar_folds, last_folds
from recllm.data.foursquare import LICENCE, MATDATA, NYC, SOURCE, read_matdata, read_nyc
from recllm.data.prepare import prepare, write_dataset
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder that becomes the data set."})
    source: Literal["matdata", "nyc"] = field(
        default="matdata", metadata={"help": "matdata: sessions without users, from a wheel; nyc: 150 users."}
    )
    data: str | None = field(
        default=None,
        metadata={"help": "Folder of the files (nyc: RECLLM_DATA where not given), or the wheel (matdata: fetched)."},
    )
    targets: int = field(default=10, metadata={"help": "Last visits of a user that are test targets (nyc)."})
    validation_share: float = field(default=0.15, metadata={"help": "Share of the sessions, by week (matdata)."})
    test_share: float = field(default=0.15, metadata={"help": "Share of the sessions, the last weeks (matdata)."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Stop above this share of malformed rows."})


def main(args: Arguments) -> None:
    nyc = args.source == "nyc"
    folder = locate(NYC, args.data) if nyc else args.data
    inputs = {"data": folder} if folder else {}
    record = RunRecord.start(args.output_dir, recipe="foursquare", config=args, inputs=inputs)
    if record.complete:
        return

    raw = read_nyc(folder) if nyc else read_matdata(folder or fetch(MATDATA))
    if not folder:
        record.add_asset(source_of(MATDATA))

    prepared = prepare(raw, k=0, dedup="none", max_bad_fraction=args.max_bad_fraction)
    events, shares = prepared.interactions, {"validation": args.validation_share, "test": args.test_share}
    fold = last_folds(events, args.targets) if nyc else calendar_folds(events, *shares.values())

    description = {"name": NYC if nyc else MATDATA, "source": SOURCE, "licence": LICENCE}
    description["folds"] = {"by": "last", "targets": args.targets} if nyc else {"by": "calendar", **shares}
    counts = write_dataset(args.output_dir, prepared, raw, args, description, events.with_columns(fold))

    record.finish({**counts, "wall_seconds": time.time() - record.started})


if __name__ == "__main__":
    main(*parse(Arguments))
