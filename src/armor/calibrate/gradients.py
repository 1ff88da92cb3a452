"""How much the model's loss minds an error in a layer's output: gradients, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from armor.calibrate.stream import Call, replaced
from armor.models.structure import Structure

#: For each linear, by its name: its output's gradients, squared and summed over tokens, (out,).
Squares = dict[str, Tensor]


def loss_gradient(
    model: nn.Module,
    structure: Structure,
    hidden: Tensor,
    tokens: Tensor,
    as_tuple: bool,
    head: str,
) -> tuple[Tensor, Squares]:
    """The gradient of the loss, a sum over tokens, by the hidden states behind the blocks.

    Args:
        model: with the weights of all that comes after the blocks. hidden: (batch, seq, width).
        tokens: ids, (batch, seq). as_tuple: whether blocks return a tuple. head: its name.

    Returns:
        (batch, seq, width), and the squares of the head.
    """
    states = hidden.detach().requires_grad_()

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return (states,) if as_tuple else states

    with replaced(structure, forward), torch.enable_grad(), _squared(model, [head]) as squares:
        logits = model(inputs_embeds=torch.zeros_like(hidden), use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, states)
    return gradient, squares


def block_gradient(
    block: nn.Module, call: Call, hidden: Tensor, gradient: Tensor
) -> tuple[Tensor, Squares]:
    """From the `gradient` behind `block` to that before it, both (batch, seq, width).

    Args:
        hidden: hidden states before the block.

    Returns:
        The gradient, and the squares of the linears that were called.
    """
    states = hidden.detach().requires_grad_()
    linears = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    with torch.enable_grad(), _squared(block, linears) as squares:
        (before,) = torch.autograd.grad(call.traced(block, states), states, gradient)
    return before, squares


@contextmanager
def _squared(module: nn.Module, linears: Iterable[str]) -> Iterator[Squares]:
    """While active, a backward pass sums the squares of what reaches the outputs of `linears`."""
    squares: Squares = {}

    def watch(name: str) -> Callable[..., None]:
        def add(gradient: Tensor) -> None:
            own = gradient.flatten(0, -2).square().sum(0)
            squares[name] = squares[name] + own if name in squares else own

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(watch(name)) for name in linears]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
