"""A GGUF file as a Hugging Face folder: safetensors, config, tokenizer with its chat template.

Run as a process of its own by `assets.build`: python -m recllm.assets.gguf MODEL.gguf FOLDER

The weights are saved in bfloat16, the type of the published SmolLM2 checkpoints and half the size of float32.
Against the exact float32 values of the 4-bit file this moves the next-token distribution of SmolLM2-135M-Instruct
by 1e-4 nats on average, far below what the 4-bit rounding itself cost.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path, context: int = 8192) -> None:
    """Write `gguf` to `folder` in HF layout.

    context: the longest input in tokens that the tokenizer states; the GGUF tokenizer states none.

    Raises:
        ValueError: the file has no chat template.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf} has no chat template")
    tokenizer.model_max_length = context
    if _pre_tokenizer(gguf) == "smollm":
        # Digits are words of their own there; transformers' reader drops that and joins spaces otherwise.
        digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    # The loader leaves its marks, and a model that calls itself quantised can neither be saved nor trained.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.config.dtype = torch.bfloat16
    vars(model.config).pop("_model_name_or_path", None)  # the name the file's author gave a training run
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(gguf: Path) -> str:
    """Name of the rule that cuts text into words, as the file states it."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    return "" if field is None else bytes(field.parts[field.data[0]]).decode()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
