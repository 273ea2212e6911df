"""Teach a language model to write semantic ids: add the SID table's tokens to its vocabulary.

Method: one regular token a code (a special one would vanish under skip_special_tokens). Each new embedding row starts
    as the mean of the title tokens of the items that carry the code (`mean`), as the mean vector of these items,
    mapped into the model's space by a ridge regression from item vectors to titles and scaled to a base row's spread
    (`centroid`), or as noise around the mean row with that spread (`noise`, for ablations). Base rows keep
    every bit, tied weights stay tied, the rows are padded to a multiple of 64. The table travels in sid_table/ and its
    hash in config.json.
Run:   python recipes/extend_vocab.py --base_model Qwen/Qwen3-0.6B --sid_table DIR --dataset DIR --output_dir OUT
Quick: python recipes/extend_vocab.py --config recipes/configs/extend_vocab/quickstart.yaml
Makes: model, tokenizer, generation_config.json, sid_table/, metrics.json (sid_tokens, rows_before, rows_after).
Expect: seconds for the quickstart model (128 sid tokens; rows 1600 -> 1728). What the mean rows are worth is measured
    where the model is trained.
"""

from dataclasses import dataclass, field

from recllm.data.catalog import Catalog
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "folder for the extended model"})
    base_model: str = field(metadata={"help": "model folder, name of an asset, or Hub id"})
    sid_table: str = field(metadata={"help": "SID table folder (train_sid_tokenizer.py)"})
    dataset: str = field(metadata={"help": "data set folder the table was made from (titles for the mean rows)"})
    init: str = field(default="mean", metadata={"help": "mean, centroid or noise"})
    chat_template: str = field(default="keep", metadata={"help": "keep, or lean or qwen3 for tool calls"})
    seed: int = field(default=0, metadata={"help": "seed of the noise"})


def main(args: Arguments) -> None:
    from recllm.sid.vocabulary import extend, load_base, locate_model, model_assets, save_extended
    from recllm.training.chat import set_chat_template

    inputs = {"base_model": locate_model(args.base_model), "sid_table": args.sid_table, "dataset": args.dataset}
    record = RunRecord.start(args.output_dir, recipe="extend_vocab", config=args, inputs=inputs)
    if record.complete:
        return

    from recllm.sid.embeddings import load_embeddings
    from recllm.sid.table import SidTable

    catalog = Catalog.load(args.dataset)
    table = SidTable.load(args.sid_table)
    vectors_ND = load_embeddings(args.sid_table) if args.init == "centroid" else None

    model, tokenizer = load_base(args.base_model)
    extension = extend(model, tokenizer, table, catalog.titles, args.init, args.seed, vectors_ND=vectors_ND)

    if args.chat_template != "keep":
        set_chat_template(tokenizer, args.chat_template)

    save_extended(args.output_dir, model, tokenizer, table)
    record.extra["sid_table_hash"] = table.hash
    for asset in model_assets(args.base_model):
        record.add_asset(asset)
    record.finish(extension.metrics())


if __name__ == "__main__":
    main(*parse(Arguments))
