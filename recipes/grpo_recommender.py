"""Train a recommender that speaks semantic ids on its own answers: groups of items drawn over the catalogue's trie.

Method: GRPO (arXiv 2402.03300) with MiniOneRec's rewards (arXiv 2510.24431): a hit, and a penalty on confident misses
    of a group with a hit; besides TwiSTAR's prefix hit. Differs: a group is drawn without replacement in one pass a
    prompt (stochastic beam search, arXiv 1903.06059), so no answer comes twice; `inclusion_weights` corrects the
    advantages for it. `draw: independent` is the usual sampling under the trie. Targets are columns of the rows.
Run: accelerate launch recipes/grpo_recommender.py --config recipes/configs/grpo_recommender/quickstart.yaml
    --model_name_or_path outputs/quickstart/recommender --dataset outputs/quickstart/dataset
    --output_dir outputs/quickstart/grpo_recommender
Quick: --config recipes/configs/grpo_recommender/smoke.yaml takes seconds.
Makes: merged weights, tokenizer, sid_table/, card, curves.png, run.json, and metrics.json with NDCG@10 on validation
    users before and after, with the paired interval of the gain.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from typing import Any

from recllm.training.arguments import parse

TRL_CONFIGS = ("GRPOConfig", "ModelConfig")


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set; its split says which targets may be learned."})
    sid_table: str | None = field(
        default=None, metadata={"help": "Folder of the SID table; the model's own sid_table/."}
    )
    prompts_from: str = field(
        default="last",
        metadata={"help": "last: one target a user; all: every event that may be learned from."},
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Keep so many prompts, chosen by the seed; all."})
    exact_weight: float = field(default=1.0, metadata={"help": "Weight of a hit."})
    rank_weight: float = field(default=1.0, metadata={"help": "Weight of the penalty on confident misses."})
    prefix_weight: float = field(default=0.0, metadata={"help": "Weight of the leading codes shared with the target."})
    draw: str = field(default="without_replacement", metadata={"help": "without_replacement or independent."})
    inclusion_weights: bool = field(
        default=False, metadata={"help": "Weight advantages by p/q of the draw without replacement."}
    )
    validation_steps: int = field(default=0, metadata={"help": "Steps between two rankings of validation; 0 is none."})
    validation_users: int = field(default=1000, metadata={"help": "At most so many validation users."})
    validation_patience: int = field(
        default=0, metadata={"help": "Rankings without a new best after which training stops; 0 never stops it."}
    )


def main(args: Arguments, training_args: Any, model_args: Any) -> None:
    from recllm.data.splits import load_split
    from recllm.hub.run import deliver_run, start_run
    from recllm.recommender.prompts import prompt_examples, prompt_rows
    from recllm.sid.table import SidTable
    from recllm.sid.vocabulary import check_table
    from recllm.training.equip import equip
    from recllm.training.recommender import Groups, build_recommender_trainer, graded_examples, train_recommender
    from recllm.training.sft import validation_watches

    source = model_args.model_name_or_path
    inputs = {"dataset": args.dataset, "sid_table": args.sid_table or f"{source}/sid_table"}
    run_inputs = {**inputs, "model_name_or_path": source}
    record, publishing = start_run("grpo_recommender", (args, training_args, model_args), run_inputs)
    if record.complete:
        return

    table = SidTable.load(inputs["sid_table"])
    check_table(source, table)
    examples = prompt_examples(load_split(args.dataset), args.prompts_from)
    rows = prompt_rows(examples, table, args.max_prompts, training_args.seed)

    weights = {name.removesuffix("_weight"): value for name, value in vars(args).items() if name.endswith("_weight")}
    watching = (args.validation_steps, args.validation_users, args.validation_patience)
    watches = validation_watches(*inputs.values(), *watching, at_start=True)
    groups = Groups(args.draw, args.inclusion_weights)
    trainer = build_recommender_trainer(rows, table, training_args, model_args, weights, groups, watches)
    equipment = equip(trainer, publishing)

    graded = graded_examples(args.dataset, args.validation_users, watches)
    metrics = train_recommender(trainer, record, source, table, graded, watches)

    if trainer.is_world_process_zero():
        deliver_run(record, {"prompts": len(rows), **metrics, **equipment.metrics()}, publishing)


if __name__ == "__main__":
    main(*parse(Arguments, *TRL_CONFIGS))
