"""The checkpoint of a method whose weights are not packed: an ordinary model folder.

Its weights are dense, so transformers loads it without armor, and it is no smaller than the model
that it was made from; `armor_run.json` says how many bytes a compact form would take.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.files import ModelFiles
from armor.checkpoint.folder import building
from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.joined import Joined, in_parts
from armor.checkpoint.jsonfile import read_json, write_json
from armor.checkpoint.shards import ShardWriter
from armor.checkpoint.sidecar import CONFIG, copy_sidecar
from armor.checkpoint.tensorfile import StoredTensor
from armor.errors import ArmorError

#: What the record of such a checkpoint has, in place of metadata in config.json.
PLAIN = "plain"
_WEIGHT = ".weight"


def assemble_plain(
    source: ModelFiles,
    out: Path,
    weights: Mapping[str, StoredTensor],
    run: dict[str, Any],
    joined: Mapping[str, Joined],
    replace: bool = False,
    transposed: Collection[str] = (),
) -> None:
    """Write the folder `out`: the model `source` with other weights, each where it was.

    Args:
        weights: (out, in), by layer name, in the dtype of those they replace.
        run, joined, replace, transposed: as `armor.checkpoint.assemble.assemble` takes them.

    Raises:
        ArmorError: a source that is not dense, an `out` that exists, a weight that holds NaN or
            inf, a full disk.
    """
    source.check_dense()
    parts = in_parts(source.tensors, joined)

    def given(tensor: str) -> Tensor | StoredTensor:
        name = tensor.removesuffix(_WEIGHT)
        if name == tensor or name not in weights:
            return parts[tensor]
        found = weights[name].load()
        if not bool(torch.isfinite(found).all()):
            raise ArmorError(f"layer {name}: the weight holds NaN or inf in {found.dtype}")
        return found.T.contiguous() if name in transposed else found

    def loaded(tensor: str) -> Tensor:
        found = given(tensor)
        return found if isinstance(found, Tensor) else found.load()

    with building(out, replace) as folder:
        writer = ShardWriter(folder)
        for tensor in source.tensors:
            if (whole := joined.get(tensor)) is None:
                writer.add(tensor, given(tensor))
            else:
                writer.add(tensor, whole.join(loaded))
        writer.finish()
        copy_sidecar(source.path, folder)
        write_json(folder / CONFIG, source.config)
        write_json(folder / RUN_FILE, run)


def plain_run(folder: Path) -> dict[str, Any] | None:
    """The record of the run that wrote `folder`, if that is the folder of `assemble_plain`."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    run = read_json(path)
    return run if isinstance(run.get(PLAIN), dict) else None
