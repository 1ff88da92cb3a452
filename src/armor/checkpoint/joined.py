"""Joined: a tensor of the dense model that is stored as several layers.

Fused projections (qkv, gate_up) and the 3-D tensors of fused experts are pruned part by part; the
dense export puts the parts back together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.format import DAMAGED, LayerSpec, is_size, short
from armor.checkpoint.stacked import PLAIN_ROWS, Stacking, cut_stored
from armor.checkpoint.tensorfile import StoredTensor
from armor.errors import ArmorError

_FLAGS = ("transposed", "interleaved", "bias")
_KEYS = {"shape", "parts", *_FLAGS}


@dataclass(frozen=True)
class Joined:
    """A tensor of the dense model.

    Attributes:
        shape: of the tensor: (..., in), of biases (..., out).
        parts: the names of its parts, in the order of their rows, and the rows of each. A part is
            a pruned layer, or a matrix stored as ``<part>.weight``.
        stacking: of the parts in what each expert has, where they are not just rows.
        bias: whether it holds the biases of the parts, stored as ``<part>.bias``.
    """

    shape: tuple[int, ...]
    parts: dict[str, int]
    stacking: Stacking = PLAIN_ROWS
    bias: bool = False

    def tensor(self, part: str) -> str:
        """The name of the tensor of a part that is not pruned."""
        return f"{part}.bias" if self.bias else f"{part}.weight"

    def part_shape(self, rows: int) -> tuple[int, ...]:
        """That of a part with so many rows: (out, in), of biases (out,)."""
        if self.bias:
            return (rows,)
        return rows, self.shape[-2 if self.stacking.transposed else -1]

    @property
    def rows(self) -> int:
        """Of all parts together."""
        return math.prod(self.shape) // math.prod(self.part_shape(1))

    def is_sound(self) -> bool:
        """Whether the parts fill the tensor; where it is stacked, equally."""
        if sum(self.parts.values()) != self.rows:
            return False
        if self.stacking.is_plain:
            return True
        each, left = divmod(len(self.parts), self.shape[0])
        alike = len(set(self.parts.values())) == 1
        return len(self.shape) == (2 if self.bias else 3) and alike and each > 0 and not left

    def cut(self, stored: StoredTensor) -> dict[str, StoredTensor]:
        """The parts in the same file as the tensor `stored`, by name."""
        if not self.stacking.is_plain:
            count = len(self.parts) // self.shape[0]
            return dict(zip(self.parts, cut_stored(stored, self.stacking, count), strict=True))
        found = {}
        size, begin = stored.nbytes // self.rows, stored.offset
        for part, rows in self.parts.items():
            found[part] = replace(
                stored, shape=self.part_shape(rows), offset=begin, nbytes=rows * size
            )
            begin += rows * size
        return found

    def join(self, load: Callable[[str], Tensor]) -> Tensor:
        """The tensor, of its parts, which `load` gives by the names of their own tensors."""
        names = [self.tensor(part) for part in self.parts]
        if self.stacking.is_plain:
            return torch.cat([*map(load, names)]).view(self.shape)
        count = len(names) // self.shape[0]
        experts = (
            self.stacking.join([*map(load, names[begin : begin + count])])
            for begin in range(0, len(names), count)
        )
        first = next(experts)
        whole = torch.empty(self.shape, dtype=first.dtype, device="cpu")
        for number, expert in enumerate(chain([first], experts)):
            whole[number] = expert
        return whole


def joined_to_metadata(joined: Mapping[str, Joined]) -> dict[str, Any]:
    """``joined`` of a ``quantization_config``."""
    return {
        tensor: {
            "shape": list(whole.shape),
            "parts": dict(whole.parts),
            **{key: True for key, said in _flags(whole).items() if said},
        }
        for tensor, whole in joined.items()
    }


def joined_from_metadata(data: Any) -> dict[str, Joined]:
    """The inverse; None gives {}. Raises `ArmorError` for anything else that is not sound."""
    found = {}
    for tensor, entry in _mapping("joined", data).items():
        whole = _mapping(tensor, entry)
        if unknown := sorted(set(whole) - _KEYS):
            raise ArmorError(
                f"joined {short(tensor)}: unknown setting {short(unknown[0])}; upgrade armor"
            )
        shape = whole.get("shape")
        parts = dict(_mapping(tensor, whole.get("parts")))
        sizes = (*shape, *parts.values()) if isinstance(shape, (list, tuple)) else ()
        if len(sizes) < 3 or not shape or not all(map(is_size, sizes)):
            raise ArmorError(
                f"joined {short(tensor)} lacks its shape, or the rows of its parts; {DAMAGED}"
            )
        flags = {key: whole.get(key, False) for key in _FLAGS}
        if not all(isinstance(said, bool) for said in flags.values()):
            raise ArmorError(f"joined {short(tensor)} says neither true nor false; {DAMAGED}")
        bias = flags.pop("bias")
        if len(shape) < (1 if bias else 2) + flags["transposed"]:
            raise ArmorError(f"joined {short(tensor)} has too few sizes; {DAMAGED}")
        found[tensor] = Joined(tuple(shape), parts, Stacking(**flags), bias)
    return found


def check_joined(
    joined: Mapping[str, Joined],
    layers: Mapping[str, LayerSpec],
    tensors: Mapping[str, StoredTensor],
) -> None:
    """Raise `ArmorError` unless every part is there and they fill their tensor exactly."""
    parts: set[str] = set()
    for tensor, whole in joined.items():
        if tensor in tensors or tensor.removesuffix(".weight") in layers:
            raise ArmorError(f"{short(tensor)} is stored whole and in parts; prune the model again")
        own = set(map(whole.tensor, whole.parts))
        if twice := parts & own:
            raise ArmorError(f"{short(min(twice))} is part of two tensors; {DAMAGED}")
        parts |= own
        for part, rows in whole.parts.items():
            dense = tensors.get(whole.tensor(part))
            pruned = part in layers and not whole.bias
            shape = layers[part].shape if pruned else dense.shape if dense else None
            if shape != whole.part_shape(rows):
                raise ArmorError(
                    f"{short(tensor)}: its part {short(part)} is missing or misshapen; {DAMAGED}"
                )
        if not whole.is_sound():
            raise ArmorError(
                f"the parts of {short(tensor)} do not fill {short(whole.shape)}; {DAMAGED}"
            )


def in_parts(
    tensors: Mapping[str, StoredTensor], joined: Mapping[str, Joined]
) -> dict[str, StoredTensor]:
    """`tensors` with those of `joined` cut into their parts, which are in the same file.

    Raises:
        ArmorError: a tensor is not there, or has another shape.
    """
    found = {}
    for name, stored in tensors.items():
        if name not in joined:
            found[name] = stored
            continue
        whole = joined[name]
        if stored.shape != whole.shape or not whole.is_sound():
            raise ArmorError(f"{short(name)} is {stored.shape}, its parts make {whole.shape}")
        found |= {whole.tensor(part): piece for part, piece in whole.cut(stored).items()}
    return found


def _flags(whole: Joined) -> dict[str, bool]:
    """What the metadata says of a tensor where it is so, in the order of `_FLAGS`."""
    said = (whole.stacking.transposed, whole.stacking.interleaved, whole.bias)
    return dict(zip(_FLAGS, said, strict=True))


def _mapping(what: str, data: Any) -> Mapping[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ArmorError(f"{short(what)} in quantization_config is not a table; {DAMAGED}")
    return data
