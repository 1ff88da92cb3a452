"""The checkpoint's metadata: ``quantization_config`` of config.json, checked to the last key."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES, INT8, SCALE_GROUP, WRAPPERS
from armor.sparse.pack import packed_shapes
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

METHOD = "armor"
FORMAT = 1
RUN_FILE = "armor_run.json"
_KEYS = {"quant_method", "format", "pattern", "group", "layers", "joined"}
_LAYER_KEYS = {"shape", "block", "pattern", "count", "transposed", "core", "wrappers"}
DAMAGED = "the checkpoint is damaged: copy or download it again"
_MAX_SIZE = 2**31
_NAME = re.compile(r"[\w-]{1,256}(\.[\w-]{1,256}){0,32}")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


@dataclass(frozen=True)
class LayerSpec:
    """What the metadata says of one pruned layer.

    Attributes:
        shape: (out, in). block: of the wrappers, or None. pattern: of the core.
        count: kept entries of an unstructured core, else None.
        transposed: whether the dense model keeps the weight as (in, out), as GPT-2 does.
        core, wrappers: what they are rounded to, keys of `CORES` and `WRAPPERS`; None: not.
    """

    shape: tuple[int, int]
    block: int | None
    pattern: Pattern = TWO_OF_FOUR
    count: int | None = None
    transposed: bool = False
    core: str | None = None
    wrappers: str | None = None

    @classmethod
    def of(cls, layer: PackedLayer, transposed: bool = False) -> LayerSpec:
        """What describes `layer`."""
        wrappers = None if layer.left_scales is None else INT8.name
        own = layer.shape, layer.block, layer.pattern, layer.count
        return cls(*own, transposed, layer.core, wrappers)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each stored tensor by the last part of its name (without the bias)."""
        rows, cols = self.shape
        values, indices = packed_shapes(rows, cols, self.pattern, self.count)
        shapes: dict[str, tuple[int, ...]] = {"core_values": values, "core_indices": indices}
        if (size := self.block) is not None:
            shapes["left"] = (-(-rows // size), size, size)
            shapes["right"] = (-(-cols // size), size, size)
        if self.core is not None:
            shapes["core_values"] = (rows, values[1] // CORES[self.core].per_byte)
            shapes["core_scales"] = (rows, CORES[self.core].scale_count(values[1]))
        if self.wrappers is not None:
            shapes["left_scales"] = shapes["left"][:2]
            shapes["right_scales"] = shapes["right"][:2]
        return shapes

    def code_dtypes(self) -> dict[str, str]:
        """The dtypes of the stored tensors that are no floats, as safetensors names them."""
        dtypes = {"core_indices": "U8"}
        if self.core is not None:
            dtypes["core_values"] = "I8" if self.core == INT8.name else "U8"
        if self.wrappers is not None:
            dtypes |= {"left": "I8", "right": "I8"}
        return dtypes


def common_pattern(layers: Mapping[str, LayerSpec]) -> Pattern:
    """The pattern of most layers; of several such, the first."""
    counts = Counter(spec.pattern for spec in layers.values())
    return max(counts, key=counts.__getitem__)


def to_metadata(layers: Mapping[str, LayerSpec]) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint with these layers."""
    common = common_pattern(layers)
    described: dict[str, dict[str, Any]] = {}
    for name, spec in layers.items():
        described[name] = {"shape": list(spec.shape), "block": spec.block}
        if spec.pattern != common:
            described[name]["pattern"] = str(spec.pattern)
        if spec.count is not None:
            described[name]["count"] = spec.count
        if spec.transposed:
            described[name]["transposed"] = True
        if spec.core is not None:
            described[name]["core"] = spec.core
        if spec.wrappers is not None:
            described[name]["wrappers"] = spec.wrappers
    rounded = any(spec.core is not None for spec in layers.values())
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "pattern": str(common),
        **({"group": SCALE_GROUP} if rounded else {}),
        "layers": described,
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
    common = _pattern(data.get("pattern"))
    layers = data.get("layers")
    if not isinstance(layers, dict) or not layers:
        raise ArmorError(f"quantization_config lists no layers; {DAMAGED}")
    found = {name: _layer(name, entry, common) for name, entry in layers.items()}
    _check_group(data, any(spec.core is not None for spec in found.values()))
    return found


def _check_group(data: Mapping[str, Any], rounded: bool) -> None:
    """Raise `ArmorError` unless rounded cores, and they alone, have scales for known groups."""
    group = data.get("group")
    if rounded and "group" not in data:
        raise ArmorError(f"rounded cores, but no group of values that share a scale; {DAMAGED}")
    if "group" in data and not rounded:
        raise ArmorError(f"a group of {short(group)} values, but no rounded core; {DAMAGED}")
    if rounded and (type(group) is not int or group != SCALE_GROUP):
        raise ArmorError(
            f"scales for groups of {short(group)} values: this armor reads groups of {SCALE_GROUP};"
            " upgrade armor"
        )


def _pattern(text: Any) -> Pattern:
    if isinstance(text, str) and len(text) < 9:
        with suppress(ArmorError):
            pattern = Pattern.parse(text)
            if str(pattern) == text:  # one spelling each: what is written is what was read
                return pattern
    raise ArmorError(f"pattern {short(text)} is none that this armor knows; upgrade armor")


def _layer(name: Any, entry: Any, common: Pattern) -> LayerSpec:
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
    pattern = _pattern(entry["pattern"]) if "pattern" in entry else common
    count = entry.get("count")
    if pattern.is_unstructured and not (type(count) is int and 0 < count <= shape[0] * shape[1]):
        raise ArmorError(
            f"layer {short(name)}: count {short(count)} is no number of entries of it; {DAMAGED}"
        )
    if not pattern.is_unstructured and "count" in entry:
        raise ArmorError(f"layer {short(name)}: pattern {pattern} has no count; {DAMAGED}")
    transposed = entry.get("transposed", False)
    if not isinstance(transposed, bool):
        raise ArmorError(f"layer {short(name)}: transposed is not true or false; {DAMAGED}")
    core, wrappers = _rounded(name, entry, pattern, block)
    return LayerSpec((shape[0], shape[1]), block, pattern, count, transposed, core, wrappers)


def _rounded(
    name: str, entry: Mapping[str, Any], pattern: Pattern, block: int | None
) -> tuple[str | None, str | None]:
    """What core and wrappers of a layer are rounded to."""
    for key, valid in (("core", CORES), ("wrappers", WRAPPERS)):
        if key in entry and not (isinstance(entry[key], str) and entry[key] in valid):
            raise ArmorError(
                f"layer {short(name)}: {key} {short(entry[key])} is none that this armor knows;"
                " upgrade armor"
            )
    if "core" in entry and pattern != TWO_OF_FOUR:
        raise ArmorError(f"layer {short(name)}: a rounded core of {pattern}; {DAMAGED}")
    if "wrappers" in entry and ("core" not in entry or block is None):
        raise ArmorError(f"layer {short(name)}: nothing to round its wrappers for; {DAMAGED}")
    return entry.get("core"), entry.get("wrappers")


def is_size(value: Any) -> bool:
    """Whether `value` is a whole number that a dimension can have."""
    return type(value) is int and 0 < value < _MAX_SIZE


def short(value: Any) -> str:
    """`value` as a file gave it, in one line of bounded length, for a message."""
    text = _REPR.repr(value)  # bounded work, too: however deep or long the value is
    return text if len(text) <= 60 else text[:57] + "..."
