"""Fine-tune a language model on a chat data set.

Method: cross entropy on the assistant's tokens, or on all tokens with `assistant_only_loss: false`, which gives a
    model that starts from random weights a lesson in every item of the history. TRL's SFTTrainer as it is. Two stages
    (TwiSTAR, arXiv 2605.11553): `trainable: sid_rows` aligns the embedding rows of SID tokens and keeps every other
    weight; then the whole model, or LoRA and these rows by `use_peft`.
Run: accelerate launch recipes/sft.py --config recipes/configs/sft/quickstart.yaml
    --model_name_or_path outputs/quickstart/base_with_sids --chats outputs/quickstart/rationales
    --output_dir outputs/quickstart/reasoner
Quick: about 4 minutes on 2 cores with the config above; --config recipes/configs/sft/smoke.yaml takes seconds.
Makes: merged weights, tokenizer, generation_config.json, sid_table/, card, metrics.json, run.json; needs.json where the
    chats have one.
Expect: see the header of each config.
"""

from dataclasses import dataclass, field
from typing import Any

from recllm.training.arguments import parse

TRL_CONFIGS = ("SFTConfig", "ModelConfig")


@dataclass
class Arguments:
    chats: str = field(metadata={"help": "Folder of the chat data set (messages, or prompt and completion)."})
    trainable: str = field(
        default="all",
        metadata={"help": "all weights (with use_peft: LoRA and the rows of SID tokens), or sid_rows alone."},
    )
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Data set whose validation targets are ranked while training."}
    )
    validation_steps: int = field(default=0, metadata={"help": "Steps between two such rankings; 0 is none."})
    validation_users: int = field(default=1000, metadata={"help": "At most so many validation users."})
    validation_patience: int = field(
        default=0, metadata={"help": "Rankings without a new best after which training stops; 0 never stops it."}
    )


def main(args: Arguments, training_args: Any, model_args: Any) -> None:
    from recllm.hub.run import deliver_run, start_run
    from recllm.training.equip import equip
    from recllm.training.sft import build_sft_trainer, load_chats, train_and_deliver, validation_watches

    source = model_args.model_name_or_path
    inputs = {"chats": args.chats, "model_name_or_path": source}
    if args.validation_dataset:
        inputs["validation_dataset"] = args.validation_dataset
    record, publishing = start_run("sft", (args, training_args, model_args), inputs)
    if record.complete:
        return

    rows = load_chats(args.chats)

    asked = (args.validation_steps, args.validation_users, args.validation_patience)
    watches = validation_watches(args.validation_dataset, f"{source}/sid_table", *asked)
    trainer = build_sft_trainer(rows, training_args, model_args, args.trainable, watches)
    equipment = equip(trainer, publishing)

    metrics = train_and_deliver(trainer, record, source, watches, args.chats)

    if trainer.is_world_process_zero():
        deliver_run(record, {"rows": len(rows), **metrics, **equipment.metrics()}, publishing)


if __name__ == "__main__":
    main(*parse(Arguments, *TRL_CONFIGS))
