"""Fit a sequential backbone or a ranker.

Method: SASRec (arXiv 1808.09781) and HSTU (arXiv 2402.17152) with softmax cross entropy over the catalogue, over
    sampled negatives, or SASRec's own binary loss, with the structural options and train-split priors that VirtualMLE
    searches over; and DIN (arXiv 1706.06978) over a retriever's list as in TwiSTAR (arXiv 2605.11553, stage 5). DIN
    differs from the paper: the loss is a softmax over the list and a missing target is not injected; both are switches.
Run: python recipes/train_backbone.py --config recipes/configs/train_backbone/quickstart.yaml
    --dataset outputs/quickstart/dataset --output_dir outputs/quickstart/sasrec
Quick: about 2 minutes on 2 cores; --config recipes/configs/train_backbone/smoke.yaml takes seconds. A run that was
    killed goes on from its last epoch when the command is given again.
Makes: model.safetensors and config.json (`SASRec.from_pretrained(folder)`), priors.safetensors where a prior has a
    weight, metrics.json, run.json.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder for the fitted backbone."})
    backbone: str = field(default="sasrec", metadata={"help": "sasrec, hstu or din."})
    retriever: str | None = field(default=None, metadata={"help": "din: folder of the backbone whose list is ranked."})
    max_len: int = field(default=50, metadata={"help": "Longest history looked at."})
    hidden_dim: int = field(default=128, metadata={"help": "Embedding width."})
    num_blocks: int = field(default=1, metadata={"help": "Attention blocks."})
    num_heads: int = field(default=1, metadata={"help": "Attention heads."})
    linear_dim: int = field(default=16, metadata={"help": "hstu: width of a head's U and V."})
    attention_dim: int = field(default=16, metadata={"help": "hstu: width of a head's Q and K."})
    attention_hidden: int = field(default=36, metadata={"help": "din: width of the attention network."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout probability."})
    attn_dropout: float = field(default=0.0, metadata={"help": "hstu: dropout of the attention weights."})
    tie_embeddings: bool = field(default=True, metadata={"help": "Score with the input embeddings."})
    ffn: Literal["gelu", "swiglu"] = field(default="gelu", metadata={"help": "sasrec: kind of feed-forward."})
    position: str | None = field(
        default=None, metadata={"help": "learned, relative_bias, rope, joined by +, or none; None: as in the paper."}
    )
    time_bias: Literal["auto", "required", "none"] = field(
        default="auto", metadata={"help": "hstu: bias of the time between events; auto: where the data set has times."}
    )
    pooling: Literal["last", "mean", "last_k_mean"] = field(default="last", metadata={"help": "User vector."})
    pool_k: int = field(default=5, metadata={"help": "States that last_k_mean averages."})
    embedding_fusion: Literal["none", "add", "gate"] = field(
        default="none", metadata={"help": "How item_vectors enter the item embeddings."}
    )
    item_vectors: str | None = field(default=None, metadata={"help": "Folder of an SID table, whose vectors they are."})
    share_blocks: bool = field(default=False, metadata={"help": "One block's weights for all blocks."})
    l2_norm: bool | None = field(default=None, metadata={"help": "User and item vectors of length 1; None: hstu only."})
    temperature: float | None = field(default=None, metadata={"help": "Of the logits; None: hstu 0.05, sasrec 1."})
    init_std: float | None = field(
        default=None, metadata={"help": "Deviation of the embeddings at the start; None: sasrec width^-0.5, hstu 0.02."}
    )
    loss: Literal["softmax", "bce"] = field(default="softmax", metadata={"help": "bce is SASRec's, with one negative."})
    num_negatives: int = field(default=0, metadata={"help": "softmax: sampled negatives; 0 is the full softmax."})
    proposal: Literal["uniform", "popularity"] = field(default="uniform", metadata={"help": "Draws the negatives."})
    logq: bool = field(default=False, metadata={"help": "Correct the sampled softmax for its proposal."})
    train_targets: Literal["all_positions", "last_position"] = field(
        default="all_positions", metadata={"help": "Targets of a training window."}
    )
    train_window: int | None = field(default=None, metadata={"help": "Longest training window; None is max_len."})
    prior_transition: float = field(default=0.0, metadata={"help": "Weight of transitions in the scores."})
    prior_item_cf: float = field(default=0.0, metadata={"help": "Weight of co-occurrence in the scores."})
    prior_popularity: float = field(default=0.0, metadata={"help": "Weight of log popularity in the scores."})
    prior_norm: Literal["sqrt", "count", "none"] = field(default="sqrt", metadata={"help": "What scales pair counts."})
    prior_recent_k: int = field(default=5, metadata={"help": "Last items whose pairs count."})
    prior_topk: int = field(default=100, metadata={"help": "Neighbours that an item keeps; 0 keeps all."})
    prior_rerank: int = field(default=0, metadata={"help": "Best items that the priors reorder; 0 is the catalogue."})
    prior_window: int = field(default=5, metadata={"help": "Events that two of a pair may be apart."})
    candidates: int = field(default=50, metadata={"help": "din: length of the retriever's list."})
    listwise: bool = field(default=True, metadata={"help": "din: softmax over the list instead of BCE an item."})
    inject_target: bool = field(default=False, metadata={"help": "din: put a missing target in, as published."})
    exclude_seen: bool = field(default=True, metadata={"help": "Leave items of the history out of the ranking."})
    report_test: bool = field(default=False, metadata={"help": "Rank the test targets, too, once after the fit."})
    epochs: int = field(default=20, metadata={"help": "Most epochs."})
    patience: int = field(default=3, metadata={"help": "Epochs without a better validation metric before the end."})
    metric: str = field(default="ndcg@10", metadata={"help": "What decides the best epoch: ndcg@K or recall@K."})
    batch_size: int = field(default=256, metadata={"help": "Windows, or din: lists, a step."})
    optimizer: Literal["adam", "adamw"] = field(default="adamw", metadata={"help": "Weight decay: in the loss or not."})
    lr: float = field(default=3e-4, metadata={"help": "Learning rate."})
    weight_decay: float = field(default=1e-5, metadata={"help": "Weight decay."})
    beta2: float = field(default=0.999, metadata={"help": "Decay of Adam's second moment."})
    sparse_rows: bool = field(default=False, metadata={"help": "Update only the item rows that a batch touched."})
    compile: bool = field(default=False, metadata={"help": "torch.compile of the network."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and batches."})


def main(args: Arguments) -> None:
    from recllm.backbones.resume import discard_checkpoint
    from recllm.backbones.train import save_backbone, train_backbone
    from recllm.provenance import RunRecord

    folders = {"dataset": args.dataset, "retriever": args.retriever, "item_vectors": args.item_vectors}
    inputs = {name: folder for name, folder in folders.items() if folder}
    record = RunRecord.start(args.output_dir, "train_backbone", args, inputs=inputs)
    if record.complete:
        return

    model, metrics = train_backbone(args.backbone, args.dataset, args)

    save_backbone(model, args.output_dir)
    record.finish(metrics)
    discard_checkpoint(args.output_dir)


if __name__ == "__main__":
    main(*parse(Arguments))
