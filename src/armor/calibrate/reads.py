"""Linears whose weights a model reads itself, beside or instead of calling them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from armor.calibrate.call import BlockCall
from armor.calibrate.state import State


def weights_read(
    block: nn.Module, call: BlockCall, hidden: Float[Tensor, "batch seq width"]
) -> set[str]:
    """The linears of `block`, by path, whose weight is used in a computation outside of themselves.

    What it does there its inputs do not show. Asking for its dtype or its device is no use of it.

    Args:
        hidden: hidden states before the block, of any value.
    """
    reads = _Reads(
        {
            id(module.weight): name
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
    )

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: reads.running.append(name)

    def end(*_: Any) -> None:
        reads.running.pop()

    with ExitStack() as undo:
        for name in reads.weights.values():
            linear = block.get_submodule(name)
            undo.callback(linear.register_forward_pre_hook(begin(name)).remove)
            undo.callback(linear.register_forward_hook(end).remove)
        with reads:
            call.run(block, State(hidden))
    return reads.found


def never_called(
    block: nn.Module, call: BlockCall, hidden: Float[Tensor, "batch seq width"]
) -> set[str]:
    """The linears of `block`, by path, that text does not reach, such as for an encoder's output.

    Modules in lists, which may be experts, are none of them: other tokens may reach these.
    """
    idle = {
        name
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not any(part.isdigit() for part in name.split("."))
    }
    with ExitStack() as undo:
        for name in list(idle):
            hook = block.get_submodule(name).register_forward_pre_hook(
                lambda _module, _args, name=name: idle.discard(name)
            )
            undo.callback(hook.remove)
        call.run(block, State(hidden))
    return idle


class _Reads(TorchDispatchMode):
    """Notes whose weight is an argument of an operation while that linear is not running."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights = weights
        self.running: list[str] = []
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            name = self.weights.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if name is not None and name not in self.running:
                self.found.add(name)
        return func(*args, **kwargs)
