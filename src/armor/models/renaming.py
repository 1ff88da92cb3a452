"""From the names of tensors in a checkpoint to those of a model's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def renaming(model: Any) -> Callable[[str], str]:
    """What transformers calls a tensor of the checkpoint once it is in `model`.

    Most names are the same. transformers 5 has its own for a few models, whose checkpoints it
    still writes with the old ones (Mixtral's ``block_sparse_moe`` is ``mlp``).
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # transformers 4: the names are the same
        return lambda name: name
    rules = [
        rule
        for rule in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(rule, WeightRenaming)
    ]

    def renamed(name: str) -> str:
        for rule in rules:
            name, _ = rule.rename_source_key(name)
        return name

    return renamed


def layer_renaming(model: Any) -> Callable[[str], str]:
    """`renaming` for the names of layers."""
    rename = renaming(model)
    return lambda name: rename(f"{name}.weight").removesuffix(".weight")


def fuses_experts(conversion: Any) -> bool:
    """Whether a conversion of transformers 5 merges the experts of a checkpoint into one tensor."""
    targets = getattr(conversion, "target_patterns", ())
    return hasattr(conversion, "operations") and any("experts" in target for target in targets)
