"""Train the slow reasoner on what the fast retriever misses: thoughts, and the items that follow from them.

Method: TwiSTAR (arXiv 2605.11553) stage 4, GRPO (arXiv 2402.03300) on half A's routing targets beyond the retriever's
    first 50. A free thought up to a budget, then a sid drawn over the trie. Reward: the hierarchical hit, the best
    match of a beam after the thought (OneRec-Think), and bounded terms of form. Differs: no weight lets form outscore
    the answer, and an invalid completion earns nothing.
Run: accelerate launch recipes/grpo_reasoner.py --config recipes/configs/grpo_reasoner/quickstart.yaml
    --model_name_or_path outputs/quickstart/reasoner --dataset outputs/quickstart/dataset
    --retriever outputs/quickstart/sasrec --output_dir outputs/quickstart/grpo_reasoner
Quick: --config recipes/configs/grpo_reasoner/smoke.yaml takes seconds.
Makes: merged weights, tokenizer, sid_table/, card, curves.png, run.json, and metrics.json with NDCG@10 of the slow tool
    on validation users before and after, with the paired interval of the gain.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from typing import Any

from recllm.training.arguments import parse

TRL_CONFIGS = ("GRPOConfig", "ModelConfig")


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set (split: roles)."})
    retriever: str = field(metadata={"help": "Folder of the fast tool; what it finds is left out."})
    think_tokens: int = field(default=24, metadata={"help": "Budget of a thought, in tokens."})
    max_prompts: int | None = field(default=None, metadata={"help": "Keep so many prompts, chosen by the seed; all."})
    valid_weight: float = field(default=0.1, metadata={"help": "Weight of a thought and one sid, well formed."})
    prefix_weight: float = field(default=1.0, metadata={"help": "Weight of the leading codes shared with the target."})
    natural_weight: float = field(default=0.05, metadata={"help": "Weight of a thought that is made of words."})
    category_weight: float = field(default=0.2, metadata={"help": "Weight of the target's categories in the thought."})
    rollout_beam_weight: float = field(default=0.5, metadata={"help": "Weight of the best match in the beam."})
    graded_users: int = field(default=500, metadata={"help": "Validation users for before and after, at most."})


def main(args: Arguments, training_args: Any, model_args: Any) -> None:
    from recllm.data.catalog import Catalog
    from recllm.hub.run import deliver_run, start_run
    from recllm.sid.table import SidTable
    from recllm.training.equip import equip
    from recllm.training.reasoner import build_reasoner_trainer, hard_rows, train_reasoner
    from recllm.training.recommender import graded_examples

    source = model_args.model_name_or_path
    inputs = {"dataset": args.dataset, "retriever": args.retriever, "model_name_or_path": source}
    record, publishing = start_run("grpo_reasoner", (args, training_args, model_args), inputs)
    if record.complete:
        return

    table = SidTable.load(f"{source}/sid_table")
    rows = hard_rows(args.dataset, args.retriever, table, args.max_prompts, training_args.seed)
    graded = graded_examples(args.dataset, args.graded_users)

    weights = {name.removesuffix("_weight"): value for name, value in vars(args).items() if name.endswith("_weight")}
    catalog = Catalog.load(args.dataset)
    trainer = build_reasoner_trainer(rows, catalog, table, training_args, model_args, weights, args.think_tokens)
    equipment = equip(trainer, publishing)

    metrics = train_reasoner(trainer, record, source, table, graded, args.think_tokens)

    if trainer.is_world_process_zero():
        deliver_run(record, {"prompts": len(rows), **metrics, **equipment.metrics()}, publishing)


if __name__ == "__main__":
    main(*parse(Arguments, *TRL_CONFIGS))
