"""ArmorQuantizer: swaps linear layers for `ArmorLinear` before transformers loads the weights.

Works on transformers 4.57 and 5.x; arguments that only one of them passes stay in ``kwargs``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from armor.checkpoint.format import DAMAGED, METHOD, LayerSpec
from armor.checkpoint.reader import check_layer, check_tensors
from armor.checkpoint.tensorfile import read_file
from armor.checkpoint.weights import INDEX, SINGLE, read_weights
from armor.errors import ArmorError
from armor.hf.config import ArmorConfig
from armor.hf.dequantize import multiply_out
from armor.linear import ArmorLinear, armor_layers, prepare
from armor.models.experts import fused_experts, is_expert, split_experts
from armor.models.fused import split_linear
from armor.models.modules import put_module
from armor.models.renaming import fuses_any_experts, fuses_experts, layer_renaming
from armor.models.transposed import transposed_shape


def register() -> None:
    """Add the method "armor" to the tables of transformers."""
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = ArmorConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = ArmorQuantizer


class ArmorQuantizer(HfQuantizer):
    """Loads checkpoints that `armor prune` wrote; it prunes nothing itself."""

    quantization_config: ArmorConfig

    def __init__(self, quantization_config: ArmorConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            raise ArmorError(
                "from_pretrained cannot prune a dense model: run `armor prune MODEL --out DIR`,"
                " then load DIR"
            )
        super().__init__(quantization_config, **kwargs)
        self._split: dict[str, nn.Module] = {}  # fused experts, before they were split, by name
        self._conversions: list[Any] = []  # transformers' own, for such experts

    def _convert_model_for_quantization(self, model: nn.Module) -> None:
        """Nothing to patch; the base class would ask for accelerate."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        layers = self.quantization_config.specs()
        _check_files(model.config.name_or_path, layers, kwargs.get("checkpoint_files"))
        self.swap_layers(model)

    def swap_layers(self, model: Any) -> None:
        """Put the layers of the checkpoint, without values, in the place of the model's own.

        Raises:
            ArmorError: a layer of the checkpoint that the model lacks or that has another shape.
        """
        layers = self.quantization_config.specs()
        rename = layer_renaming(model)
        if any(map(is_expert, layers)):
            fused = dict(fused_experts(model))
            self._split = {name: fused[name] for name in split_experts(model, layers)}
        for tensor, whole in self.quantization_config.joined_tensors().items():
            if not tensor.endswith(".weight") or any(map(is_expert, whole.parts)):
                continue
            if all(_has(model, rename(part)) for part in whole.parts):  # transformers splits it
                continue
            if (path := _find_path(model, rename(tensor.removesuffix(".weight")))) is not None:
                split_linear(model, path, tuple(whole.parts.values()))
        for name, spec in layers.items():
            path = _find_path(model, rename(name))
            if path is not None:
                _replace(model, path, spec)
        if not hasattr(HfQuantizer, "update_weight_conversions") and fuses_any_experts(model):
            _refuse_dense_experts(model, self._split)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, layer in armor_layers(model):
            layer.placeholder = None
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
            if not layer.core_indices.is_meta:
                check_layer(name, layer.packed())
        prepare(model)
        # The tensors are plain floats: .half() and .float() are as safe as on a dense model.
        model.is_quantized = False
        return model

    def update_weight_conversions(self, conversions: list[Any], *args: Any) -> list[Any]:
        """transformers 5 only: experts that were split are loaded as the checkpoint has them."""
        conversions = super().update_weight_conversions(conversions, *args)
        if not self._split:
            return conversions
        self._conversions = [one for one in conversions if fuses_experts(one)]
        return [one for one in conversions if not fuses_experts(one)]

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """transformers 4 only: a missing packed tensor would otherwise be filled with noise."""
        for name, layer in armor_layers(model):
            for part in layer.state_dict():
                if f"{name}.{part}" in missing_keys:
                    raise ArmorError(f"layer {name}: tensor {part} is missing; {DAMAGED}")
        return missing_keys

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """``model.dequantize()``: the pruned weights multiplied out, in place; a plain model.

        Args:
            dtype: of those weights; None keeps their own.

        Raises:
            ArmorError: layers that are offloaded.
        """
        multiply_out(model, self._split, dtype)
        if self._split and hasattr(model, "_weight_conversions"):  # how transformers 5 saves them
            model._weight_conversions = [*self._conversions, *model._weight_conversions]
        self.remove_quantization_config(model)
        for module in model.modules():
            if (config := getattr(module, "config", None)) is not None:
                config.__dict__.pop("_is_quantized", None)
        return model

    def get_accelerator_warm_up_factor(self) -> int:
        """transformers 4 only: allocate for the packed tensors as they are (2 means 1.0 times)."""
        return 2

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """``save_pretrained`` writes the packed tensors as they are."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``generate`` may compile the decoding step: a layer is one operator."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are, and the factors once `armor.unfreeze` was called."""
        return True


def _refuse_dense_experts(model: nn.Module, split: Iterable[str]) -> None:
    """Early versions of transformers 5 would fuse dense experts, whatever armor asks for."""
    for name in split:
        if any(isinstance(module, nn.Linear) for module in model.get_submodule(name).modules()):
            raise ArmorError(
                f"{name} has experts that are not pruned, which this version of transformers cannot"
                " load: pip install -U transformers"
            )


def _check_files(source: Any, layers: dict[str, LayerSpec], files: list[str] | None) -> None:
    """Compare metadata and headers, where the files are known, before anything is allocated."""
    folder = Path(str(source))
    tensors = {}
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        tensors = read_weights(folder)
    given = [Path(file) for file in files or ()]
    if not {stored.path for stored in tensors.values()}.issuperset(given):
        tensors = {name: stored for file in given for name, stored in read_file(file).items()}
    if tensors:
        check_tensors(layers, tensors)


def _find_path(model: Any, name: str) -> str | None:
    """Where layer `name` of the checkpoint sits in `model`; None if `model` lacks that part.

    A model without a head (AutoModel) has the same layers without the prefix, one with a head those
    of a checkpoint without, with it.
    """
    prefix = f"{model.base_model_prefix}."
    for path in (name, name.removeprefix(prefix), prefix + name):
        if _has(model, path):
            return path
    if name.startswith(prefix) or "." in name:
        raise ArmorError(
            f"the model has no layer {name}, which the checkpoint has pruned; {DAMAGED}"
        )
    return None


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _replace(model: nn.Module, path: str, spec: LayerSpec) -> None:
    old: Any = model.get_submodule(path)
    found = (old.out_features, old.in_features) if isinstance(old, nn.Linear) else None
    if spec.transposed:
        found = transposed_shape(old)
    if found != spec.shape:
        raise ArmorError(
            f"layer {path} is a {type(old).__name__} {found or ''}, the checkpoint says a linear"
            f" (out, in) = {spec.shape}; {DAMAGED}"
        )
    rows, cols = spec.shape
    new = ArmorLinear(
        cols,
        rows,
        spec.block,
        old.bias is not None,
        dtype=old.weight.dtype,
        device="meta",
        pattern=spec.pattern,
        count=spec.count,
        core=spec.core,
        wrappers=spec.wrappers,
    )
    new.transposed = spec.transposed
    # Model classes initialise weights of their linears before or after these are loaded, whether
    # that is needed or not; what they write here is lost.
    new.placeholder = torch.empty(spec.shape, dtype=old.weight.dtype, device="meta")
    new.placeholder._is_hf_initialized = True  # type: ignore[attr-defined]
    put_module(model, path, new.train(old.training))
