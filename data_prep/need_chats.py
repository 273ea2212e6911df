"""Build the chat data set of the needs model's warm-up: context, then need, category and services.

Method: methods 3.3, SFT on triples that patterns give. A visit of the fitting fold that belongs to a pattern is asked
    about; the answer is the pattern's derived need, the visit's category, and ten services: the one visited, the user's
    own earlier ones of the category, popular ones of it near the user, popular ones of any. An answer of the stage
    `need` or `category` is the beginning of one of the stage `service`.
Run: python data_prep/need_chats.py --dataset outputs/needs/matdata --patterns outputs/needs/matdata_patterns
    --sid_table outputs/needs/sid_table --output_dir outputs/needs/chats
    `--stages need`, and `--stages category service`, make those of the two-model pipeline, whose second model is told
    the need that the first one says. `--all_events true` leaves nothing out (the ablation without clustering).
Quick: python data_prep/need_chats.py --config recipes/configs/need_chats/quickstart.yaml
Makes: a chat data set in TRL's conversational format with the columns messages, stage, row (of visits.parquet), need,
    target; needs.json, the vocabulary of the model; metrics.json with the rows of each stage and the events left out.
Expect: see the header of each config.
"""

from collections import Counter
from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set, with visits.parquet."})
    patterns: str = field(metadata={"help": "Folder of its patterns (data_prep/need_patterns.py)."})
    sid_table: str = field(metadata={"help": "Folder of the SID table that services are written with."})
    output_dir: str = field(metadata={"help": "Folder for the chat data set."})
    stages: list[str] = field(
        default_factory=lambda: ["need", "category", "service"], metadata={"help": "Which stages are asked for."}
    )
    early_share: float = field(default=0.2, metadata={"help": "Share of the events asked for an earlier stage, too."})
    max_events: int | None = field(default=None, metadata={"help": "Keep so many events, chosen by the seed; all."})
    all_events: bool = field(default=False, metadata={"help": "Also events that the patterns drop."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice and the shuffle."})


def main(args: Arguments) -> None:
    from recllm.data.catalog import Catalog
    from recllm.data.checkins import Visits
    from recllm.needs.asking import Asking, Others, references
    from recllm.needs.chats import chat_rows
    from recllm.needs.patterns import Patterns
    from recllm.needs.schema import ServiceNames
    from recllm.needs.vocabulary import NeedsVocabulary
    from recllm.provenance import RunRecord
    from recllm.sid.table import SidTable

    inputs = {"dataset": args.dataset, "patterns": args.patterns, "sid_table": args.sid_table}
    record = RunRecord.start(args.output_dir, "need_chats", args, inputs=inputs)
    if record.complete:
        return

    visits, catalog = Visits.load(args.dataset), Catalog.load(args.dataset)
    patterns = Patterns.load(args.patterns, visits)
    vocabulary = NeedsVocabulary.of(visits, catalog, patterns)
    places = vocabulary.places(catalog)

    events = references(visits, patterns, places, "fit", args.all_events)
    asking = Asking(visits, places, ServiceNames(SidTable.load(args.sid_table)))
    others = Others.of(visits, places, catalog.frame)
    rows = chat_rows(events, asking, others, args.stages, args.early_share, args.max_events, args.seed)

    rows.save_to_disk(args.output_dir)
    vocabulary.save(args.output_dir)
    counts = {f"rows/{stage}": count for stage, count in sorted(Counter(rows["stage"]).items())}
    left_out = len(visits.rows("fit")) - events.height
    record.finish({"rows": len(rows), **counts, "events": events.height, "events_left_out": left_out})


if __name__ == "__main__":
    main(*parse(Arguments))
