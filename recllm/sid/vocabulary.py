"""SID tokens in a language model's vocabulary: regular tokens, new rows, and the table that travels with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recllm.provenance import read_json
from recllm.sid.initial_rows import INITS, initial_rows, title_tokens
from recllm.sid.table import SidTable, token_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TABLE_FOLDER = "sid_table"


@dataclass(frozen=True)
class Extension:
    """What `extend` did: the ids of the sid tokens (one array a level), the rows before and after, and what changed."""

    token_ids: list[np.ndarray]
    rows_before: int
    rows_after: int
    changed: bool

    def metrics(self) -> dict[str, float]:
        """Flat numbers for metrics.json."""
        return {
            "sid_tokens": sum(len(ids) for ids in self.token_ids),
            "rows_before": self.rows_before,
            "rows_after": self.rows_after,
        }


def extend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: SidTable,
    titles: Sequence[str] = (),
    init: str = "mean",
    seed: int = 0,
    multiple: int = 64,
    vectors_ND: np.ndarray | None = None,
) -> Extension:
    """Add the table's sid tokens to the model and its tokenizer, in place.

    The tokens are regular ones (they survive `skip_special_tokens`). Their rows start as (`init`)
    mean: the mean of the base embeddings of all title tokens of the items that carry the code; a code that no
    titled item carries gets the mean base row. noise: the mean base row plus normal noise of the base rows' own
    spread. centroid: the mean of `vectors_ND` over the items that carry the code, mapped to the space of the title
    tokens and brought to a base row's usual distance from the mean row (`initial_rows`). An untied output head is
    initialised the same way from its own rows. The number of rows is padded to a multiple of `multiple` with mean
    rows and never shrinks; base rows keep every bit; tied weights stay tied. `titles[i]` and `vectors_ND[i]` belong
    to item i. A model that already speaks this table is left as it is.

    Raises:
        ValueError: the model speaks another table, its vocabulary already has some of the tokens, an unknown init, an
            init without what it needs (titles, vectors), or a tokenizer with more tokens than the model has rows.
    """
    rows_before = model.get_input_embeddings().weight.shape[0]
    if getattr(model.config, "sid_table_hash", None) == table.hash:
        return Extension(sid_token_ids(tokenizer, table), rows_before, rows_before, changed=False)
    base = len(tokenizer)
    _check_fits(model, base, table, titles, init, vectors_ND)
    # Before the tokens exist, so that no title can be read as one of them.
    words = title_tokens(tokenizer, titles) if init != "noise" else None
    if init == "centroid" and len(words.ids_M) == 0:
        raise ValueError("init 'centroid' needs items with titles: all titles are empty")
    token_ids = _add_tokens(tokenizer, table, base)
    rows_after = -(-max(rows_before, len(tokenizer)) // multiple) * multiple
    fresh = slice(base, len(tokenizer))
    starts = [
        initial_rows(weight_VD.detach()[:base], table, init, seed, words, vectors_ND) for weight_VD in _rows(model)
    ]
    model.resize_token_embeddings(rows_after, mean_resizing=False)
    if len(_rows(model)) != len(starts):
        raise ValueError("resizing changed whether input and output embeddings are tied: this model is not supported")
    with torch.no_grad():
        for weight_VD, (start_KD, mean_D) in zip(_rows(model), starts, strict=True):
            weight_VD[rows_before:] = mean_D.to(weight_VD)
            weight_VD[fresh] = start_KD.to(weight_VD)
    model.config.sid_table_hash = table.hash
    return Extension(token_ids, rows_before, rows_after, changed=True)


def _check_fits(
    model: PreTrainedModel,
    base: int,
    table: SidTable,
    titles: Sequence[str],
    init: str,
    vectors_ND: np.ndarray | None,
) -> None:
    known = getattr(model.config, "sid_table_hash", None)
    rows = model.get_input_embeddings().weight.shape[0]
    if known is not None:
        raise ValueError(
            f"the model already speaks SID table {known[:12]}, not {table.hash[:12]}: extend the base model"
        )
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {init!r}")
    if init != "noise" and len(titles) != len(table):
        raise ValueError(f"init {init!r} needs one title an item: got {len(titles)} titles for {len(table)} items")
    if init == "centroid" and (vectors_ND is None or len(vectors_ND) != len(table)):
        known = "none" if vectors_ND is None else len(vectors_ND)
        raise ValueError(f"init 'centroid' needs one vector an item: got {known} for {len(table)} items")
    if base > rows:
        raise ValueError(f"the tokenizer has {base} tokens but the model only {rows} embedding rows")


def sid_token_ids(tokenizer: PreTrainedTokenizerBase, table: SidTable) -> list[np.ndarray]:
    """int64 token ids of each level's codes, one array a level; ValueError names a token that is not one id."""
    vocabulary = tokenizer.get_vocab()
    levels = []
    for level, size in enumerate(table.level_sizes):
        ids = [vocabulary.get(token_text(level, code), -1) for code in range(size)]
        if -1 in ids:
            missing = token_text(level, ids.index(-1))
            raise ValueError(f"the tokenizer has no token {missing}: extend the vocabulary with this SID table first")
        levels.append(np.array(ids, dtype=np.int64))
    return levels


