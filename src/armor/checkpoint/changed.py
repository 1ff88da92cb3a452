"""write_changed: a checkpoint again, some of its tensors with other values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.folder import building, check_outside
from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.jsonfile import write_json, write_text
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.readme import readme
from armor.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from armor.checkpoint.sidecar import CONFIG, README, copy_sidecar
from armor.checkpoint.tensorfile import describe
from armor.errors import ArmorError


def write_changed(
    checkpoint: Checkpoint,
    out: Path,
    changed: Mapping[str, Tensor],
    run: dict[str, Any],
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `checkpoint` to `out` with `changed` in the place of tensors; the rest byte by byte.

    Args:
        changed: by name, of the same shape and dtype. run: contents of armor_run.json.
        replace: an `out` that exists is replaced, at the very end.

    Raises:
        ArmorError: a tensor that does not fit or holds NaN or inf, an `out` that exists or lies in
            the checkpoint's folder, a full disk.
    """
    check_outside(out, checkpoint.folder)
    for name, tensor in changed.items():
        if describe(tensor) != describe(checkpoint.tensors[name]):
            raise ArmorError(f"{name}: {describe(tensor)} is not what the checkpoint has there")
        if not bool(torch.isfinite(tensor).all()):
            raise ArmorError(f"{name} holds NaN or inf in {tensor.dtype}")
    with building(out, replace) as folder:
        writer = ShardWriter(folder, max_shard_bytes)
        for name, stored in checkpoint.tensors.items():
            writer.add(name, changed.get(name, stored))
        writer.finish()
        copy_sidecar(checkpoint.folder, folder)
        write_json(folder / CONFIG, checkpoint.config)
        write_json(folder / RUN_FILE, run)
        write_text(folder / README, readme(checkpoint.layers))
