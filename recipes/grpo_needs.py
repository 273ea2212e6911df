"""Train one model that says what a user needs now and recommends the services that meet it, stage by stage.

Method: methods 3.3 (after HiAgentRec, arXiv 2604.14051): GRPO (arXiv 2402.03300) with verifiable rewards on visits of
    the fitting fold that patterns explain. Stage need: the derived need's meaning, and whether it leads to the
    category. Stage category: the category besides, with half credit for its parent. Stage service: ten services
    besides. A stage ends when the moving average of its reward reaches a threshold, or at a cap; a fifth of the prompts
    repeat earlier stages; visits come from the typical to the rare. Answers are drawn under the stage's grammar, and
    tokens that it forced teach nothing. `--joint true` (no curriculum) and `--semantic false` are ablations.
Run: accelerate launch recipes/grpo_needs.py --config recipes/configs/grpo_needs/quickstart.yaml
    --model_name_or_path outputs/needs/sft --dataset outputs/needs/matdata --patterns outputs/needs/matdata_patterns
    --output_dir outputs/needs/grpo_needs
Quick: --config recipes/configs/grpo_needs/smoke.yaml takes seconds.
Makes: merged weights, tokenizer, sid_table/, needs.json, card, curves.png (rewards by stage, a line at every
    promotion), steps.jsonl (what every round asked), run.json, and metrics.json: the terms of greedy answers on
    validation targets before and after with the paired interval of the gain, and the promotions.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from typing import Any

from recllm.training.arguments import parse

TRL_CONFIGS = ("GRPOConfig", "ModelConfig")


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set, with visits.parquet."})
    patterns: str = field(metadata={"help": "Folder of its patterns (data_prep/need_patterns.py)."})
    stages: list[str] = field(
        default_factory=lambda: ["need", "category", "service"], metadata={"help": "Stages of the curriculum."}
    )
    need_threshold: float = field(default=0.8, metadata={"help": "Average reward that ends the stage need."})
    category_threshold: float = field(default=0.6, metadata={"help": "Average reward that ends the stage category."})
    window: int = field(default=10, metadata={"help": "Rounds of the moving average."})
    cap: int = field(default=40, metadata={"help": "Rounds of a stage before the last, at most."})
    replay: float = field(default=0.2, metadata={"help": "Share of the prompts that repeats earlier stages."})
    joint: bool = field(default=False, metadata={"help": "All stages from the start, in random order."})
    semantic: bool = field(default=True, metadata={"help": "Whether the meaning of the need is paid for."})
    encoder: str = field(default="minilm", metadata={"help": "Frozen encoder that needs are judged by, or tfidf."})
    all_events: bool = field(default=False, metadata={"help": "Also events that the patterns drop."})
    need_tokens: int = field(default=24, metadata={"help": "Tokens of a need at most."})
    graded_targets: int = field(default=300, metadata={"help": "Validation targets for before and after, at most."})


def main(args: Arguments, training_args: Any, model_args: Any) -> None:
    from recllm.hub.run import deliver_run, start_run
    from recllm.training.equip import equip
    from recllm.training.needs import NeedsTask, build_needs_trainer, train_needs

    source = model_args.model_name_or_path
    inputs = {"dataset": args.dataset, "patterns": args.patterns, "model_name_or_path": source}
    record, publishing = start_run("grpo_needs", (args, training_args, model_args), inputs)
    if record.complete:
        return

    task = NeedsTask.load(source, args.dataset, args.patterns, args.stages, args.all_events)
    judge, graded = task.judge(args.encoder, args.semantic), task.graded(args.graded_targets)

    plan = {name: getattr(args, name) for name in ("window", "cap", "replay", "joint")}
    plan["thresholds"] = {"need": args.need_threshold, "category": args.category_threshold}
    trainer = build_needs_trainer(task, training_args, model_args, judge, args.need_tokens, **plan)
    equipment = equip(trainer, publishing)

    metrics = train_needs(trainer, record, task, graded, judge)

    if trainer.is_world_process_zero():
        deliver_run(record, {**metrics, **equipment.metrics()}, publishing)


if __name__ == "__main__":
    main(*parse(Arguments, *TRL_CONFIGS))
