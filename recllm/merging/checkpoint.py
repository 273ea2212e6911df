"""A checkpoint on disk: its tensors by header, and its tensors by mapping, one page at a time.

The safetensors format is eight bytes of length, a JSON header with dtype, shape and offsets of every tensor, then the
tensors. The header is all that a preflight needs. `Weights` maps the files once and read-only; a tensor is a view of
the mapping, so the pages belong to the system's cache, and `release` gives a tensor's pages back.
Source: https://huggingface.co/docs/safetensors (format section).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from recllm.provenance import read_json

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
TORCH_DTYPES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}
_LARGEST_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header tells it. `offset` counts bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.numel * BYTES[self.dtype]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name, without reading them.

    Raises:
        ValueError: the file is torn or is no safetensors file; the message names it.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{path} is no safetensors file, or a torn one: fetch or save it again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{path}: its header is not JSON ({error}): fetch or save it again") from error
    infos = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        info = TensorInfo(name, entry["dtype"], tuple(entry["shape"]), path.name, 8 + length + begin)
        if info.dtype not in BYTES:
            raise ValueError(f"{path}: tensor {name} has the dtype {info.dtype}; merging knows {', '.join(BYTES)}")
        if info.bytes != end - begin or info.offset + info.bytes > size:
            raise ValueError(f"{path}: tensor {name} ends beyond the file: fetch or save the file again")
        infos[name] = info
    return infos


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint folder, one file or sharded, sorted by name.

    Raises:
        ValueError: weights are missing, are pickles, or a shard does not hold what the index promises.
    """
    if (folder / SINGLE).is_file():
        files, promised = [folder / SINGLE], None
    elif (folder / INDEX).is_file():
        promised = read_json(folder / INDEX).get("weight_map", {})
        files = [folder / name for name in sorted(set(promised.values()))]
    else:
        raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}{pickle_advice(folder)}")
    infos: dict[str, TensorInfo] = {}
    for path in files:
        if path.parent != folder or not path.is_file():
            raise ValueError(f"{folder / INDEX} names {path.name}, which is not there: fetch the checkpoint again")
        infos |= read_header(path)
    for name, file in (promised or {}).items():
        if name not in infos or infos[name].file != file:
            raise ValueError(f"{folder / INDEX} promises tensor {name} in {file}, which does not hold it")
    return dict(sorted(infos.items()))


def pickle_advice(folder: Path) -> str:
    """What to do about pickled weights, where the folder has some; else an empty text."""
    found = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not found:
        return ""
    return (
        f"; it has pickled weights ({found[0]}), which can run code when they are read. Set pickle_weights: true to "
        "have transformers convert them (tensors only), or ask for a safetensors version"
    )


class Weights:
    """The tensors of one checkpoint folder, mapped read-only.

    Do not write into what `tensor` answers with: it is a view of the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.infos = read_headers(self.folder)
        self._maps: dict[str, mmap.mmap] = {}
        self._bytes: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.infos)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def _map(self, file: str) -> torch.Tensor:
        import torch

        if file not in self._bytes:
            with (self.folder / file).open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes, see the class
                self._bytes[file] = torch.frombuffer(self._maps[file], dtype=torch.uint8)
        return self._bytes[file]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as a view of the mapped file, in its stored dtype and shape."""
        import torch

        info = self.infos[name]
        dtype = getattr(torch, TORCH_DTYPES[info.dtype])
        raw = self._map(info.file)[info.offset : info.offset + info.bytes]
        if info.offset % BYTES[info.dtype]:  # foreign writers need not align; a copy does
            raw = raw.clone()
        return raw.view(dtype).reshape(info.shape)

    def release(self, name: str) -> None:
        """Give the pages that only this tensor touches back to the system; a later read faults them in again."""
        info = self.infos[name]
        if info.file not in self._maps or not hasattr(mmap, "MADV_DONTNEED"):
            return
        begin = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (info.offset + info.bytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, begin, length)


def stored_dtype(parents: Iterable[Weights]) -> str:
    """The dtype that the parents' floating tensors promote to, by torch's name."""
    import torch

    stored = {info.dtype for weights in parents for info in weights.infos.values() if info.dtype[0] in "FB"}
    dtypes = [getattr(torch, TORCH_DTYPES[name]) for name in sorted(stored - {"BOOL"})]
    return str(reduce(torch.promote_types, dtypes or [torch.float32])).removeprefix("torch.")


def write_header(infos: Mapping[str, TensorInfo]) -> bytes:
    """Length and header of a safetensors file that holds these tensors in this order, padded to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, info in infos.items():
        entries[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.bytes],
        }
        position += info.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
