"""Build the chat data set of the tuner: situations of studies on measured surfaces, each with a good next change.

Method: studies are played on the surfaces of every data set but one, bent and mixed so that no table is learned by
    heart (`recllm.tuning.tuner.board`), by a mixture of good, random and bad moves, with and without memory of studies
    on other bent ones. The reply is a change drawn by its true worth: its share of the headroom, and what it leaves
    within reach of the remaining budget.
Run: python data_prep/tuner_chats.py --surfaces benchmarks/surfaces --leave_out amazon2014-toy
    --output_dir outputs/tuner/toy_chats
Quick: python data_prep/tuner_chats.py --config recipes/configs/tuner_chats/quickstart.yaml
Makes: a chat data set in TRL's conversational format with the columns messages, space, config, masked, tried, worths;
    metrics.json.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    surfaces: str = field(metadata={"help": "Folder of surfaces (benchmarks/measure_surfaces.py)."})
    leave_out: str = field(metadata={"help": "Data set whose surfaces are not looked at, where the tuner is tested."})
    output_dir: str = field(metadata={"help": "Folder for the chat data set."})
    situations: int = field(default=16_000, metadata={"help": "Situations to play."})
    memories: int = field(
        default=6, metadata={"help": "Memories a surface, each of studies on bent data sets; 0: none."}
    )
    bent: float = field(
        default=0.3, metadata={"help": "Strength of the bending at most, see Mixture; 0: the surfaces as they are."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the studies and of the replies."})


def main(args: Arguments) -> None:
    from datasets import Dataset

    from recllm.provenance import RunRecord
    from recllm.tuning.tuner.lessons import lesson_boards, lesson_memories
    from recllm.tuning.tuner.traces import Mixture, chat_rows, traces

    record = RunRecord.start(args.output_dir, "tuner_chats", args, inputs={"surfaces": args.surfaces})
    if record.complete:
        return

    boards = lesson_boards(args.surfaces, args.leave_out)
    memories = lesson_memories(boards, args.memories, args.bent, args.seed, args.output_dir)

    played = traces(boards, memories, args.situations, args.seed, Mixture(bent=args.bent))
    rows = Dataset.from_list(list(chat_rows(played, args.seed))).shuffle(args.seed)

    rows.save_to_disk(args.output_dir)
    record.finish({"rows": len(rows), "situations": args.situations, "surfaces": len(boards)})


if __name__ == "__main__":
    main(*parse(Arguments))
