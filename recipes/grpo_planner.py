"""Train the planner that decides per user between a fast retriever, a ranker and a slow reasoner.

Method: TwiSTAR (arXiv 2605.11553) stage 7, GRPO (arXiv 2402.03300) on tool calls, tools frozen. Reward: NDCG@10 + a
    dense rank term - cost_weight x cost share + valid plan - invalid - redundant calls, each its own function.
    Differs from the paper: costs are FLOPs, so the reward is reproducible, and the planner sees what
    retrieve found before it chooses.
Run: accelerate launch recipes/grpo_planner.py
    With no argument the quickstart config is used and whatever is missing upstream is built first.
Quick: about 3 minutes on 2 cores once the upstream stages exist; --config recipes/configs/grpo_planner/smoke.yaml.
Makes: merged weights, tokenizer, sid_table/, card, metrics.json with every router, curves.png, frontier.png, run.json.
Expect: see the header of recipes/configs/grpo_planner/quickstart.yaml.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recllm.training.arguments import parse

RECIPES = Path(__file__).resolve().parent
TRL_CONFIGS = ("GRPOConfig", "ModelConfig")


@dataclass
class Arguments:
    pipeline: str = field(
        default=str(RECIPES / "pipelines" / "quickstart.yaml"),
        metadata={"help": "Pipeline YAML that builds the inputs not given here."},
    )
    stage: str = field(default="grpo_planner", metadata={"help": "Name of this stage in the pipeline."})
    outputs_root: str = field(default="outputs", metadata={"help": "Folder of all pipelines' outputs."})
    dataset: str | None = field(default=None, metadata={"help": "Folder of the data set (split: roles)."})
    sid_table: str | None = field(default=None, metadata={"help": "Folder of the SID table."})
    tool_cache: str | None = field(default=None, metadata={"help": "Folder of the cached tool answers."})
    traces: str | None = field(default=None, metadata={"help": "Folder of data_prep/planner_traces.py."})
    quality_weight: float = field(default=1.0, metadata={"help": "Weight of NDCG@10."})
    dense_weight: float = field(default=0.2, metadata={"help": "Weight of 1 - ln(rank)/ln(51) in the tool's first 50."})
    cost_weight: float = field(default=0.15, metadata={"help": "Price of the slow tool, in NDCG."})
    valid_weight: float = field(default=0.1, metadata={"help": "Bonus of a valid plan."})
    invalid_weight: float = field(default=0.5, metadata={"help": "Price of an invalid plan."})
    eval_users: int | None = field(default=None, metadata={"help": "Grade on the first so many users; all."})
    eval_role: Literal["test", "validation"] = field(
        default="test", metadata={"help": "Graded on test, or on validation where planners compete."}
    )
    redundant_weight: float = field(default=0.02, metadata={"help": "Price of a redundant call."})


def main(args: Arguments, training_args: Any, model_args: Any) -> None:
    from recllm.evaluation.planner import announce_headroom, load_bench
    from recllm.evaluation.report import print_routers
    from recllm.hub.run import deliver_run, start_run
    from recllm.training.equip import equip
    from recllm.training.grpo import build_planner_trainer
    from recllm.training.planner import locate_inputs, train_planner
    from recllm.training.sft import load_chats

    inputs = locate_inputs(args, training_args, model_args)
    record, publishing = start_run("grpo_planner", (args, training_args, model_args), inputs)
    if record.complete:
        print_routers(record.metrics(), args.eval_role)
        return

    prompts = load_chats(inputs["traces"] / "prompts")
    bench = load_bench(inputs, role="routing")
    announce_headroom(bench)

    weights = {name.removesuffix("_weight"): value for name, value in vars(args).items() if name.endswith("_weight")}
    trainer = build_planner_trainer(prompts, bench, training_args, model_args, weights)
    equipment = equip(trainer, publishing)

    metrics = train_planner(trainer, record, inputs, args.cost_weight, args.eval_users, args.eval_role)

    if trainer.is_world_process_zero():
        print_routers(metrics, args.eval_role)
        deliver_run(record, metrics | equipment.metrics(), publishing)


if __name__ == "__main__":
    main(*parse(Arguments, *TRL_CONFIGS, default_config=RECIPES / "configs" / "grpo_planner" / "quickstart.yaml"))
