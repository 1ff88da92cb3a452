"""ArmorConfig: the ``quantization_config`` of a checkpoint, as transformers carries it about."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from armor.checkpoint.format import LayerSpec, from_metadata, to_metadata


class ArmorConfig(QuantizationConfigMixin):
    """Metadata of a pruned model. Raises `ArmorError` unless it is sound and of a known format."""

    def __init__(self, **metadata: Any) -> None:
        # transformers copies, saves and compares __dict__: plain metadata and nothing else.
        self.__dict__.update(to_metadata(from_metadata({"quant_method": "armor", **metadata})))

    def specs(self) -> dict[str, LayerSpec]:
        """The pruned layers by name."""
        return from_metadata(self.__dict__)
