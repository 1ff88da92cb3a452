"""Experts as modules of their own: transformers 5 keeps those of a layer in two 3-D tensors.

`split_experts` puts a list of plain MLPs in the place of each such pair. Checkpoints name the
experts one by one whatever the version of transformers (``experts.3.down_proj.weight``), so that a
model with split experts has the names of its checkpoint, and every expert has linears to prune.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn

from armor.models.expert import Experts
from armor.models.expert_forms import form_of
from armor.models.modules import put_module

#: What checkpoints call the three linears of an expert: gate, up, down.
NAMINGS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_EXPERT = re.compile(r"\.experts\.\d+\.(\w+)")


def fused_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold experts in 3-D weights, one expert after the other, by their name.

    Beside such a module is another that chooses: it has a matrix with a row for each expert, or up
    to twice as many, where a router may also choose to do nothing. A 3-D weight without one is
    something else, such as a convolution or a gate for each head.
    """
    for name, module in model.named_modules():
        count = _count(module)
        if count and _may_choose(model.get_submodule(name.rpartition(".")[0]), module, count):
            yield name, module


def _count(module: nn.Module) -> int:
    """The number of experts, if the 3-D weights of a module are experts; else 0."""
    if isinstance(module, nn.Conv1d):
        return 0
    shapes = [p.shape for p in module._parameters.values() if p is not None and p.ndim == 3]
    counts = {shape[0] for shape in shapes if 1 < shape[0] < max(shape[1:])}
    return int(counts.pop()) if shapes and len(counts) == 1 else 0


def _may_choose(layer: nn.Module, experts: nn.Module, count: int) -> bool:
    """Whether a matrix of `layer` outside of `experts` has a row for each of them."""
    own = {id(parameter) for parameter in experts.parameters()}
    return any(
        parameter.ndim == 2 and count <= parameter.shape[0] <= 2 * count
        for parameter in layer.parameters()
        if id(parameter) not in own
    )


def split_experts(model: nn.Module, stored: Iterable[str], keep: Collection[str] = ()) -> list[str]:
    """Split the fused experts of `model`, in place, sharing their memory.

    Those of each may be transposed, have biases, and gate and up row by row.

    Args:
        model: of any size, also with its parameters on the meta device.
        stored: names of layers or tensors of the checkpoint; they say what the linears are called.
        keep: modules to leave as they are, by name.

    Returns:
        The names of the modules that were replaced; experts in another form (see `form_of`) are
        left as they are.
    """
    naming = _naming(stored)
    replaced = []
    for name, module in list(fused_experts(model)):
        form = None if name in keep else form_of(module)
        if form is not None:
            put_module(model, name, form.split(module, naming).train(module.training))
            replaced.append(name)
    return replaced


def put_together(experts: Experts, fused: nn.Module) -> nn.Module:
    """`fused`, which `split_experts` replaced by `experts`, with a copy of their weights."""
    *first, last = experts.naming
    for name in list(fused._parameters):
        linears = [last] if name.startswith("down") else first
        kind = "bias" if name.endswith("bias") else "weight"
        own = [
            experts.stacking.join([expert.get_parameter(f"{one}.{kind}") for one in linears])
            for expert in experts
        ]
        setattr(fused, name, nn.Parameter(torch.stack(own), requires_grad=False))
    return fused.train(experts.training)


def is_expert(name: str) -> bool:
    """Whether a layer or tensor of a checkpoint is one of an expert's: ``experts.3.w1``."""
    return _EXPERT.search(name) is not None


def _naming(stored: Iterable[str]) -> tuple[str, ...]:
    parts = {found[1] for found in map(_EXPERT.search, stored) if found}
    return next((naming for naming in NAMINGS if parts & set(naming)), NAMINGS[0])
