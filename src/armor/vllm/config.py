"""ArmorQuantization: which method vLLM's layers take, by the metadata of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.utils import WeightsMapper

from armor.checkpoint.format import METHOD, from_metadata, short
from armor.checkpoint.joined import joined_from_metadata
from armor.checkpoint.reader import Checkpoint
from armor.errors import ArmorError
from armor.vllm.experts import ArmorExpertsMethod
from armor.vllm.linear import ArmorLinearMethod
from armor.vllm.preflight import check, open_checkpoint

#: Tensors that vLLM does not get to see: the methods read them from the files.
_PACKED = (".core_values", ".core_indices", ".left", ".right")
_WEIGHT = ".weight"


class ArmorQuantization(QuantizationConfig):
    """The ``quantization_config`` of a checkpoint, as vLLM holds it; it is sent to every worker.

    vLLM's own loading brings each tensor into a parameter of the shape that the model's class
    expects. Parts of a fused layer may differ in all of that here, so the methods of the layers
    read the packed tensors themselves, when vLLM has loaded everything else.

    Attributes:
        layers: the pruned layers, by their names in the checkpoint.
        stored: from vLLM's name of each stored matrix to that in the checkpoint.
        parts: from vLLM's name of a matrix that is stored in parts to the names of these.
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        """Raises `ArmorError` unless the metadata is sound and of a known format."""
        super().__init__()
        self.layers = from_metadata(metadata)
        self._joined = joined_from_metadata(metadata.get("joined"))
        self.stored: dict[str, str] = {}
        self.parts: dict[str, list[str]] = {}
        self._model: tuple[str, str | None] = ("", None)
        self._taken: set[str] = set()

    def get_name(self) -> str:
        """The method's name in config.json."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those that every backend has."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU: what Triton needs."""
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: everything is in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ArmorQuantization:
        """Called in the front end. Raises `ArmorError` as the constructor does."""
        return cls(config)

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Called in the front end, before any worker starts: the whole folder is checked.

        Raises:
            ArmorError: the folder is damaged, or not that of its config.json.
        """
        checkpoint = check(model_name, revision)
        self._model = (model_name, revision)
        matrices = {n.removesuffix(_WEIGHT) for n in checkpoint.tensors if n.endswith(_WEIGHT)}
        self.stored = {name: name for name in (*self.layers, *matrices)}
        self.parts = {
            tensor.removesuffix(_WEIGHT): list(whole.parts)
            for tensor, whole in self._joined.items()
            if tensor.endswith(_WEIGHT)
        }

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Rename as vLLM's class of the model does."""

        def renamed(name: str) -> str:
            new: str | None = hf_to_vllm_mapper.map_name(name + _WEIGHT)
            return name if new is None else new.removesuffix(_WEIGHT)

        self.stored = {renamed(name): stored for name, stored in self.stored.items()}
        self.parts = {renamed(name): parts for name, parts in self.parts.items()}

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """What vLLM's loading is to skip; asked for when the model is built, so all is counted."""
        self.check_taken()
        return WeightsMapper(orig_to_new_suffix=dict.fromkeys(_PACKED))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method of a layer; None where it is vLLM's own, for embeddings and attention."""
        if isinstance(layer, RoutedExperts):
            return self._experts_method(layer, prefix)
        if not isinstance(layer, (LinearBase, ParallelLMHead)):
            return None
        names = self._constituents(prefix)
        if self._take(name for each in names for name in each):
            return ArmorLinearMethod(self, prefix, names)
        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    def checkpoint(self) -> Checkpoint:
        """Opened in this process."""
        return open_checkpoint(*self._model)

    def check_taken(self) -> None:
        """Raise `ArmorError` if no layer of vLLM's has asked for some pruned layer.

        Of a model on several pipeline stages a process has some of the decoder blocks only.
        """
        left = self.layers.keys() - self._taken
        if get_pp_group().world_size > 1:
            here = set(map(_block, self._taken))
            left = {name for name in left if _block(name) in here and _block(name) != ""}
        if left:
            raise ArmorError(
                f"vLLM's class of this model has no linear for {len(left)} pruned layers, the first"
                f" {short(min(left))}: run `armor export`, and serve the dense model"
            )

    def _take(self, names: Iterable[str]) -> bool:
        """Whether any of the stored matrices is pruned; these count as taken."""
        pruned = self.layers.keys() & set(names)
        self._taken |= pruned
        return bool(pruned)

    def _constituents(self, prefix: str) -> list[list[str]]:
        """The names in the checkpoint of what a layer is made of: by output, each in parts."""
        parent, _, leaf = prefix.rpartition(".")
        found = []
        for name in self.packed_modules_mapping.get(leaf, [leaf]):
            path = f"{parent}.{name}" if parent else name
            parts = self.parts.get(path, [self.stored.get(path, path)])
            found.append(parts)
        return found

    def _experts_method(self, layer: RoutedExperts, prefix: str) -> QuantizeMethodBase | None:
        naming = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
        names = [
            [self.stored.get(path, path) for path in (f"{prefix}.{number}.{n}" for n in naming)]
            for number in range(layer.global_num_experts)
        ]
        if not self._take(name for expert in names for name in expert):
            return None
        return ArmorExpertsMethod(self, layer.moe_config, prefix, names)


def _block(name: str) -> str:
    """The number of the decoder block that a layer is in, or ""."""
    found = re.search(r"\.(\d+)\.", name)
    return found[1] if found else ""
