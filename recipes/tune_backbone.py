"""Tune a backbone on a data set by an agent that reflects and remembers, or by a sampler at the same budget.

Method: VirtualMLE (arXiv 2606.03221): the plain default first, one changed dimension a trial, kept where validation
    NDCG@10 rises by more than the noise of a seed, a reflection after each, axes closed that were tried often of late,
    rules and a start from earlier studies. The test is sealed until `--read_test`, which reads it once for the best
    configuration and once for the default.
Run: python recipes/tune_backbone.py --config recipes/configs/tune_backbone/quickstart.yaml
    --dataset outputs/quickstart/dataset --memory outputs/memory --output_dir outputs/quickstart/study
    Kill it and start it again at any time; start it several times at once, on a shared disk also on several machines.
Quick: --config recipes/configs/tune_backbone/smoke.yaml takes seconds a trial.
Makes: journal.log (an Optuna journal, which the study is resumed from), study.json, trials.tsv, reflections.jsonl,
    summary.md, memory/ (what was known at the start), test_read.json where it was read, metrics.json, run.json.
Expect: see the header of each config.
"""

import logging
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from recllm.training.arguments import parse


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder of the study."})
    sid_table: str | None = field(default=None, metadata={"help": "glass: folder of the SID table."})
    backbone: str = field(default="sasrec", metadata={"help": "sasrec, hstu or glass."})
    space: Literal["full", "surface"] = field(
        default="full", metadata={"help": "surface: the smaller space that the measured tables cover."}
    )
    proposer: str = field(
        default="climb",
        metadata={
            "help": "endpoint:MODEL, local:FOLDER, tuner:FOLDER (trained to propose), smollm2, transcript:FILE, or "
            "opro: before one of them; or random, grid, sweep, climb, tpe, cmaes."
        },
    )
    record: str | None = field(default=None, metadata={"help": "Write a language model's replies down in this file."})
    trials: int = field(default=30, metadata={"help": "Trials in all, the default's included; may grow later."})
    noise_seeds: int = field(default=2, metadata={"help": "Further seeds of the default, for the noise of a score."})
    memory: str | None = field(default=None, metadata={"help": "Folder of the long-term memory; None: none."})
    reflect: bool = field(default=True, metadata={"help": "Look back on each trial."})
    coverage: bool = field(default=True, metadata={"help": "Close axes that were tried often of late."})
    read_test: bool = field(default=False, metadata={"help": "Read the test at the end, once; the study is over then."})
    test_seeds: int = field(default=3, metadata={"help": "Seeds of the reading."})
    most_parameters: int | None = field(default=None, metadata={"help": "Most parameters of a model."})
    cpu_seconds: float | None = field(default=None, metadata={"help": "Most processor seconds of a trial."})
    wall_seconds: float | None = field(default=None, metadata={"help": "Most seconds of a trial by the clock."})
    memory_gib: float | None = field(default=None, metadata={"help": "Most memory of a trial."})
    seed: int = field(default=0, metadata={"help": "Seed of the choices and of the trials."})


def main(args: Arguments) -> None:
    from recllm.provenance import RunRecord
    from recllm.tuning.study.ending import deliver
    from recllm.tuning.study.live import inputs_of, live_study
    from recllm.tuning.trials.launch import Forked

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    record = RunRecord.start(args.output_dir, "tune_backbone", args, inputs=inputs_of(args))
    if record.complete:
        return

    with closing(Forked()) as launcher:
        study, runner = live_study(args, launcher)
        history = study.run()
        seeds = [args.seed + number for number in range(args.test_seeds)] if args.read_test else []
        metrics = deliver(study, runner, history, args.memory, seeds)

    record.finish(metrics)


if __name__ == "__main__":
    main(*parse(Arguments))
