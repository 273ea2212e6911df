"""Fit a sequential backbone or a ranker.

Method: SASRec (arXiv 1808.09781) with softmax cross entropy over the catalogue or over sampled negatives, and DIN
    (arXiv 1706.06978) over a retriever's list as in TwiSTAR (arXiv 2605.11553, stage 5). DIN differs from the paper:
    the loss is a softmax over the list and a missing target is not injected; both are switches.
Run: python recipes/train_backbone.py --config recipes/configs/train_backbone/quickstart.yaml
    --dataset outputs/quickstart/dataset --output_dir outputs/quickstart/sasrec
Quick: about 2 minutes on 2 cores; --config recipes/configs/train_backbone/smoke.yaml takes seconds.
Makes: model.safetensors and config.json (`SASRec.from_pretrained(folder)`), metrics.json, run.json.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder for the fitted backbone."})
    backbone: str = field(default="sasrec", metadata={"help": "sasrec or din."})
    retriever: str | None = field(default=None, metadata={"help": "din: folder of the backbone whose list is ranked."})
    max_len: int = field(default=50, metadata={"help": "Longest history looked at."})
    hidden_dim: int = field(default=128, metadata={"help": "Embedding width."})
    num_blocks: int = field(default=1, metadata={"help": "sasrec: attention blocks."})
    num_heads: int = field(default=1, metadata={"help": "sasrec: attention heads."})
    attention_hidden: int = field(default=36, metadata={"help": "din: width of the attention network."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout probability."})
    tie_embeddings: bool = field(default=True, metadata={"help": "sasrec: score with the input embeddings."})
    num_negatives: int = field(default=0, metadata={"help": "sasrec: sampled negatives; 0 is the full softmax."})
    candidates: int = field(default=50, metadata={"help": "din: length of the retriever's list."})
    listwise: bool = field(default=True, metadata={"help": "din: softmax over the list instead of BCE an item."})
    inject_target: bool = field(default=False, metadata={"help": "din: put a missing target in, as published."})
    exclude_seen: bool = field(default=True, metadata={"help": "Leave items of the history out of the ranking."})
    epochs: int = field(default=20, metadata={"help": "Most epochs."})
    patience: int = field(default=3, metadata={"help": "Epochs without a better validation NDCG@10 before the end."})
    batch_size: int = field(default=256, metadata={"help": "Windows (sasrec) or lists (din) a step."})
    lr: float = field(default=3e-4, metadata={"help": "AdamW learning rate."})
    weight_decay: float = field(default=1e-5, metadata={"help": "AdamW weight decay."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and batches."})


def main(args: Arguments) -> None:
    from recllm.backbones.train import train_backbone
    from recllm.provenance import RunRecord

    inputs = {"dataset": args.dataset} | ({"retriever": args.retriever} if args.retriever else {})
    record = RunRecord.start(args.output_dir, "train_backbone", args, inputs=inputs)
    if record.complete:
        return

    model, metrics = train_backbone(args.backbone, args.dataset, args)

    model.save_pretrained(args.output_dir)
    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
