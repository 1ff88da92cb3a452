"""ShardWriter: safetensors shards of a bounded size and their index."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from armor.checkpoint.jsonfile import write_json
from armor.checkpoint.tensorfile import StoredTensor, describe, write_file
from armor.checkpoint.weights import INDEX, SINGLE

MAX_SHARD_BYTES = 4_000_000_000


class ShardWriter:
    """Collects tensors into shards of at most `max_bytes` (a larger tensor gets its own).

    Only the tensors in memory of the shard at hand are held; stored ones are copied from file to
    file. Nothing is complete before `finish`.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._pending: dict[str, Tensor | StoredTensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor | StoredTensor) -> None:
        """Add one tensor; may write a shard."""
        size = describe(tensor)[2]
        if self._pending and self._pending_bytes + size > self._max_bytes:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += size
        self._total_bytes += size

    def finish(self) -> None:
        """Write the last shard, give all their final names and, if there are several, an index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._folder / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self._folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(self._folder / INDEX, index)

    def _flush(self) -> None:
        write_file(self._part(len(self._shards)), self._pending)
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"
