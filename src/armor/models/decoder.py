"""The text decoder inside a model that may also hold vision and audio towers, by structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from armor.models.modules import module_name

_TEXT = ("input_ids", "inputs_embeds")  # main inputs of models that read tokens


def decoder_lists(model: nn.Module, sizes: Mapping[str, int]) -> dict[str, int]:
    """Those lists of modules that may hold the blocks of the text decoder.

    They are under the nearest module that also holds the token embeddings, and not in a model
    inside the model whose input is something else than tokens, such as pixels.

    Args:
        sizes: of each list of modules, by its name: how many weights of linears it holds.

    Returns:
        Some of `sizes`, none of them 0. All of them, where the model does not say what its token
        embeddings are.
    """
    filled = {name: size for name, size in sizes.items() if size}
    embeddings = _embeddings(model)
    if embeddings is None:
        return filled
    towers = tuple(f"{name}." for name in _towers(model, embeddings))
    text = {name: size for name, size in filled.items() if not f"{name}.".startswith(towers)}
    around = embeddings
    while around:
        around = around.rpartition(".")[0]
        near = {n: size for n, size in text.items() if not around or n.startswith(f"{around}.")}
        if near:
            return near
    return {}


def decoder_config(config: Any, index: int) -> Any:
    """The config of decoder block `index`: its own where blocks differ, else the text model's."""
    text = config.get_text_config(decoder=True)
    return text.per_layer_config[index] if getattr(text, "is_heterogeneous", False) else text


def _embeddings(model: Any) -> str | None:
    """The name of the token embeddings; None for a module that is no model of transformers."""
    if not hasattr(model, "get_input_embeddings"):
        return None
    return module_name(model, model.get_input_embeddings())


def _towers(model: Any, embeddings: str) -> list[str]:
    """Models inside the model with a config of another kind than the text's, or that read something
    else than tokens, and that hold no token embeddings."""
    kinds = {type(model.config), type(model.config.get_text_config(decoder=True))}
    return [
        name
        for name, module in model.named_modules()
        if name
        and hasattr(module, "main_input_name")
        and (module.main_input_name not in _TEXT or type(module.config) not in kinds)
        and not embeddings.startswith(f"{name}.")
    ]
