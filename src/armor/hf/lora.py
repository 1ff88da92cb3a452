"""LoRA: adapters of the library peft on the pruned layers of a model."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import Any

from armor.errors import ArmorError
from armor.linear import ArmorLinear, armor_layers

#: What peft may begin adapters with; other ways of it subtract something from the weight below.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
#: Of peft's ``target_modules``: every linear but the output head.
_ALL = "all-linear"


def lora(config: Any, model: Any = None) -> Any:
    """Let ``peft.get_peft_model(model, lora(config))`` put adapters on `ArmorLinear` layers, too.

    Only the adapters are trained; the packed weights stay as they are, and gradients pass through
    them. To load saved adapters: ``PeftModel.from_pretrained(model, folder, config=lora(config))``.

    Args:
        config: a ``peft.LoraConfig``, which is changed.
        model: whose pruned layers ``target_modules="all-linear"`` means; else not needed.

    Returns:
        `config`.

    Raises:
        ArmorError: peft is not installed, a way to begin adapters that changes the weights, or
            "all-linear" without a model.
    """
    if config.target_modules == _ALL:
        if model is None:
            raise ArmorError(f'target_modules="{_ALL}" needs the model: armor.lora(config, model)')
        config.target_modules = {path.rpartition(".")[2] for path, _ in armor_layers(model)}
    if config.init_lora_weights not in _STARTS:
        raise ArmorError(
            f"init_lora_weights={config.init_lora_weights!r} changes the weights below, which are"
            f" packed; valid: {', '.join(map(str, _STARTS))}"
        )
    config._register_custom_module({ArmorLinear: _layer()})
    return config


@cache
def _layer() -> type:
    """The class of a layer with adapters."""
    try:
        base = import_module("peft.tuners.lora").Linear
    except ImportError:
        raise ArmorError("LoRA needs peft: pip install peft") from None

    class ArmorLora(base):  # type: ignore[misc, valid-type]
        """An `ArmorLinear` with adapters beside it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with warnings.catch_warnings():  # that the class of the layer is new to peft
                warnings.filterwarnings("ignore", "Unsupported layer type")
                super().__init__(*args, **kwargs)

        def merge(self, *args: Any, **kwargs: Any) -> None:
            """Refused: the sum of a 2:4-sparse and a dense matrix is dense."""
            raise ArmorError(
                "adapters cannot be merged into packed weights: keep them beside, or put them on"
                " the dense export (armor export)"
            )

    return ArmorLora
