"""check_reload: whether a checkpoint could be loaded, before there is any of its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers.quantizers.auto  # noqa: F401 (first: importing it registers armor)

from armor.checkpoint.format import LayerSpec, to_metadata
from armor.checkpoint.joined import Joined, joined_to_metadata
from armor.checkpoint.tensorfile import StoredTensor
from armor.errors import ArmorError, reason
from armor.hf.config import ArmorConfig
from armor.hf.quantizer import ArmorQuantizer
from armor.linear import armor_layers
from armor.models.folder import ModelFolder, one_line_errors
from armor.models.load import empty_model
from armor.models.renaming import find_stored


def check_reload(
    folder: ModelFolder, layers: Mapping[str, LayerSpec], joined: Mapping[str, Joined]
) -> None:
    """Build the model of a checkpoint without weights, and do what transformers does when it loads.

    Args:
        folder: of the dense model. layers: those to be pruned, by name in the checkpoint.
        joined: tensors of the dense model that the checkpoint has in parts.

    Raises:
        ArmorError: that fails, or tensors of the layers would not be found.
    """
    model = empty_model(folder)
    architecture = type(model).__name__
    try:
        with one_line_errors("transformers"):
            _load_nothing(model, folder.tensors, layers, joined)
    except ArmorError as error:
        raise ArmorError(
            f"{architecture}: once pruned it could not be loaded again ({reason(error)}): use"
            " another version of transformers, or leave dense what this names, with --exclude"
        ) from error


def _load_nothing(
    model: Any,
    tensors: Mapping[str, StoredTensor],
    layers: Mapping[str, LayerSpec],
    joined: Mapping[str, Joined],
) -> None:
    """All that happens to `model` when its checkpoint is loaded, but the reading."""
    metadata = to_metadata(layers) | {"joined": joined_to_metadata(joined)}
    quantizer = ArmorQuantizer(ArmorConfig(**metadata))
    quantizer.swap_layers(model)
    stored = dict(tensors)
    for tensor, parts in joined.items():
        whole = stored.pop(tensor)
        stored |= {parts.tensor(part): whole for part in parts.parts}
    for name, spec in layers.items():
        whole = stored.pop(f"{name}.weight", next(iter(tensors.values())))
        stored |= {f"{name}.{part}": whole for part in spec.tensor_shapes()}  # only names count
    found = find_stored(model, stored)
    for name, layer in armor_layers(model):
        for part, _ in layer.named_parameters():
            if f"{name}.{part}" not in found:
                raise ArmorError(f"nothing would be stored for {name}.{part}")
    for module in model.modules():  # building it has initialised it
        module.__dict__.pop("_is_hf_initialized", None)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    initialize = model._initialize_missing_keys
    asks_for_keys = "missing_keys" in inspect.signature(initialize).parameters  # transformers 4
    initialize(*([],) * asks_for_keys, True)
    quantizer.postprocess_model(model)
