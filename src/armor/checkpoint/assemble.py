"""assemble: the files of a model and its pruned layers make a checkpoint folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.files import ModelFiles
from armor.checkpoint.folder import building
from armor.checkpoint.format import RUN_FILE, LayerSpec, to_metadata
from armor.checkpoint.joined import Joined, in_parts, joined_to_metadata
from armor.checkpoint.jsonfile import write_json, write_text
from armor.checkpoint.readme import readme
from armor.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from armor.checkpoint.sidecar import CONFIG, README, copy_sidecar
from armor.checkpoint.tensorfile import StoredTensor, describe
from armor.errors import ArmorError
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

WEIGHT = ".weight"


def assemble(
    source: ModelFiles,
    out: Path,
    layers: Mapping[str, PackedLayer | Mapping[str, StoredTensor]],
    run: dict[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    joined: Mapping[str, Joined] | None = None,
    replace: bool = False,
    patterns: Mapping[str, Pattern] | None = None,
    transposed: Collection[str] = (),
) -> None:
    """Write the checkpoint `out`: the model `source` with ``<layer>.weight`` of `layers` packed.

    All other tensors are copied byte by byte; the model is never in memory, only the packed
    tensors of one shard. `out` appears at the very end. The same input gives the same bytes.

    Args:
        source: the files of a dense model.
        layers: pruned layers by name, in the dtype of the weight they replace: in memory, or their
            tensors in files, from which they are copied. Each is asked for once, in the order of
            the source's files, so the mapping may load them lazily.
        run: contents of armor_run.json; its ``layers`` may hold a record for each layer.
        joined: tensors of the source that are stored in parts, by name.
        replace: an `out` that exists is replaced, at the very end.
        patterns: of the layers that are given as files, 2:4 for those not in it.
        transposed: layers with a weight that the source keeps as (in, out).

    Raises:
        ArmorError: a source that is not dense, an `out` that exists, a layer that does not fit the
            source or holds NaN or inf, a full disk.
    """
    source.check_dense()
    joined, patterns = joined or {}, patterns or {}
    tensors = in_parts(source.tensors, joined)
    for name in layers:
        if name + WEIGHT not in tensors:
            raise ArmorError(f"{source.path} has no tensor {name + WEIGHT!r} to replace")
    with building(out, replace) as folder:
        specs = {}
        writer = ShardWriter(folder, max_shard_bytes)
        for tensor, stored in tensors.items():
            name = tensor.removesuffix(WEIGHT)
            if name == tensor or name not in layers:
                writer.add(tensor, stored)
                continue
            given, turned = layers[name], name in transposed
            shape = stored.shape[::-1] if turned else stored.shape
            parts: Mapping[str, Tensor | StoredTensor]
            if isinstance(given, PackedLayer):
                layer, parts = given, given.tensors()
            else:
                loaded = {part: values.load() for part, values in given.items()}
                layer, parts = (
                    PackedLayer.of(shape[-1], loaded, patterns.get(name, TWO_OF_FOUR)),
                    given,
                )
            _check_fits(name, layer, shape, stored.dtype)
            specs[name] = LayerSpec.of(layer, turned)
            for part, values in parts.items():
                writer.add(f"{name}.{part}", values)
        writer.finish()
        specs = {name: specs[name] for name in layers}
        copy_sidecar(source.path, folder)
        metadata = to_metadata(specs)
        if joined:
            metadata["joined"] = joined_to_metadata(joined)
        write_json(folder / CONFIG, source.config | {"quantization_config": metadata})
        write_json(folder / RUN_FILE, run)
        write_text(folder / README, readme(specs))


def _check_fits(name: str, layer: PackedLayer, shape: tuple[int, ...], wanted: str) -> None:
    if layer.shape != shape:
        raise ArmorError(f"layer {name}: shape {layer.shape} does not fit {shape}")
    spec = LayerSpec.of(layer)
    expected = spec.tensor_shapes()
    for part, tensor in layer.tensors().items():
        dtype, shape, _ = describe(tensor)
        if shape != expected.get(part):
            raise ArmorError(f"layer {name}: {part} is {shape}, not {expected.get(part)}")
        if dtype != spec.code_dtypes().get(part, wanted):
            raise ArmorError(f"layer {name}: {part} is {dtype}, the model is {wanted}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArmorError(f"layer {name}: {part} holds NaN or inf in {dtype}: prune it again")