def save_extended(
    folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: SidTable
) -> None:
    """Write model, generation config, tokenizer and, under `sid_table/`, the table; ValueError where they differ."""
    if getattr(model.config, "sid_table_hash", None) != table.hash:
        raise ValueError("the model was not extended with this SID table")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table.save(Path(folder) / TABLE_FOLDER)


def check_table(model_dir: str | Path, table: SidTable) -> None:
    """Raise ValueError where the checkpoint in `model_dir` was built on another SID table than `table`, or on none."""
    known = read_json(Path(model_dir) / "config.json").get("sid_table_hash")
    if known is None:
        raise ValueError(f"{model_dir} speaks no SIDs: extend its vocabulary with extend_vocab.py first")
    if known != table.hash:
        raise ValueError(
            f"{model_dir} was built on SID table {str(known)[:12]}, not on {table.hash[:12]}: use the table in "
            f"{Path(model_dir) / TABLE_FOLDER}, or extend the base model with the other one"
        )


def model_assets(name: str) -> list[dict]:
    """Records of the named assets behind a model name: one where the name is an asset's, else none."""
    from recllm import assets

    return [assets.source_of(name)] if not Path(name).is_dir() and name in assets.ASSETS else []


def locate_model(name: str) -> Path:
    """Folder of a model: `name` itself where it is a folder, else the asset or the Hub repository of that name.

    Raises:
        AssetError, OSError: the model is out of reach. ValueError: neither a folder, an asset nor a Hub id.
    """
    from huggingface_hub import snapshot_download

    from recllm import assets

    if name and Path(name).is_dir():
        return Path(name)
    if name in assets.ASSETS:
        return assets.fetch(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name, flags=re.ASCII):
        raise ValueError(
            f"{name} is no folder, no asset ({', '.join(sorted(assets.ASSETS))}) and no Hub id like org/name"
        )
    # Safetensors only: the other weight formats are pickles, or further copies.
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt"]))


def load_base(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Causal LM, in the precision it was saved in, and tokenizer of the model that `locate_model` finds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate_model(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(folder)


def _rows(model: PreTrainedModel) -> list[torch.Tensor]:
    # The input rows, and the output rows where they are weights of their own.
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or outputs.weight is inputs.weight:
        return [inputs.weight]
    return [inputs.weight, outputs.weight]


def _add_tokens(tokenizer: PreTrainedTokenizerBase, table: SidTable, base: int) -> list[np.ndarray]:
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    taken = [token for token in table.tokens() if token in vocabulary]
    if taken:
        raise ValueError(
            f"the vocabulary already has {len(taken)} of the sid tokens ({taken[0]}, ...): use a base model"
        )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in table.tokens()])
    token_ids = sid_token_ids(tokenizer, table)
    if not np.array_equal(np.concatenate(token_ids), np.arange(base, len(tokenizer))):
        raise ValueError("the tokenizer's ids have gaps: the sid tokens did not get the ids after its last one")
    return token_ids
