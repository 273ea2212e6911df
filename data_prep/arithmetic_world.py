"""Build a chat data set of the arithmetic world: chains of small sums, answered at once or step by step.

Method: `recllm/evaluation/arithmetic.py`. A share of the chats thinks, `<think>1+3=4 4*2=8</think>8`, the others say 8.
    A mixture makes a base model that knows both styles, 0 and 1 make the parents of a merge: one world in which
    accuracy and tokens trade off. Test questions, one canonical expression in five, are in no chat.
Run: python data_prep/arithmetic_world.py --config recipes/configs/arithmetic_world/quickstart.yaml
    --output_dir outputs/thinking_spectrum/chats
Quick: seconds; --config recipes/configs/arithmetic_world/smoke.yaml makes a few hundred.
Makes: a chat data set in TRL's conversational format with the columns messages, style, operations; metrics.json with
    the rows of each style.
Expect: 50,000 rows in 4 s on one core.
"""

from collections import Counter
from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder for the chat data set."})
    thinking: float = field(default=0.5, metadata={"help": "Share of the chats that think before they answer."})
    rows: int = field(default=50_000, metadata={"help": "Chats; questions may come again."})
    block: int = field(
        default=1, metadata={"help": "So many rows in turn are of one style: those of a batch, read in their order."}
    )
    least: int = field(default=2, metadata={"help": "Fewest operations of a chain."})
    most: int = field(default=4, metadata={"help": "Most operations of a chain."})
    operand: int = field(default=9, metadata={"help": "Largest number that a chain starts with or applies."})
    largest: int = field(default=9, metadata={"help": "Largest value on the way and at the end."})
    seed: int = field(default=0, metadata={"help": "Seed of the chains and of the styles."})


def main(args: Arguments) -> None:
    from datasets import Dataset

    from recllm.evaluation.arithmetic import ArithmeticWorld, chat_columns
    from recllm.provenance import RunRecord

    record = RunRecord.start(args.output_dir, "arithmetic_world", args)
    if record.complete:
        return

    world = ArithmeticWorld(args.least, args.most, args.operand, args.largest)

    rows = Dataset.from_dict(chat_columns(world, args.thinking, args.rows, args.seed, args.block))

    rows.save_to_disk(args.output_dir)
    counts = {f"rows/{style}": count for style, count in sorted(Counter(rows["style"]).items())}
    record.finish({"rows": len(rows), **counts})


if __name__ == "__main__":
    main(*parse(Arguments))
