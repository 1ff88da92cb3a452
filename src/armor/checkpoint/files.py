"""ModelFiles: what a model folder holds: its config.json, and where its tensors are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armor.checkpoint.sidecar import read_config
from armor.checkpoint.tensorfile import StoredTensor
from armor.checkpoint.weights import read_weights
from armor.errors import ArmorError


@dataclass(frozen=True)
class ModelFiles:
    """What is read of a model folder, once: JSON and the headers of its safetensors files.

    Attributes:
        path: the folder.
        config: config.json as it is in the file.
        tensors: every stored tensor by its name in the files.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @classmethod
    def read(cls, folder: str | Path) -> ModelFiles:
        """Read `folder`. Raises `ArmorError`: see `read_config` and `read_weights`."""
        folder = Path(folder)
        return cls(folder, read_config(folder), read_weights(folder))

    def check_dense(self) -> None:
        """Raise `ArmorError` if the model is quantised or pruned already."""
        if (quantization := self.config.get("quantization_config")) is not None:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise ArmorError(
                f"{self.path} is already compressed (quant_method {method!r}): start from the dense"
                " model, in bfloat16, float16 or float32"
            )
