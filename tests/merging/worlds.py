"""Small parents made in code: a Llama of two layers, its fine-tuned children, and mergekit's own merge of them."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

WIDTH, INNER, WORDS = 48, 96, 101


def tensors(layers: int = 2, width: int = WIDTH, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's checkpoint."""
    shapes = {"model.embed_tokens.weight": (WORDS, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (width, width)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (INNER, width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, INNER)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (width,)
    return shapes if tied else {**shapes, "lm_head.weight": (WORDS, width)}


def write_parent(folder: Path, seed: int, layers: int = 2, dtype=torch.bfloat16, tied: bool = True, gap=0.02) -> Path:
    """A base (seed 0), or a child whose every weight moved away from it."""
    folder.mkdir(parents=True, exist_ok=True)
    base, moves = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in tensors(layers, tied=tied).items():
        weight = torch.randn(shape, generator=base) * 0.05 + (1.0 if "norm" in name else 0.0)
        moved = torch.randn(shape, generator=moves) * gap
        state[name] = (weight.to(dtype) + (moved.to(dtype) if seed else 0)).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": WORDS, "hidden_size": WIDTH},
        **{"intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 4, "head_dim": 12},
        **{"num_key_value_heads": 4, "tie_word_embeddings": tied, "rms_norm_eps": 1e-6},
        **{"dtype": str(dtype).removeprefix("torch."), "hidden_act": "silu"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7}')
    return folder


def family(root: Path, **options) -> dict[str, Path]:
    """Base, direct and thinking parent."""
    roles = ("base", "direct", "thinking")
    return {role: write_parent(root / role, seed, **options) for seed, role in enumerate(roles)}


def model_family(root: Path, **options) -> dict[str, Path]:
    """A family that transformers loads whole: the same, with a tokenizer of the numbers below WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    found = family(root, **options)
    tokenizer = Tokenizer(models.WordLevel({str(word): word for word in range(WORDS)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for folder in found.values():
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0", "eos_token": "1", "pad_token": "2"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))  # tells eval from train
    return found


def by_mergekit(text: str, folder: Path, seed: int | None = None) -> dict[str, torch.Tensor]:
    """What mergekit makes of a configuration, as it writes it to disk."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(random_seed=seed, write_model_card=False, copy_tokenizer=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder), options)
    state = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
    return state


def ulps(one: torch.Tensor, other: torch.Tensor) -> int:
    """Largest distance of two bfloat16 tensors in steps of the format; zeros of both signs are one."""

    def order(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((order(one) - order(other)).abs().max())
