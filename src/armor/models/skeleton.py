"""A model without weights: its modules on the meta device, its buffers real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from armor.models.load import check_causal, one_line


def empty_model(path_or_id: str) -> Any:
    """The causal language model of a folder or Hub id, built but not loaded, in float32.

    Parameters lie on the meta device and take no memory; buffers that the model computes when it
    is built (rotary frequencies, masks) are there.

    Returns:
        `transformers.PreTrainedModel` in evaluation mode.

    Raises:
        ArmorError: nothing there, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = check_causal(path_or_id)
    with one_line(f"cannot build {path_or_id}"), _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While active, every parameter that a module registers moves to the meta device.

    `torch.device("meta")` would take the buffers along, and nothing could bring them back.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
