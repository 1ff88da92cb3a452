"""ArmorConfig: the ``quantization_config`` of a checkpoint, as transformers holds it."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from armor.checkpoint.format import LayerSpec, from_metadata, to_metadata
from armor.checkpoint.joined import Joined, joined_from_metadata, joined_to_metadata


class ArmorConfig(QuantizationConfigMixin):
    """Metadata of a pruned model. Raises `ArmorError` unless it is sound and of a known format."""

    def __init__(self, **metadata: Any) -> None:
        # transformers copies, saves and compares __dict__: plain metadata and nothing else.
        self.__dict__.update(to_metadata(from_metadata({"quant_method": "armor", **metadata})))
        if joined := joined_from_metadata(metadata.get("joined")):
            self.__dict__["joined"] = joined_to_metadata(joined)

    def specs(self) -> dict[str, LayerSpec]:
        """The pruned layers by name."""
        return from_metadata(self.__dict__)

    def joined_tensors(self) -> dict[str, Joined]:
        """The dense tensors that are stored in parts."""
        return joined_from_metadata(self.__dict__.get("joined"))
