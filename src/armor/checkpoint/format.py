"""The checkpoint's metadata: ``quantization_config`` of config.json, checked to the last key."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError
from armor.sparsity import packed_shapes

METHOD = "armor"
FORMAT = 1
PATTERN = "2:4"
RUN_FILE = "armor_run.json"
_KEYS = {"quant_method", "format", "pattern", "layers", "joined"}
_LAYER_KEYS = {"shape", "block"}
DAMAGED = "the checkpoint is damaged: copy or download it again"
_MAX_SIZE = 2**31
_NAME = re.compile(r"[\w-]{1,256}(\.[\w-]{1,256}){0,32}")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


@dataclass(frozen=True)
class LayerSpec:
    """What the metadata says of one pruned layer: shape (out, in), wrapper block or None."""

    shape: tuple[int, int]
    block: int | None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each stored tensor by the last part of its name (without the bias)."""
        rows, cols = self.shape
        values, indices = packed_shapes(rows, cols)
        shapes: dict[str, tuple[int, ...]] = {"core_values": values, "core_indices": indices}
        if (size := self.block) is not None:
            shapes["left"] = (-(-rows // size), size, size)
            shapes["right"] = (-(-cols // size), size, size)
        return shapes


def to_metadata(layers: Mapping[str, LayerSpec]) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint with these layers."""
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "pattern": PATTERN,
        "layers": {
            name: {"shape": list(spec.shape), "block": spec.block} for name, spec in layers.items()
        },
    }


def from_metadata(data: Any) -> dict[str, LayerSpec]:
    """The layers of a ``quantization_config``.

    Raises:
        ArmorError: not armor's, a newer format, an unknown key, or values that make no sense.
    """
    if not isinstance(data, dict) or data.get("quant_method") != METHOD:
        raise ArmorError('not an armor checkpoint: config.json has no quant_method "armor"')
    number = data.get("format")
    if type(number) is not int or number < 1:
        raise ArmorError(
            f"checkpoint format {short(number)} is not a positive whole number; {DAMAGED}"
        )
    if number > FORMAT:
        raise ArmorError(
            f"checkpoint format {short(number)} was written by a newer armor; upgrade armor"
        )
    if unknown := sorted(map(str, set(data) - _KEYS)):
        raise ArmorError(
            f"unknown setting {short(unknown[0])} in quantization_config; upgrade armor"
        )
    if data.get("pattern") != PATTERN:
        raise ArmorError(f"pattern {short(data.get('pattern'))} is not {PATTERN}; upgrade armor")
    layers = data.get("layers")
    if not isinstance(layers, dict) or not layers:
        raise ArmorError(f"quantization_config lists no layers; {DAMAGED}")
    return {name: _layer(name, entry) for name, entry in layers.items()}


def _layer(name: Any, entry: Any) -> LayerSpec:
    if not isinstance(name, str) or not isinstance(entry, dict):
        raise ArmorError(f"layer {short(name)} has no description; {DAMAGED}")
    if not _NAME.fullmatch(name):
        raise ArmorError(f"layer {short(name)}: that is no name of a layer; {DAMAGED}")
    if unknown := sorted(map(str, set(entry) - _LAYER_KEYS)):
        raise ArmorError(f"layer {short(name)}: unknown setting {short(unknown[0])}; upgrade armor")
    shape, block = entry.get("shape"), entry.get("block")
    if not (isinstance(shape, (list, tuple)) and len(shape) == 2 and all(map(is_size, shape))):
        raise ArmorError(
            f"layer {short(name)}: shape {short(shape)} is not two positive sizes; {DAMAGED}"
        )
    if block is not None and (not is_size(block) or block % 4):
        raise ArmorError(
            f"layer {short(name)}: block {short(block)} is not a multiple of 4; {DAMAGED}"
        )
    if block is not None and block >= min(shape) + 4:
        raise ArmorError(f"layer {short(name)}: block {block} is larger than the matrix; {DAMAGED}")
    return LayerSpec((shape[0], shape[1]), block)


def is_size(value: Any) -> bool:
    """Whether `value` is a whole number that a dimension can have."""
    return type(value) is int and 0 < value < _MAX_SIZE


def short(value: Any) -> str:
    """`value` as a file gave it, in one line of bounded length, for a message."""
    text = _REPR.repr(value)  # bounded work, too: however deep or long the value is
    return text if len(text) <= 60 else text[:57] + "..."
