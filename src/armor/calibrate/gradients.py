"""How much an error in a layer's output raises the model's loss: gradients, block by block.

To second order, an error e of a linear's output at one token adds (g . e)^2 / 2 to the divergence
of the model's predictions, with g the gradient of the loss there (the empirical Fisher matrix).
Which errors meet which gradients matters, so both are kept token by token, for some tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from armor.calibrate.call import BlockCall
from armor.calibrate.form import Form
from armor.calibrate.state import State
from armor.calibrate.stream import after_blocks
from armor.models.structure import Structure

#: For each linear that was called ``inputs/LINEAR``, (tokens, in), and ``gradients/LINEAR``, those
#: of the loss by its outputs, (tokens, out); bfloat16.
Samples = dict[str, Tensor]


@dataclass(frozen=True)
class Draw:
    """Which tokens are kept: a `share` of them, at least one, drawn with `seed`."""

    share: float
    seed: int

    def rows(self, total: int) -> Int64[Tensor, " kept"]:
        """The numbers of the tokens that are kept of `total`."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        order = torch.randperm(total, generator=generator, dtype=torch.int64, device="cpu")
        return order[: math.ceil(self.share * total)]


def loss_gradient(
    model: nn.Module,
    structure: Structure,
    hidden: Float[Tensor, "... batch seq width"],
    tokens: Int64[Tensor, "batch seq"],
    form: Form,
    linears: Iterable[str],
    draw: Draw,
) -> tuple[Float[Tensor, "... batch seq width"], Samples]:
    """The gradient of the loss, a sum over tokens, by the hidden states after the blocks.

    Args:
        model: with the weights of all that comes after the blocks. hidden: after the last one.
        tokens: ids, (batch, seq). form: how blocks return hidden states.
        linears: those to keep samples of, after the blocks.

    Returns:
        As `hidden`, and the samples.
    """
    states = hidden.detach().requires_grad_()

    with (
        after_blocks(model, structure, states, form),
        torch.enable_grad(),
        _sampled(model, linears, draw) as samples,
    ):
        logits = model(input_ids=torch.zeros_like(tokens), use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, states)
    return gradient, samples


def block_gradient(
    block: nn.Module,
    call: BlockCall,
    state: State,
    gradient: State,
    linears: Iterable[str],
    draw: Draw,
) -> tuple[State, Samples]:
    """From the `gradient` after `block` to that before it.

    Args:
        state: before the block. gradient: of the loss, by what the state after it has; what is
            missing has no effect. linears: those to keep samples of.

    Returns:
        The gradient by what `state` has, and the samples.
    """
    carried = {name: own.detach().requires_grad_() for name, own in state.carried.items()}
    before = State(state.hidden.detach().requires_grad_(), carried)
    with torch.enable_grad(), _sampled(block, linears, draw) as samples:
        after = call.traced(block, before)
        outputs = [after.hidden, *(after.carried[name] for name in gradient.carried)]
        by_hidden, *by_carried = torch.autograd.grad(
            outputs,
            [before.hidden, *carried.values()],
            [gradient.hidden, *gradient.carried.values()],
            allow_unused=True,
        )
    found = zip(carried, by_carried, strict=True)
    return State(by_hidden, {name: own for name, own in found if own is not None}), samples


@contextmanager
def _sampled(module: nn.Module, linears: Iterable[str], draw: Draw) -> Iterator[Samples]:
    """While active, a backward pass keeps what it meets at `linears`."""
    samples: Samples = {}

    def keep(name: str, tensor: Tensor) -> None:
        own = tensor.to("cpu", torch.bfloat16)
        samples[name] = torch.cat((samples[name], own)) if name in samples else own

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = args[0].detach().flatten(0, -2)
            if not output.requires_grad or not len(inputs):
                return
            rows = draw.rows(len(inputs)).to(inputs.device)
            # The few stand for all, in squares.
            scale = math.sqrt(len(inputs) / len(rows))

            def add(gradient: Tensor) -> None:
                keep(f"inputs/{name}", inputs[rows])
                keep(f"gradients/{name}", scale * gradient.flatten(0, -2)[rows])

            output.register_hook(add)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(watch(name)) for name in linears]
    try:
        yield samples
    finally:
        for handle in handles:
            handle.remove()
