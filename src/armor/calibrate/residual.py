"""The residual stream: which linears add their output to it, and where it can be read before that.

In most decoders each half of a block adds what its last linear puts out to the hidden states. Such
a linear can undo errors that the hidden states have picked up before it, not only its own: see
`armor.calibrate.targets`. Whether it does so is not read from names. It is seen in a run: the sum
of the stream and the output must be, bit for bit, what another module is given, or the block's
result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from armor.calibrate.call import BlockCall
from armor.calibrate.state import State
from armor.calibrate.stream import module_inputs

#: The place of the stream that a block begins with, among paths of modules.
BLOCK_INPUT = ""


class Trace:
    """What goes through a block that has the shape of its hidden states.

    Attributes:
        given: the first such argument of each module, by path in the order they run.
    """

    def __init__(self, hidden: Float[Tensor, "... seq width"]) -> None:
        """Args: hidden: states before the block."""
        self.given: dict[str, Tensor] = {}
        self._hidden = hidden
        self._written: dict[str, Tensor] = {}

    def saw(self, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note a call of the module at `path`."""
        if args and self._is_like_hidden(args[0]):
            self.given.setdefault(path, args[0])
        if isinstance(module, nn.Linear) and self._is_like_hidden(output):
            self._written.setdefault(path, output)

    def bases(self, after: Tensor) -> dict[str, str]:
        """The linears that add to the stream, by path: the module that is given the stream as it
        is before that, or `BLOCK_INPUT`.

        Args:
            after: hidden states after the block.
        """
        found: dict[str, str] = {}
        streams = {BLOCK_INPUT: self._hidden}
        for path, tensor in (*self.given.items(), (None, after)):
            if any(torch.equal(stream, tensor) for stream in streams.values()):
                continue  # else a linear that puts out next to nothing would seem added here
            for base, stream in reversed(streams.items()):
                writers = [
                    linear
                    for linear, output in self._written.items()
                    if linear not in found and torch.equal(stream + output, tensor)
                ]
                if writers:
                    found[writers[0]] = base
                    if path is not None:
                        streams[path] = tensor
                    break
        return found

    def _is_like_hidden(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self._hidden.shape


@contextmanager
def traced(block: nn.Module, hidden: Float[Tensor, "... seq width"]) -> Iterator[Trace]:
    """While active, runs of `block` on the states `hidden` are traced."""
    trace = Trace(hidden)

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            trace.saw(path, module, args, output)

        return hook

    handles = [
        module.register_forward_hook(watch(path))
        for path, module in block.named_modules()
        if path and not any(module.children())
    ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def given_to(
    block: nn.Module, call: BlockCall, state: State, linear: str, base: str | None
) -> tuple[Tensor | None, Tensor | None]:
    """What `linear` is given when `block` runs, None if it is not called, and the stream before it.

    Args:
        base: where that is read, see `Trace.bases`; None where it is not wanted.
    """
    inside = [] if base in (None, BLOCK_INPUT) else [base]
    given = module_inputs(block, call, state, list(dict.fromkeys([*inside, linear])))
    stream = state.hidden if base == BLOCK_INPUT else given.get(base or "")
    return given.get(linear), stream
