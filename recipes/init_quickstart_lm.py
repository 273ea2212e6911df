"""Make the small language model that the CPU pipelines train.

Method: a Qwen3-architecture network (arXiv 2505.09388) at random weights and a byte-level BPE tokenizer trained on the
    data set's own text and the rendered prompts. It stands where a user with a GPU puts Qwen3-0.6B or larger.
Run: python recipes/init_quickstart_lm.py --config recipes/configs/init_quickstart_lm/quickstart.yaml
    --dataset outputs/quickstart/dataset --output_dir outputs/quickstart/base
Quick: seconds on 2 cores.
Makes: model.safetensors, tokenizer with a tool-calling chat template, generation_config.json.
Expect: about a million parameters with the quickstart config.
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder for the model and its tokenizer."})
    dataset: str | None = field(
        default=None, metadata={"help": "Folder of the data set whose text the tokenizer learns; needless with chats."}
    )
    chats: str | None = field(
        default=None, metadata={"help": "Folder of a chat data set that the tokenizer learns in place of the prompts."}
    )
    single_digits: bool = field(
        default=False, metadata={"help": "For chats about numbers: every digit is a token, and so is a role's name."}
    )
    vocab_size: int = field(default=4096, metadata={"help": "BPE tokens before the markers and sids are added."})
    hidden_size: int = field(default=256, metadata={"help": "Width of the network."})
    num_layers: int = field(default=6, metadata={"help": "Transformer layers."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads; must divide the width."})
    max_length: int = field(default=1024, metadata={"help": "Longest sequence, in tokens."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights in training."})
    chat_template: str = field(
        default="lean",
        metadata={"help": "lean; qwen3 with tool schemas in the prompt; stream for a model that speaks sids alone."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})


def main(args: Arguments) -> None:
    from recllm.data.catalog import Catalog
    from recllm.planner.texts import example_calls
    from recllm.provenance import RunRecord
    from recllm.training.chat import set_chat_template
    from recllm.training.tiny_lm import build_model, chat_texts, train_tokenizer, training_texts

    inputs = {name: folder for name in ("dataset", "chats") if (folder := getattr(args, name))}
    if not inputs:
        raise ValueError("the tokenizer learns from text: give the folder of a data set, or of chats")
    record = RunRecord.start(args.output_dir, "init_quickstart_lm", args, inputs=inputs)
    if record.complete:
        return

    if args.chats:
        texts = chat_texts(args.chats, roles=args.single_digits)
    else:
        texts = training_texts(Catalog.load(args.dataset), extra=example_calls())
    tokenizer = train_tokenizer(texts, args.vocab_size, args.single_digits)
    set_chat_template(tokenizer, args.chat_template)

    shape = (args.hidden_size, args.num_layers, args.num_heads, args.max_length)
    model = build_model(tokenizer, *shape, args.seed, args.attention_dropout)

    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    record.finish({"parameters": model.num_parameters(), "vocabulary": len(tokenizer)})


if __name__ == "__main__":
    main(*parse(Arguments))
