"""Modules and tensors of a model by their dotted names: "model.layers.0.mlp.up_proj.weight"."""

from __future__ import annotations

from torch import Tensor, nn


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def module_name(model: nn.Module, module: nn.Module | None) -> str | None:
    """What `module` is called in `model`; None if it is not there."""
    return next((name for name, other in model.named_modules() if other is module), None)


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer by `tensor` itself, whatever its shape, dtype and device."""
    owner, _, leaf = name.rpartition(".")
    holder = model.get_submodule(owner)
    if leaf in holder._parameters:
        holder._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        holder._buffers[leaf] = tensor
