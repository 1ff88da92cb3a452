"""Joined: a tensor of the dense model that is stored as several layers.

Fused projections (qkv, gate_up) and the 3-D tensors of fused experts are pruned part by part; the
dense export puts the parts back together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from armor.checkpoint.format import DAMAGED, LayerSpec, is_size, short
from armor.checkpoint.tensorfile import StoredTensor
from armor.errors import ArmorError


@dataclass(frozen=True)
class Joined:
    """A tensor of the dense model.

    Attributes:
        shape: of the tensor, (..., in).
        parts: the names of its parts, in the order of their rows, and the rows of each. A part is
            a pruned layer, or a matrix stored as ``<part>.weight``.
    """

    shape: tuple[int, ...]
    parts: dict[str, int]


def joined_to_metadata(joined: Mapping[str, Joined]) -> dict[str, Any]:
    """``joined`` of a ``quantization_config``."""
    return {
        tensor: {"shape": list(whole.shape), "parts": dict(whole.parts)}
        for tensor, whole in joined.items()
    }


def joined_from_metadata(data: Any) -> dict[str, Joined]:
    """The inverse; None gives {}. Raises `ArmorError` for anything else that is not sound."""
    found = {}
    for tensor, entry in _mapping("joined", data).items():
        whole = _mapping(tensor, entry)
        shape = whole.get("shape")
        parts = dict(_mapping(tensor, whole.get("parts")))
        sizes = (*shape, *parts.values()) if isinstance(shape, (list, tuple)) else ()
        if len(sizes) < 3 or not shape or not all(map(is_size, sizes)):
            raise ArmorError(
                f"joined {short(tensor)} lacks its shape, or the rows of its parts; {DAMAGED}"
            )
        found[tensor] = Joined(tuple(shape), parts)
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
        if twice := parts & whole.parts.keys():
            raise ArmorError(f"{short(min(twice))} is part of two tensors; {DAMAGED}")
        parts |= whole.parts.keys()
        for part, rows in whole.parts.items():
            dense = tensors.get(f"{part}.weight")
            shape = layers[part].shape if part in layers else dense.shape if dense else None
            if shape != (rows, whole.shape[-1]):
                raise ArmorError(
                    f"{short(tensor)}: its part {short(part)} is missing or misshapen; {DAMAGED}"
                )
        if sum(whole.parts.values()) != math.prod(whole.shape[:-1]):
            raise ArmorError(
                f"the parts of {short(tensor)} do not fill {short(whole.shape)}; {DAMAGED}"
            )


def in_parts(
    tensors: Mapping[str, StoredTensor], joined: Mapping[str, Joined]
) -> dict[str, StoredTensor]:
    """`tensors` with those of `joined` cut into ``<part>.weight``, which are in the same file.

    Raises:
        ArmorError: a tensor is not there, or has another shape.
    """
    found = {}
    for name, stored in tensors.items():
        if name not in joined:
            found[name] = stored
            continue
        whole = joined[name]
        rows = math.prod(stored.shape[:-1])
        if stored.shape != whole.shape or rows != sum(whole.parts.values()):
            raise ArmorError(f"{short(name)} is {stored.shape}, its parts make {whole.shape}")
        size, begin = stored.nbytes // rows, stored.offset
        for part, count in whole.parts.items():
            shape = (count, stored.shape[-1])
            found[f"{part}.weight"] = replace(
                stored, shape=shape, offset=begin, nbytes=count * size
            )
            begin += count * size
    return found


def _mapping(what: str, data: Any) -> Mapping[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ArmorError(f"{short(what)} in quantization_config is not a table; {DAMAGED}")
    return data
