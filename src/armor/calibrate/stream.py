"""Running a decoder block by block on calibration activations, without the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from armor.models.structure import Structure


class _Stop(Exception):
    """Ends a forward pass as soon as what it was run for is known."""


class Stream:
    """The hidden states of all calibration windows at the input of one block, in batches.

    Attributes:
        hidden: one (batch, seq, width) tensor a batch, float32.
        calls: for each block and each batch size, the other arguments its forward takes.
    """

    def __init__(self, hidden: list[Tensor], calls: list[dict[int, Call]]) -> None:
        self.hidden = hidden
        self.calls = calls

    def copy(self) -> Stream:
        """A second stream that starts at the same point."""
        return Stream(list(self.hidden), self.calls)

    def inputs(self, block: nn.Module, index: int, linear: nn.Module) -> Iterator[Tensor]:
        """The inputs of `linear`, a module inside `block`, batch by batch."""
        seen: list[Tensor] = []

        def capture(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])
            raise _Stop

        handle = linear.register_forward_pre_hook(capture)
        try:
            for hidden in self.hidden:
                with suppress(_Stop):
                    self.run(block, index, hidden)
                yield seen.pop()
        finally:
            handle.remove()

    def advance(self, block: nn.Module, index: int) -> None:
        """Move every batch through `block`."""
        for number, hidden in enumerate(self.hidden):
            self.hidden[number] = self.run(block, index, hidden)

    def advance_noting(
        self, block: nn.Module, index: int, linears: Sequence[nn.Module]
    ) -> list[list[Tensor]]:
        """`advance`, and the inputs of each of `linears` on the way, batch by batch."""
        noted: list[list[Tensor]] = [[] for _ in linears]

        def note(batches: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _module, args: batches.append(args[0])

        handles = [
            linear.register_forward_pre_hook(note(batches))
            for linear, batches in zip(linears, noted, strict=True)
        ]
        try:
            self.advance(block, index)
        finally:
            for handle in handles:
                handle.remove()
        return noted

    def run_first(self, block: nn.Module, index: int) -> None:
        """The first batch through `block`, for what its hooks see."""
        self.run(block, index, self.hidden[0])

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """One batch through `block`."""
        with torch.no_grad():
            return _hidden(self.calls[index][hidden.shape[0]].run(block, hidden))


class Call:
    """The arguments of a block's forward besides the hidden states."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        if "hidden_states" in self.kwargs:
            return block(*self.args, **{**self.kwargs, "hidden_states": hidden})
        return block(hidden, *self.args, **self.kwargs)


def open_stream(
    model: nn.Module, structure: Structure, windows: Tensor, batch_size: int = 8
) -> Stream:
    """The stream at the input of the first block.

    The blocks are not run, only asked what they would be called with; so the model's other parts
    (embeddings, rotary tables, masks) are used just as its own forward uses them.

    Args:
        windows: token ids, (samples, seq).
    """
    hidden: list[Tensor] = []
    calls: list[dict[int, Call]] = [{} for _ in structure.blocks]
    for batch in windows.split(batch_size):
        with _recorded(structure, calls, hidden, len(batch)), torch.no_grad():
            model(input_ids=batch, use_cache=False)
    return Stream(hidden, calls)


def stages(block: nn.Module, run: Callable[[nn.Module], object]) -> list[list[str]]:
    """The linears of `block` in the order they run; those fed the same tensor share a stage.

    Args:
        run: calls the block once, on any input.
    """
    inputs: list[Tensor] = []
    found: list[list[str]] = []
    handles = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            for known, names in zip(inputs, found, strict=True):
                if known is args[0]:
                    names.append(name)
                    return
            inputs.append(args[0])
            found.append([name])

        return hook

    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(watch(name)))
    try:
        run(block)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _hidden(output: Any) -> Tensor:
    """Blocks return the hidden states alone or first in a tuple, by transformers version."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@contextmanager
def _recorded(
    structure: Structure, calls: list[dict[int, Call]], hidden: list[Tensor], size: int
) -> Iterator[None]:
    """While active, blocks note their arguments and hand their input on."""
    as_tuple = False
    originals = [block.forward for block in structure.blocks]

    def recorder(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal as_tuple
            if "hidden_states" in kwargs:
                states, rest = kwargs["hidden_states"], args
            else:
                states, rest = args[0], args[1:]
            calls[index][size] = Call(rest, kwargs)
            if index == 0:
                hidden.append(states)
                as_tuple = isinstance(originals[0](*args, **kwargs), tuple)
            return (states,) if as_tuple else states

        return forward

    for index, block in enumerate(structure.blocks):
        block.forward = recorder(index)
    try:
        yield
    finally:
        for block in structure.blocks:
            del block.forward  # uncovers the class's own
