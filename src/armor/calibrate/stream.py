"""Running decoder blocks one at a time on calibration activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from armor.errors import ArmorError
from armor.models.structure import Structure

#: A batch has at most so many windows, and at most so many tokens if it has more than one.
BATCH_WINDOWS, BATCH_TOKENS = 8, 4096


class Stop(Exception):
    """Ends a forward pass as soon as what it was run for is known."""


class BlockCall:
    """The arguments of a block's forward besides the hidden states."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.by_name = "hidden_states" in kwargs
        self.as_tuple = False  # what the block returns

    def run(
        self, block: nn.Module, hidden: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch seq width"]:
        """The hidden states after `block`, (batch, seq, width), without a graph."""
        with torch.no_grad():
            return self.traced(block, hidden)

    def traced(
        self, block: nn.Module, hidden: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch seq width"]:
        """The same with a graph, where gradients are on."""
        args, kwargs = self.args, self.kwargs
        if self.by_name:
            kwargs = {**kwargs, "hidden_states": hidden}
        else:
            args = (hidden, *args)
        output = block(*args, **kwargs)
        # The hidden states come alone or first in a tuple, by transformers version.
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def to(self, device: torch.device | str) -> BlockCall:
        """The same call with its tensors on `device`."""
        moved = BlockCall(_to(self.args, device), _to(self.kwargs, device))
        moved.by_name, moved.as_tuple = self.by_name, self.as_tuple
        return moved


#: For each block, by the number of windows in a batch: how it is called.
BlockCalls = list[dict[int, BlockCall]]


def batches(windows: Int64[Tensor, "samples seq"]) -> list[Int64[Tensor, "_ seq"]]:
    """`windows` (samples, seq) in the batches that go through the model together."""
    size = max(1, min(BATCH_WINDOWS, BATCH_TOKENS // windows.shape[1]))
    return list(windows.split(size))


def open_stream(
    model: nn.Module, structure: Structure, tokens: Iterable[Int64[Tensor, "_ seq"]]
) -> Iterator[tuple[Float[Tensor, "_ seq width"], list[BlockCall]]]:
    """For each batch: the hidden states at the input of block 0, and the call of every block.

    The blocks are not run, only asked what they would be called with; so the model's other parts
    (embeddings, rotary tables, masks) are used just as its own forward uses them. What comes after
    the blocks does not run. Block 0 and all before it must have their weights, the rest may be on
    the meta device.

    Args:
        tokens: batches of token ids, (batch, seq).
    """
    as_tuple: bool | None = None
    for batch in tokens:
        hidden: list[Tensor] = []
        calls: list[BlockCall] = []

        def forward(first: bool, last: bool, original: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal as_tuple
            named = "hidden_states" in kwargs
            states = kwargs["hidden_states"] if named else args[0]
            calls.append(BlockCall(args if named else args[1:], kwargs))  # noqa: B023
            if first:
                hidden.append(states)  # noqa: B023
                if as_tuple is None:
                    as_tuple = isinstance(original(*args, **kwargs), tuple)
            if last:
                raise Stop
            return (states,) if as_tuple else states

        with replaced(structure, forward), torch.no_grad(), suppress(Stop):
            model(input_ids=batch, use_cache=False)
        if len(calls) != len(structure.blocks):
            raise ArmorError(
                f"{type(model).__name__} calls {len(calls)} of its {len(structure.blocks)} blocks"
                f" in {structure.prefix} one after the other: not supported"
            )
        for call in calls:
            call.as_tuple = bool(as_tuple)
        yield hidden[0], calls


def observe(
    block: nn.Module,
    call: BlockCall,
    hidden: Float[Tensor, "batch seq width"],
    described: Sequence[Sequence[str]] = (),
) -> tuple[Float[Tensor, "batch seq width"], list[tuple[list[str], Tensor]]]:
    """Run `block`, and note the inputs of its linears.

    Args:
        described: groups of linears that a description of the model says get equal tensors.

    Returns:
        the hidden states after the block, and its stages in the order they run: the names of the
        linears that get one and the same tensor (or are described so), and that tensor.

    Raises:
        ArmorError: linears that are described as one stage get different tensors.
    """
    stages: list[tuple[list[str], Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            for names, known in stages:
                is_described = any(name in stage and names[0] in stage for stage in described)
                if is_described and not torch.equal(known, args[0]):
                    raise ArmorError(f"recipe, stages: {names[0]} and {name} get different tensors")
                if is_described or known is args[0]:
                    names.append(name)
                    return
            stages.append(([name], args[0]))

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        return call.run(block, hidden), stages
    finally:
        for handle in handles:
            handle.remove()


def module_input(
    block: nn.Module, call: BlockCall, hidden: Float[Tensor, "batch seq width"], linear: str
) -> Float[Tensor, "... in"] | None:
    """The input of the module `linear` when `block` runs; None if it is not called. Stops there."""
    seen: list[Tensor] = []

    def capture(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise Stop

    handle = block.get_submodule(linear).register_forward_pre_hook(capture)
    try:
        with suppress(Stop):
            call.run(block, hidden)
    finally:
        handle.remove()
    return seen[0] if seen else None


def merge_stages(found: Iterable[list[list[str]]]) -> list[list[str]]:
    """The stages of several batches as one list; a linear counts where it first appeared."""
    stages: list[list[str]] = []
    placed: set[str] = set()
    for batch in found:
        for names in batch:
            if new := [name for name in names if name not in placed]:
                stages.append(new)
                placed.update(new)
    return stages


@contextmanager
def replaced(structure: Structure, forward: Callable[..., Any]) -> Iterator[None]:
    """While active, a call of a block is one of ``forward(is first, is last, original, ...)``."""
    last = len(structure.blocks) - 1

    def stand_in(index: int, original: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: forward(index == 0, index == last, original, *args, **kwargs)

    for index, block in enumerate(structure.blocks):
        block.forward = stand_in(index, block.forward)
    try:
        yield
    finally:
        for block in structure.blocks:
            del block.forward  # uncovers the class's own


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_to(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _to(item, device) for name, item in value.items()}
    return value
