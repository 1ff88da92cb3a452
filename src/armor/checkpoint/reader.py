"""Checkpoint: an armor folder opened for reading, its metadata and tensors checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.files import ModelFiles
from armor.checkpoint.format import DAMAGED, METHOD, RUN_FILE, LayerSpec, from_metadata, short
from armor.checkpoint.joined import Joined, check_joined, joined_from_metadata
from armor.checkpoint.jsonfile import read_json
from armor.checkpoint.plain import plain_run
from armor.checkpoint.sidecar import CONFIG, read_config
from armor.checkpoint.tensorfile import DTYPES, FLOATS, StoredTensor
from armor.checkpoint.weights import read_weights, safe_path
from armor.errors import ArmorError
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import FP8
from armor.sparse.pack import valid_indices
from armor.sparse.positions import code_bits, count_ones

_PIECE = 1 << 20
_SCALES = ("core_scales", "left_scales", "right_scales")
#: Tensors that only a pruned layer has.
_OWN_PARTS = ("core_values", "core_indices", *_SCALES)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: nothing but headers and JSON is in memory.

    Attributes:
        folder: where it is. config: its config.json.
        layers: the pruned layers by name. tensors: every stored tensor by name.
        joined: tensors of the dense model that are stored in parts, by name.
        run: armor_run.json, {} without one.
    """

    folder: Path
    config: dict[str, Any]
    layers: dict[str, LayerSpec]
    joined: dict[str, Joined]
    tensors: dict[str, StoredTensor]
    run: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Open `folder`. Raises `ArmorError` unless metadata and tensors fit each other."""
        config = read_config(Path(folder))
        _layers_of(Path(folder), config)  # a foreign folder is refused before its weights are read
        return cls.of(ModelFiles(Path(folder), config, read_weights(Path(folder))))

    @classmethod
    def of(cls, files: ModelFiles) -> Checkpoint:
        """`open` for a folder whose files are read already."""
        folder, tensors = files.path, files.tensors
        layers, joined = _layers_of(folder, files.config)
        check_tensors(layers, tensors)
        check_joined(joined, layers, tensors)
        run = read_json(safe_path(folder, RUN_FILE)) if (folder / RUN_FILE).exists() else {}
        return cls(folder, files.config, layers, joined, tensors, run)

    def layer(self, name: str) -> PackedLayer:
        """One pruned layer, loaded.

        Raises:
            ArmorError: indices that do not fit its pattern, scales that are no scales, or NaN.
        """
        self.check_pattern(name)
        spec = self.layers[name]
        parts = {part: self.tensors[f"{name}.{part}"].load() for part in spec.tensor_shapes()}
        return PackedLayer.of(spec.shape[1], parts, spec.pattern)

    def check_pattern(self, name: str) -> None:
        """Raise `ArmorError` unless the indices of this layer fit its pattern, group by group.

        And unless its scales are finite and not negative, and its 8-bit floats numbers. Only a
        piece of these is in memory at a time, whatever size the file claims.
        """
        spec, stored = self.layers[name], self.tensors[f"{name}.core_indices"]
        kept = 0
        for piece, covered in _pieces(stored, spec):
            if not valid_indices(piece, spec.pattern, covered):
                raise ArmorError(f"{self.folder}: {_bad_indices(name, spec)}")
            kept += count_ones(piece) if spec.count is not None else 0
        if spec.count not in (None, kept):
            raise ArmorError(f"{self.folder}: {_bad_indices(name, spec)}")
        if spec.core == FP8.name:
            values = self.tensors[f"{name}.core_values"]
            if not all(_are_numbers(_bytes(piece)) for piece in values.chunks(_PIECE)):
                raise ArmorError(f"{self.folder}: {_not_numbers(name)}")
        for part in spec.tensor_shapes().keys() & set(_SCALES):
            scales = self.tensors[f"{name}.{part}"]
            step = _PIECE * (scales.nbytes // max(1, prod(scales.shape)))
            pieces = (
                torch.frombuffer(bytearray(piece), dtype=DTYPES[scales.dtype])
                for piece in scales.chunks(step)
            )
            if not all(map(_are_scales, pieces)):
                raise ArmorError(f"{self.folder}: {_bad_scales(name, part)}")


def is_checkpoint(folder: Path) -> bool:
    """Whether armor wrote `folder`, so that it may replace it (a link to one does not count)."""
    if folder.is_symlink() or not all((folder / name).is_file() for name in (RUN_FILE, CONFIG)):
        return False
    quantization = read_config(folder).get("quantization_config")
    packed = isinstance(quantization, dict) and quantization.get("quant_method") == METHOD
    return packed or plain_run(folder) is not None


def _layers_of(
    folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, LayerSpec], dict[str, Joined]]:
    """The pruned layers, and the tensors stored in parts, by the metadata of config.json."""
    metadata: Any = config.get("quantization_config")
    try:
        return from_metadata(metadata), joined_from_metadata(metadata.get("joined"))
    except ArmorError as error:
        raise ArmorError(f"{folder}: {error}") from None


def check_layer(name: str, layer: PackedLayer) -> None:
    """`Checkpoint.check_pattern` of a layer in memory."""
    indices = layer.core_indices
    sound = valid_indices(indices, layer.pattern, layer.in_features)
    if not sound or (layer.count is not None and count_ones(indices) != layer.count):
        raise ArmorError(_bad_indices(name, LayerSpec.of(layer)))
    if layer.levels == FP8 and not _are_numbers(layer.core_values):
        raise ArmorError(_not_numbers(name))
    for part, tensor in layer.tensors().items():
        if part in _SCALES and not _are_scales(tensor):
            raise ArmorError(_bad_scales(name, part))


def _are_scales(scales: Tensor) -> bool:
    return bool((torch.isfinite(scales) & (scales >= 0)).all())


def _are_numbers(codes: Tensor) -> bool:
    """Whether no 8-bit float is NaN, which has all bits but the sign's."""
    return bool(((codes & 127) != 127).all())


