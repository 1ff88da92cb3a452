"""export_dense: the checkpoint multiplied out, a plain model folder with nothing of armor in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from armor.checkpoint.folder import building, check_outside
from armor.checkpoint.joined import Joined
from armor.checkpoint.jsonfile import write_json
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from armor.checkpoint.sidecar import CONFIG, copy_sidecar


def export_dense(
    folder: str | Path,
    out: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the dense twin of checkpoint `folder` to `out`: each weight is ``A S B``.

    Products in float32, rounded once to the dtype of the model; one shard is in memory at a time;
    `out` appears at the very end. `progress` is called with (layers done, layers in all).

    Raises:
        ArmorError: not a sound armor checkpoint, an `out` that exists, or a full disk.
    """
    checkpoint = Checkpoint.open(folder)
    check_outside(Path(out), checkpoint.folder)
    total = len(checkpoint.layers)
    with building(Path(out)) as target:
        writer = ShardWriter(target, max_shard_bytes)
        done = 0
        parts = {
            (part, joined.bias): whole
            for whole, joined in checkpoint.joined.items()
            for part in joined.parts
        }
        written: set[str] = set()
        for tensor, stored in checkpoint.tensors.items():
            name, _, part = tensor.rpartition(".")
            if (whole := parts.get((name, part == "bias"))) is not None:
                if whole not in written:
                    joined = checkpoint.joined[whole]
                    writer.add(whole, _join(checkpoint, joined))
                    written.add(whole)
                    if not joined.bias:
                        done += sum(part in checkpoint.layers for part in joined.parts)
                    progress(done, total)
            elif name not in checkpoint.layers or part == "bias":
                writer.add(tensor, stored)
            elif part == "core_values":
                weight = checkpoint.layer(name).dense()
                turned = checkpoint.layers[name].transposed
                writer.add(f"{name}.weight", weight.T.contiguous() if turned else weight)
                done += 1
                progress(done, total)
        writer.finish()
        copy_sidecar(checkpoint.folder, target)
        plain = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
        write_json(target / CONFIG, plain)


def _join(checkpoint: Checkpoint, whole: Joined) -> Tensor:
    """The parts put together, each from its layer or its own tensor."""

    def load(tensor: str) -> Tensor:
        name = tensor.removesuffix(".weight")
        pruned = name != tensor and name in checkpoint.layers
        return checkpoint.layer(name).dense() if pruned else checkpoint.tensors[tensor].load()

    return whole.join(load)
