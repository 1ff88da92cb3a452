"""How many bytes a pruned layer takes in a checkpoint, and how many it took before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.tensorfile import StoredTensor


@dataclass(frozen=True)
class StoredSize:
    """Bytes of one layer, without its bias.

    Attributes:
        dtype: of the values, as safetensors names it.
        values, indices, wrappers: as stored.
        dense: of the dense weight in the same dtype.
    """

    dtype: str
    values: int
    indices: int
    wrappers: int
    dense: int

    @classmethod
    def of(cls, name: str, spec: LayerSpec, tensors: Mapping[str, StoredTensor]) -> StoredSize:
        """Of the layer `name` among the `tensors` of its checkpoint."""
        stored = {part: tensors[f"{name}.{part}"] for part in spec.tensor_shapes()}
        values = stored["core_values"]
        return cls(
            values.dtype,
            values.nbytes,
            stored["core_indices"].nbytes,
            sum(stored[part].nbytes for part in ("left", "right") if part in stored),
            values.nbytes // prod(values.shape) * prod(spec.shape),
        )

    @property
    def packed(self) -> int:
        """The layer as stored."""
        return self.values + self.indices + self.wrappers

    @property
    def overhead(self) -> float:
        """Wrappers over the dense weight."""
        return self.wrappers / self.dense