def _not_numbers(name: str) -> str:
    return f"layer {short(name)}: core_values has codes that are no numbers; {DAMAGED}"


def _bad_scales(name: str, part: str) -> str:
    return f"layer {short(name)}: {part} has values that are no scales; {DAMAGED}"


def _bad_indices(name: str, spec: LayerSpec) -> str:
    if spec.count is not None:
        return f"layer {short(name)}: its bitmap does not keep {spec.count} entries; {DAMAGED}"
    named = f"{spec.pattern.kept} of every {spec.pattern.group}"
    return f"layer {short(name)} has indices that do not name {named}; {DAMAGED}"


def _pieces(stored: StoredTensor, spec: LayerSpec) -> Iterator[tuple[Tensor, int]]:
    """Indices, uint8 (rows, bytes), a megabyte or so at a time, and how many inputs they cover.

    Whole rows, or a part of a long one that ends with a code. (Of 2:4 all bytes are alike.)
    """
    height, width = stored.shape
    inputs = spec.shape[1]
    if width <= _PIECE:
        for chunk in stored.chunks(_PIECE // width * width):
            yield _bytes(chunk).view(-1, width), inputs
        return
    step = code_bits(spec.pattern) << 17
    covered = (8 << 17) * (spec.pattern.group or 1)
    for row in range(height):
        left = inputs
        for chunk in replace(stored, offset=stored.offset + row * width, nbytes=width).chunks(step):
            yield _bytes(chunk).view(1, -1), min(left, covered)
            left -= covered


def _bytes(chunk: bytes) -> Tensor:
    return torch.frombuffer(bytearray(chunk), dtype=torch.uint8)


def read_layers(folder: str | Path) -> Iterator[tuple[str, PackedLayer]]:
    """The pruned layers of a checkpoint, one at a time. Raises `ArmorError` if it is damaged."""
    checkpoint = Checkpoint.open(folder)
    for name in checkpoint.layers:
        yield name, checkpoint.layer(name)


def check_tensors(layers: Mapping[str, LayerSpec], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise `ArmorError` unless exactly the packed tensors that `layers` asks for are there."""
    for name, spec in layers.items():
        dtypes = set()
        for part, shape in spec.tensor_shapes().items():
            stored = tensors.get(f"{name}.{part}")
            if stored is None:
                raise ArmorError(f"layer {short(name)}: tensor {part} is missing; {DAMAGED}")
            if stored.shape != shape:
                raise ArmorError(
                    f"layer {short(name)}: {part} has shape {short(stored.shape)}, the metadata"
                    f" says {shape}; {DAMAGED}"
                )
            if (wanted := spec.code_dtypes().get(part)) is not None:
                if stored.dtype != wanted:
                    raise ArmorError(
                        f"layer {short(name)}: {part} is {stored.dtype}, not {wanted}; {DAMAGED}"
                    )
            elif stored.dtype not in FLOATS:
                raise ArmorError(
                    f"layer {short(name)}: {part} is {stored.dtype}, not a float; {DAMAGED}"
                )
            else:
                dtypes.add(stored.dtype)
        if len(dtypes) > 1:
            raise ArmorError(f"layer {short(name)}: mixed dtypes {sorted(dtypes)}; {DAMAGED}")
    for tensor in tensors:
        name, _, part = tensor.rpartition(".")
        known = layers[name].tensor_shapes() if name in layers else {}
        if (part in _OWN_PARTS or name in layers) and part not in (*known, "bias"):
            raise ArmorError(
                f"tensor {short(tensor)} does not fit the metadata of config.json; {DAMAGED}"
            )
