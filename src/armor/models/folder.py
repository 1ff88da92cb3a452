"""A model's folder, checked before transformers or tokenizers read any of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from armor.checkpoint.format import METHOD, from_metadata, short
from armor.checkpoint.sidecar import check_sidecar, read_config
from armor.checkpoint.tensorfile import StoredTensor
from armor.checkpoint.weights import read_weights
from armor.errors import ArmorError

# What a config may ask transformers to build a number of.
_COUNTS = re.compile(r"^(n|num)_.*(layer|block|expert|label|stage)|(layers|experts|depth)$")
_MOST = 4096
_SLACK = 1 << 20
_FOREIGN = 16  # weights to a stored number, in the densest packing of other methods (2 bits)


def check_folder(folder: Path, trust_remote_code: bool = False) -> dict[str, StoredTensor]:
    """Every stored tensor of a model's folder by name; nothing but headers and JSON is read.

    Raises:
        ArmorError: damaged, huge or foreign files, weights that are missing, pickled or lie outside
            of the folder, code that would have to be run, counts that the weights cannot fill.
    """
    config = read_config(folder)
    if (folder / "adapter_config.json").exists():
        raise ArmorError(
            f"{folder} holds an adapter: merge it into its model first, for example with peft's"
            " merge_and_unload"
        )
    if config.get("transformers_weights") is not None:
        raise ArmorError(
            f"{folder}: config.json names a weights file of its own (transformers_weights), which"
            " is not supported: delete that line and name the file model.safetensors"
        )
    if config.get("auto_map") and not trust_remote_code and not _known(config.get("model_type")):
        raise ArmorError(
            f"{folder}: model type {short(config.get('model_type'))} needs code from the model's"
            " folder, which armor does not run: use a version of transformers that knows the type"
        )
    # Older transformers run it from a local folder whatever they are told of trust.
    if (folder / "custom_generate").exists() and not trust_remote_code:
        raise ArmorError(
            f"{folder} holds code for generation (custom_generate), which armor does not run:"
            " delete that folder"
        )
    check_sidecar(folder)
    tensors = read_weights(folder)
    for key, value in _numbers(config):
        if value > max(_MOST, len(tensors)) and _COUNTS.search(key):
            raise ArmorError(
                f"{folder}: config.json says {short(key)} is {short(value)}, more than its"
                f" {len(tensors)} tensors can fill: copy or download the model again"
            )
    return tensors


def check_fits(config: Any, tensors: Mapping[str, StoredTensor], folder: Path) -> int:
    """The number of parameters of the model that `config` describes, built without memory.

    Args:
        config: a `transformers.PretrainedConfig` of a causal language model.
        tensors: what `check_folder` found.

    Raises:
        ArmorError: the model would be far larger than what is stored.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    asked = sum(parameter.numel() for parameter in model.parameters())
    stored = _weights(getattr(config, "quantization_config", None), tensors)
    # Twice, for tied weights; whatever differs by less is found, by name, when it is loaded.
    if asked > 2 * stored + _SLACK:
        raise ArmorError(
            f"{folder}: config.json describes {asked:.3g} parameters, its files hold {stored:.3g}:"
            " copy or download the model again"
        )
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if buffers > 2 * stored + (_SLACK << 10):
        raise ArmorError(
            f"{folder}: config.json asks for {buffers:.3g} numbers beside the weights: copy or"
            " download the model again"
        )
    return asked


def _weights(quantization: Any, tensors: Mapping[str, StoredTensor]) -> int:
    """How many weights the tensors stand for, at most."""
    count = sum(math.prod(stored.shape) for stored in tensors.values())
    if quantization is None:
        return count
    data = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if data.get("quant_method") != METHOD:
        return _FOREIGN * count
    return count + sum(math.prod(spec.shape) for spec in from_metadata(data).values())


def _numbers(config: Any, key: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _numbers(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _numbers(value, key)
    elif isinstance(config, int):
        yield key, config


def _known(model_type: Any) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES
