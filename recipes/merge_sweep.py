"""Merges of a direct and a thinking parent, each asked the same questions: accuracy and tokens of a whole spectrum.

Method: The Thinking Spectrum (methods 5): a family of models between speed and depth by merging alone. Differs from the
    paper: merges are written into one live model in memory, tensor for tensor what mergekit writes to disk.
Run: python recipes/merge_sweep.py --config recipes/configs/merge_sweep/smoke.yaml
    --direct outputs/direct --thinking outputs/thinking --base outputs/base --output_dir outputs/sweep
    Start it several times, on several machines that share the folder, or with `accelerate launch --num_processes N`:
    every process claims points that no other one is at. Killed and started again, it goes on.
Quick: the seconds of one evaluation a point; merging SmolLM2-135M takes a second or less.
Makes: sweep.json, ledger.jsonl with one line a point, points/KEY.parquet with its samples, metrics.json with `points`
    and accuracy and tokens of `direct/`, `thinking/` and `best/`.
Expect: see docs/EXPERIMENTS.md.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    direct: str = field(metadata={"help": "Parent that answers at once: a folder, a Hub id or a LoRA adapter."})
    thinking: str = field(metadata={"help": "Parent that thinks before it answers, likewise."})
    output_dir: str = field(metadata={"help": "Folder of the sweep; one that was begun is gone on with."})
    grid: list[str] = field(
        metadata={"help": "Entries of the grid, each a mapping with a method and its axes, or one YAML file of them."}
    )
    evaluator: str = field(
        metadata={"help": "arithmetic, gsm8k, lm_eval, recommendation, planner, or package.module:factory of your own."}
    )
    base: str | None = field(default=None, metadata={"help": "What both parents were tuned from, for task vectors."})
    evaluator_options: str = field(default="{}", metadata={"help": "The evaluator's options, a mapping."})
    dataset: str | None = field(default=None, metadata={"help": "The evaluator's option `dataset`, a folder."})
    sid_table: str | None = field(default=None, metadata={"help": "The evaluator's option `sid_table`, a folder."})
    tool_cache: str | None = field(default=None, metadata={"help": "The evaluator's option `tool_cache`, a folder."})
    pickle_weights: bool = field(default=False, metadata={"help": "Convert parents that have only pickled weights."})


def main(args: Arguments) -> None:
    from recllm.merging.evaluators import load_evaluator, read_options
    from recllm.merging.grid import read_grid
    from recllm.merging.sweep import finish_sweep, plan_sweep, print_sweep, run_sweep
    from recllm.provenance import RunRecord

    folders = {name: folder for name in ("dataset", "sid_table", "tool_cache") if (folder := getattr(args, name))}
    evaluator = load_evaluator(args.evaluator, read_options(args.evaluator_options, folders))
    parents = {role: address for role in ("direct", "thinking", "base") if (address := getattr(args, role))}
    plan = plan_sweep(args.output_dir, parents, read_grid(args.grid), evaluator, args.pickle_weights)

    record = RunRecord.start(args.output_dir, "merge_sweep", (args, plan.identity), inputs=plan.inputs | folders)
    if record.complete:
        print_sweep(record.metrics())
        return

    sweep = run_sweep(plan)
    print_sweep(finish_sweep(record, sweep))


if __name__ == "__main__":
    main(*parse(Arguments))
