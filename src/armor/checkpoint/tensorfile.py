"""One safetensors file: reading its header safely, writing it tensor by tensor, mapping it.

Copied tensors move as raw bytes, so any dtype passes through unchanged; bytes are deterministic.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from armor.checkpoint.format import short
from armor.checkpoint.jsonfile import parse_json
from armor.errors import ArmorError, cannot_read

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
#: The dtypes of weights, by their names in the files.
FLOATS = ("F64", "F32", "F16", "BF16")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 16 << 20
_MAX_DIMS, _MAX_SIZE = 16, 2**40  # an empty tensor may claim any size in its other dimensions


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: `nbytes` bytes from `offset` on.

    `dtype` is the file's own name for it, such as "BF16".
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def chunks(self, size: int = _CHUNK) -> Iterator[bytes]:
        """The raw bytes, a few megabytes at a time: `size`, but for the last."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.nbytes
            while left:
                chunk = file.read(min(left, size))
                if not chunk:
                    raise ArmorError(f"{self.path} became shorter while it was read; start again")
                left -= len(chunk)
                yield chunk

    def prefetch(self) -> None:
        """Ask the system to read these bytes into its cache in the background, where it can."""
        if hasattr(os, "posix_fadvise"):
            with self.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), self.offset, self.nbytes, os.POSIX_FADV_WILLNEED)

    def load(self) -> Tensor:
        """The tensor, in memory. Raises `ArmorError` for a dtype that is not in `DTYPES`."""
        if self.dtype not in DTYPES:
            raise ArmorError(f"{self.path.name}: dtype {self.dtype} is not one of {list(DTYPES)}")
        if not self.nbytes:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype], device="cpu")
        data = bytearray(self.nbytes)  # filled in place: a join would hold the bytes twice
        at = 0
        for chunk in self.chunks():
            data[at : at + len(chunk)] = chunk
            at += len(chunk)
        return torch.frombuffer(data, dtype=DTYPES[self.dtype]).reshape(self.shape)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the order of their bytes; only the header is read.

    Raises:
        ArmorError: the file is missing, truncated, damaged or not safetensors.
    """
    try:
        # Checks the header's length, every offset and every size against the file. (With "pt" torch
        # would map the file so that the system sets its size aside.)
        with path.open("rb") as file:  # first: the library calls any failure "No such file"
            with safe_open(path, framework="np"):
                pass
            start = 8 + (length := int.from_bytes(file.read(8), "little"))
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, start, name, entry) for name, entry in header.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise cannot_read(path, error, "copy or download it again") from None
    return dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes, item[0])))


def map_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that armor wrote, by name, mapped into memory.

    Changes to them do not reach the file. The pages are read when they are used, are shared between
    processes, and can be dropped by the system at any time: they need no memory of their own.
    """
    tensors: dict[str, Tensor] = {}
    for name, stored in read_file(path).items():
        dtype = DTYPES[stored.dtype]
        if not stored.nbytes:
            tensors[name] = torch.empty(stored.shape, dtype=dtype, device="cpu")
            continue
        pages = np.memmap(path, np.uint8, "c", stored.offset, stored.nbytes)
        tensors[name] = torch.from_numpy(pages).view(dtype).reshape(stored.shape)
    return tensors


def _stored(path: Path, start: int, name: str, entry: Any) -> StoredTensor:
    """One entry of a header that the library found sound, with what it lets pass refused."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            if len(shape) <= _MAX_DIMS and all(size < _MAX_SIZE for size in shape):
                return StoredTensor(path, dtype, tuple(shape), start + begin, end - begin)
    raise ValueError(f"tensor {short(name)} has an impossible description")


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor | StoredTensor],
    metadata: Mapping[str, str] | None = None,
    sync: bool = True,
) -> None:
    """Write `tensors` (CPU or GPU, or stored elsewhere), and fsync if asked to."""
    # Wide dtypes first keeps every tensor aligned to its element size, as the format asks.
    order = sorted(tensors, key=lambda name: (-_element_size(tensors[name]), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        dtype, shape, size = describe(tensors[name])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in order:
            tensor = tensors[name]
            if isinstance(tensor, StoredTensor):
                file.writelines(tensor.chunks())
            else:
                file.write(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                )
        file.flush()
        if sync:
            os.fsync(file.fileno())


def write_whole_file(
    path: Path,
    tensors: Mapping[str, Tensor | StoredTensor],
    metadata: Mapping[str, str] | None = None,
    sync: bool = True,
) -> None:
    """`write_file` under a temporary name that becomes `path`: complete, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        write_file(partial, tensors, metadata, sync)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def describe(tensor: Tensor | StoredTensor) -> tuple[str, tuple[int, ...], int]:
    """dtype name, shape, bytes."""
    if isinstance(tensor, StoredTensor):
        return tensor.dtype, tensor.shape, tensor.nbytes
    return _NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes


def _element_size(tensor: Tensor | StoredTensor) -> int:
    if isinstance(tensor, StoredTensor):
        return tensor.nbytes // max(1, math.prod(tensor.shape))
    return tensor.element_size()
