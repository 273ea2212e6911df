"""Train a small language model to propose the next trial of a study, by what its proposals make possible.

Method: VirtualMLE's proposer (arXiv 2606.03221) as a post-trained model: GRPO (arXiv 2402.03300) on situations of
    studies played on measured surfaces. Reward: for a legal change of one axis that a study would keep, its share of
    the headroom and what the remaining budget can still reach from there; nothing for other legal ones; negative for
    replies that are refused (not JSON, illegal, masked, or tried before).
Run: accelerate launch recipes/grpo_tuner.py --config recipes/configs/grpo_tuner/quickstart.yaml
    --model_name_or_path outputs/tuner/toy_sft --chats outputs/tuner/toy_chats --output_dir outputs/tuner/amazon2014-toy
Quick: --config recipes/configs/grpo_tuner/smoke.yaml takes seconds.
Makes: merged weights, tokenizer, card, curves.png, run.json, and metrics.json with the mean reward of greedy replies on
    situations that this training leaves out (the warm-up has seen them), before and after, with the paired interval of
    the gain.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from typing import Any

from recllm.training.arguments import parse

TRL_CONFIGS = ("GRPOConfig", "ModelConfig")


@dataclass
class Arguments:
    chats: str = field(metadata={"help": "Folder of the tuner's chat data set (data_prep/tuner_chats.py)."})
    graded_prompts: int = field(default=200, metadata={"help": "Situations for before and after, left out here."})


def main(args: Arguments, training_args: Any, model_args: Any) -> None:
    from recllm.hub.run import deliver_run, start_run
    from recllm.training.equip import equip
    from recllm.training.replies import build_reply_trainer, reply_rows, train_replies
    from recllm.training.sft import load_chats
    from recllm.tuning.tuner.rewards import Improvement

    source = model_args.model_name_or_path
    record, publishing = start_run(
        "grpo_tuner", (args, training_args, model_args), {"chats": args.chats, "model_name_or_path": source}
    )
    if record.complete:
        return

    rows, graded = reply_rows(load_chats(args.chats), args.graded_prompts, training_args.seed)
    reward = Improvement.of_spaces(rows["space"])

    trainer = build_reply_trainer(rows, reward, training_args, model_args)
    equipment = equip(trainer, publishing)

    metrics = train_replies(trainer, record, source, graded, reward)

    if trainer.is_world_process_zero():
        deliver_run(record, {"prompts": len(rows), **metrics, **equipment.metrics()}, publishing)


if __name__ == "__main__":
    main(*parse(Arguments, *TRL_CONFIGS))
