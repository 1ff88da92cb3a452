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
        dtype: of the dense weight, as safetensors names it.
        values, indices, wrappers: as stored.
        dense: of the dense weight in the same dtype.
        scales: of rounded values, as stored.
    """

    dtype: str
    values: int
    indices: int
    wrappers: int
    dense: int
    scales: int = 0

    @classmethod
    def of(cls, name: str, spec: LayerSpec, tensors: Mapping[str, StoredTensor]) -> StoredSize:
        """Of the layer `name` among the `tensors` of its checkpoint."""
        stored = {part: tensors[f"{name}.{part}"] for part in spec.tensor_shapes()}
        floats = stored["core_values" if spec.core is None else "core_scales"]

        def total(*parts: str) -> int:
            return sum(stored[part].nbytes for part in parts if part in stored)

        return cls(
            floats.dtype,
            total("core_values"),
            total("core_indices"),
            total("left", "right"),
            floats.nbytes // prod(floats.shape) * prod(spec.shape),
            total("core_scales", "left_scales", "right_scales"),
        )

    @property
    def packed(self) -> int:
        """The layer as stored."""
        return self.values + self.indices + self.wrappers + self.scales

    @property
    def overhead(self) -> float:
        """Wrappers over the dense weight."""
        return self.wrappers / self.dense
