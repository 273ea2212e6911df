"""The parents of a sweep: local folders, Hub ids, or LoRA adapters on either; looked at by header, then made ready.

`describe` reads configs and headers only (of a Hub id: a few kilobytes), so that a preflight costs seconds.
`make_ready` then brings every parent to a local safetensors folder: it downloads, merges adapters, converts pickles.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.merging.checkpoint import INDEX, SINGLE, TensorInfo, pickle_advice, read_header, read_headers
from recllm.provenance import fingerprint, read_json, sha256_file
from recllm.sid.vocabulary import TABLE_FOLDER

ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_SOURCE_FILE = ".source.json"  # what a folder was made of, once it is complete
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", f"{TABLE_FOLDER}/*")


@dataclass(frozen=True)
class Parent:
    """A parent as its configs and headers tell it.

    address: as the user wrote it. config: its config.json. tensors: name -> header entry; of an adapter, its base's.
    tokenizer: sha256 of the tokenizer's files, "" where there is none. sid_table: its SID table's hash, "" likewise.
    adapter: path or id of the LoRA adapter that is still to be merged in, "" where there is none.
    base: the adapter's base.
    pickled: the weights are pickles, which `make_ready` converts.
    """

    address: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tokenizer: str = ""
    sid_table: str = ""
    adapter: str = ""
    base: str = ""
    pickled: bool = False

    @property
    def bytes(self) -> int:
        """Size of the weights in bytes."""
        return sum(info.bytes for info in self.tensors.values())


def describe(address: str, pickle_weights: bool = False) -> Parent:
    """Look at a parent: a folder, a Hub id (`owner/name`, `owner/name@revision`), or an adapter.

    Raises:
        ValueError: there is nothing at the address, or it is incomplete; the message says what and what to do.
    """
    folder = _local(address)
    config_file = folder / ADAPTER if (folder / ADAPTER).is_file() else folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{address}: no config.json and no {ADAPTER}: this is no model and no adapter")
    if config_file.name == ADAPTER:
        return _describe_adapter(address, folder)
    tensors, pickled = _tensors(address, folder, pickle_weights)
    return Parent(
        address,
        read_json(folder / "config.json"),
        tensors,
        tokenizer=_tokenizer_hash(folder),
        sid_table=_sid_hash(folder),
        pickled=pickled,
    )


def _local(address: str) -> Path:
    """The folder itself, or a folder with the small files of a Hub id."""
    if Path(address).is_dir():
        return Path(address).resolve()
    if not _HUB_ID.fullmatch(address):
        raise ValueError(f"{address} is neither a folder nor a Hub id (owner/name)")
    return _download(address, ("*.json", "*.txt", "*.model", "*.jinja", f"{TABLE_FOLDER}/*"))


def _download(address: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = address.partition("@")
    try:
        return Path(HfApi().snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{address} cannot be had from the Hub ({type(error).__name__}: {error})") from error


def _tensors(address: str, folder: Path, pickle_weights: bool) -> tuple[dict[str, TensorInfo], bool]:
    if (folder / SINGLE).is_file() or ((folder / INDEX).is_file() and Path(address).is_dir()):
        return read_headers(folder), False
    if not Path(address).is_dir():
        return _hub_headers(address, pickle_weights)
    if pickle_weights and pickle_advice(folder):
        return {}, True
    return read_headers(folder), False  # raises, with the advice


def _hub_headers(address: str, pickle_weights: bool) -> tuple[dict[str, TensorInfo], bool]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    name, _, revision = address.partition("@")
    try:
        found = HfApi().get_safetensors_metadata(name, revision=revision or None)
    except NotASafetensorsRepoError as error:
        if pickle_weights:
            return {}, True
        raise ValueError(f"{address} has no safetensors weights; set pickle_weights: true to convert them") from error
    infos = {}
    for file, metadata in found.files_metadata.items():
        for tensor, info in metadata.tensors.items():
            infos[tensor] = TensorInfo(tensor, info.dtype, tuple(info.shape), file)
    return dict(sorted(infos.items())), False


def _tokenizer_hash(folder: Path) -> str:
    files = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    return "-".join(sha256_file(path)[:16] for path in files)


def _sid_hash(folder: Path) -> str:
    table = folder / TABLE_FOLDER
    if not table.is_dir():
        return ""
    from recllm.sid.table import SidTable

    return SidTable.load(table).hash


def _describe_adapter(address: str, folder: Path) -> Parent:
    known = read_json(folder / ADAPTER)
    if known.get("peft_type") != "LORA":
        raise ValueError(f"{address}: {ADAPTER} has peft_type {known.get('peft_type')!r}; only LORA can be merged in")
    base = str(known.get("base_model_name_or_path") or "")
    if not base:
        raise ValueError(f"{address}: {ADAPTER} does not name its base (base_model_name_or_path)")
    parent = describe(base)
    weights = folder / _ADAPTER_WEIGHTS
    if not Path(address).is_dir():
        weights = _download(address, (_ADAPTER_WEIGHTS,)) / _ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{address}: {_ADAPTER_WEIGHTS} is missing{pickle_advice(folder)}")
    _check_adapter(address, read_header(weights), parent)
    tokenizer = _tokenizer_hash(folder) or parent.tokenizer
    table = _sid_hash(folder) or parent.sid_table
    return Parent(address, parent.config, parent.tensors, tokenizer, table, adapter=address, base=base)


def _check_adapter(address: str, tensors: Mapping[str, TensorInfo], base: Parent) -> None:
    """Every pair of factors must fit a tensor of the base."""
    for name, info in tensors.items():
        target = name.removeprefix("base_model.model.")
        found = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", target)
        if not found:
            continue  # trained token rows and whole modules: PEFT checks them when it loads
        weight = f"{found.group(1)}.weight"
        if weight not in base.tensors:
            raise ValueError(f"{address}: {name} adapts {weight}, which the base {base.address} does not have")
        rows, columns = base.tensors[weight].shape
        size, expected = (info.shape[1], columns) if found.group(2) == "A" else (info.shape[0], rows)
        if size != expected:
            shape = list(base.tensors[weight].shape)
            raise ValueError(f"{address}: {name} has shape {list(info.shape)}, {weight} of the base {shape}")


def make_ready(parent: Parent, work: Path, mark: str = "") -> Path:
    """A local folder with the parent's safetensors, tokenizer and SID table; new ones below `work`.

    A folder that is there already and complete is taken again.

    Args:
        mark: the parent's `source_fingerprint`, which a new folder then tells.
    """
    if not parent.adapter and not parent.pickled:
        return Path(parent.address).resolve() if Path(parent.address).is_dir() else _download(parent.address, _WANTED)
    name = re.sub(r"[^\w.-]+", "_", parent.address).strip("_")[-80:]
    folder, done = work / name, work / name / _SOURCE_FILE
    made_of = {"address": parent.address, "base": parent.base, "pickled": parent.pickled, "fingerprint": mark}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == made_of:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    source = _merge_adapter(parent, folder) if parent.adapter else _convert(parent, folder)
    for path in sorted(source.iterdir()):
        if path.name in (*_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            shutil.copy(path, folder / path.name)
    if (source / TABLE_FOLDER).is_dir():
        shutil.copytree(source / TABLE_FOLDER, folder / TABLE_FOLDER, dirs_exist_ok=True)
    done.write_text(json.dumps(made_of), encoding="utf-8")
    return folder


def source_fingerprint(parent: Parent) -> str:
    """Identity of what the parent is made of: its folder's content, of an adapter also its base's."""
    if Path(parent.address).is_dir():
        own = fingerprint(parent.address)
    else:
        patterns = _WANTED + ((_ADAPTER_WEIGHTS,) if parent.adapter else ("*.bin",) if parent.pickled else ())
        own = _snapshot_fingerprint(_download(parent.address, patterns), patterns)
    if not parent.adapter:
        return own
    both = f"{own} {source_fingerprint(describe(parent.base))}"
    return hashlib.sha256(both.encode()).hexdigest()


def holds(folder: str | Path, mark: str) -> bool:
    """Whether a folder that `make_ready` answered with has the parent with this `source_fingerprint`."""
    folder = Path(folder)
    if (folder / _SOURCE_FILE).is_file():
        return read_json(folder / _SOURCE_FILE).get("fingerprint") == mark
    return fingerprint(folder) == mark or _snapshot_fingerprint(folder, _WANTED) == mark


def _snapshot_fingerprint(folder: Path, patterns: tuple[str, ...]) -> str:
    """Of the files that the patterns ask for: a cache has whatever else somebody fetched of the same revision."""
    from huggingface_hub.utils import filter_repo_objects

    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    with tempfile.TemporaryDirectory() as asked:  # the snapshot as a fresh cache would have it
        for name in filter_repo_objects(names, allow_patterns=list(patterns)):
            link = Path(asked) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((folder / name).resolve())
        return fingerprint(asked)


def _merge_adapter(parent: Parent, folder: Path) -> Path:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = Path(parent.address)
    if not adapter.is_dir():
        adapter = _download(parent.address, (*_WANTED, _ADAPTER_WEIGHTS))
    base = make_ready(describe(parent.base), folder.parent)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    return adapter if _tokenizer_hash(adapter) else base


def _convert(parent: Parent, folder: Path) -> Path:
    """Pickled weights as safetensors. transformers reads tensors only and refuses code."""
    from transformers import AutoModelForCausalLM

    source = Path(parent.address)
    if not source.is_dir():
        source = _download(parent.address, (*_WANTED, "*.bin"))
    AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=False).save_pretrained(folder)
    return source
