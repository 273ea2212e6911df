"""Fit a generative backbone: TIGER, or GLASS on long histories.

Method: TIGER (arXiv 2305.05065) reads the semantic ids of the history and writes that of the next item; GLASS (arXiv
    2602.05663) adds SID-Tier, hard search by the first code it wrote, gated fusion and semantic neighbours, each a
    switch. Loss: cross entropy over the codes. The beam runs over the catalogue's trie, so every answer is an item.
Run: python recipes/train_generative.py --config recipes/configs/train_generative/quickstart.yaml
    --dataset outputs/quickstart/dataset --sid_table outputs/quickstart/sid_table --output_dir outputs/quickstart/tiger
Quick: about 2 minutes on one core; --config recipes/configs/train_generative/smoke.yaml takes seconds.
Makes: model.safetensors and config.json (`TIGER.from_pretrained(folder)` or GLASS), sid_table/, metrics.json with
    Recall and NDCG at 1, 3, 5, 10, 20 and CRP of validation and test, run.json.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set."})
    sid_table: str = field(metadata={"help": "Folder of the SID table (and of its item vectors, for glass)."})
    output_dir: str = field(metadata={"help": "Folder for the fitted backbone."})
    backbone: Literal["tiger", "glass"] = field(default="tiger", metadata={"help": "tiger or glass."})
    users: int | None = field(default=None, metadata={"help": "Fit and grade so many users only, drawn by seed."})
    max_len: int = field(default=20, metadata={"help": "Items that the encoder reads; glass: its short part."})
    hidden_dim: int = field(default=128, metadata={"help": "Width."})
    num_blocks: int = field(default=4, metadata={"help": "Layers of the encoder, and of the decoder."})
    num_heads: int = field(default=6, metadata={"help": "Attention heads."})
    head_dim: int = field(default=64, metadata={"help": "Width of a head."})
    ffn_dim: int = field(default=1024, metadata={"help": "Hidden width of the feed-forward parts."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout probability."})
    user_tokens: int = field(default=0, metadata={"help": "Tokens that user ids are hashed to; 0 is none."})
    tier: bool = field(default=True, metadata={"help": "glass: SID-Tier's token in front of the encoder."})
    retrieval: bool = field(default=True, metadata={"help": "glass: hard search by the first code, and its fusion."})
    gate: Literal["code", "paper", "half"] = field(
        default="code", metadata={"help": "glass: the gate of its published code, of the paper, or a fixed half."}
    )
    retrieved: int = field(default=30, metadata={"help": "glass: items that hard search returns at most."})
    neighbours: int = field(default=3, metadata={"help": "glass: nearest first-level codes that fill up; 0 is off."})
    threshold: int = field(default=5, metadata={"help": "glass: fill up where fewer items than this are found."})
    targets_per_user: int = field(default=0, metadata={"help": "Targets drawn a user and epoch; 0 takes all."})
    recent: int = field(default=0, metadata={"help": "Targets come from a user's last so many events; 0 takes all."})
    exclude_seen: bool = field(default=True, metadata={"help": "Leave items of the history out of the ranking."})
    beams: int = field(
        default=20, metadata={"help": "Beams at the final grading (between epochs validation_k, at least 10)."}
    )
    validation_users: int | None = field(default=2000, metadata={"help": "Users looked at between epochs."})
    validation_k: int = field(default=10, metadata={"help": "Cut-off of the NDCG that decides the epoch."})
    report_test: bool = field(default=True, metadata={"help": "Grade the test targets, too, once after the fit."})
    epochs: int = field(default=20, metadata={"help": "Most epochs."})
    patience: int = field(default=5, metadata={"help": "Epochs without a better validation NDCG before the end."})
    batch_size: int = field(default=256, metadata={"help": "Targets a step."})
    lr: float = field(default=1e-3, metadata={"help": "AdamW learning rate."})
    weight_decay: float = field(default=1e-2, metadata={"help": "AdamW weight decay."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, users and batches."})


def main(args: Arguments) -> None:
    from recllm.backbones.generative import train_generative
    from recllm.backbones.resume import discard_checkpoint
    from recllm.provenance import RunRecord
    from recllm.sid.table import SidTable
    from recllm.sid.vocabulary import TABLE_FOLDER

    inputs = {"dataset": args.dataset, "sid_table": args.sid_table}
    record = RunRecord.start(args.output_dir, "train_generative", args, inputs=inputs)
    if record.complete:
        return

    folder = Path(args.output_dir)
    model, metrics = train_generative(args.dataset, args.sid_table, args)

    model.save_pretrained(folder)
    SidTable.load(args.sid_table).save(folder / TABLE_FOLDER)
    record.finish(metrics)
    discard_checkpoint(args.output_dir)


if __name__ == "__main__":
    main(*parse(Arguments))
