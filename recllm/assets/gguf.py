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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf} has no chat template")
    tokenizer.model_max_length = context
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    # The loader leaves its marks, and a model that calls itself quantised can neither be saved nor trained.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.config.dtype = torch.bfloat16
    del model.config._model_name_or_path
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
