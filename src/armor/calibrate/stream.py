"""Running decoder blocks one at a time on calibration activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from armor.calibrate.call import BlockCall
from armor.calibrate.form import Form
from armor.calibrate.state import State
from armor.errors import ArmorError
from armor.models.folder import refused_if_fails
from armor.models.structure import Structure

#: A batch has at most so many windows, and at most so many tokens if it has more than one.
BATCH_WINDOWS, BATCH_TOKENS = 8, 4096


class Stop(Exception):
    """Ends a forward pass as soon as what it was run for is known."""


def batches(windows: Int64[Tensor, "samples seq"]) -> list[Int64[Tensor, "_ seq"]]:
    """`windows` (samples, seq) in the batches that go through the model together."""
    size = max(1, min(BATCH_WINDOWS, BATCH_TOKENS // windows.shape[1]))
    return list(windows.split(size))


def open_stream(
    model: nn.Module, structure: Structure, tokens: Iterable[Int64[Tensor, "_ seq"]]
) -> Iterator[tuple[Float[Tensor, "... seq width"], list[BlockCall]]]:
    """For each batch: the hidden states at the input of block 0, and the call of every block.

    The blocks are not run, only asked what they would be called with; so the model's other parts
    (embeddings, rotary tables, masks) are used just as its own forward uses them. What comes after
    the blocks does not run. Block 0 and all before it must have their weights, the rest may be on
    the meta device.

    Args:
        tokens: batches of token ids, (batch, seq).

    Raises:
        ArmorError: the model does not call its blocks one after the other, each with the hidden
            states of the one before.
    """
    form: Form | None = None
    for batch in tokens:
        hidden, calls = _open_batch(model, structure, batch, form)
        form = calls[0].form if calls[0].form.is_plain else None
        yield hidden, calls


def _open_batch(
    model: nn.Module, structure: Structure, batch: Tensor, form: Form | None
) -> tuple[Tensor, list[BlockCall]]:
    """The hidden states before block 0 and the calls; `form`: of what blocks return, if known."""
    hidden: list[Tensor] = []
    calls: list[BlockCall] = []
    mappings: list[object] = []  # held, so that no other gets the id of one

    def number(mapping: object) -> int:
        known = [place for place, other in enumerate(mappings) if other is mapping]
        if not known:
            mappings.append(mapping)
        return known[0] if known else len(mappings) - 1

    def forward(index: int, original: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal form
        if index != len(calls):
            raise Stop
        named = "hidden_states" in kwargs
        states = kwargs["hidden_states"] if named else args[0]
        call = BlockCall(args if named else args[1:], kwargs, number)
        if index == 0:
            hidden.append(states)
        if form is None:
            form = Form.of(call.call(original, State(states))[0])
        call.form, call.shape = form, tuple(batch.shape)
        calls.append(call)
        if index == len(structure.blocks) - 1:
            raise Stop
        return form.wrap(states)

    with (
        refused_if_fails(f"{type(model).__name__} cannot be run on text, block by block"),
        replaced(structure, forward),
        torch.no_grad(),
        suppress(Stop),
    ):
        model(input_ids=batch, use_cache=False)
    if len(calls) != len(structure.blocks):
        raise ArmorError(
            f"{type(model).__name__} calls {len(calls)} of its {len(structure.blocks)} blocks"
            f" in {structure.prefix} one after the other: not supported"
        )
    return hidden[0], calls


def observe(
    block: nn.Module,
    call: BlockCall,
    state: State,
    described: Sequence[Sequence[str]] = (),
) -> tuple[State, list[tuple[list[str], Tensor]]]:
    """Run `block`, and note the inputs of its linears.

    Args:
        described: groups of linears that a description of the model says get equal tensors.

    Returns:
        the state after the block, and its stages in the order they run: the names of the
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
        return call.run(block, state), stages
    finally:
        for handle in handles:
            handle.remove()


def module_inputs(
    block: nn.Module, call: BlockCall, state: State, paths: Sequence[str]
) -> dict[str, Tensor]:
    """The inputs of the modules `paths` when `block` runs, without those that are not called.

    Stops when all are known.
    """
    seen: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def capture(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.setdefault(path, args[0].float())  # bfloat16, if the pass is in that
            if len(seen) == len(paths):
                raise Stop

        return capture

    handles = [block.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    try:
        with suppress(Stop):
            call.run(block, state)
    finally:
        for handle in handles:
            handle.remove()
    return seen


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
def after_blocks(model: Any, structure: Structure, hidden: Tensor, form: Form) -> Iterator[None]:
    """While active, `model` on any token ids computes what comes after its blocks.

    Neither the blocks nor the `token_tables` need their weights: these give zeros.

    Args:
        hidden: what the last block gives. form: how blocks return hidden states.
    """

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return form.wrap(hidden)

    def zeros(width: int) -> Callable[[Tensor], Tensor]:
        return lambda tokens: hidden.new_zeros(*tokens.shape, width)

    tables = token_tables(model, structure)
    for table in tables.values():
        table.forward = zeros(table.weight.shape[1])
    weights = {name: table.weight for name, table in tables.items() if table.weight.is_meta}
    for name, weight in weights.items():  # some models read a row; these zeros take no memory
        nothing = hidden.new_zeros(1).expand(weight.shape)
        tables[name].weight = nn.Parameter(nothing, requires_grad=False)
    try:
        with replaced(structure, forward):
            yield
    finally:
        for table in tables.values():
            del table.forward
        for name, weight in weights.items():
            tables[name].weight = weight


def token_tables(model: Any, structure: Structure) -> dict[str, Any]:
    """The token embeddings, and tables like them outside of the blocks and as large, by name."""
    main = model.get_input_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is type(main)
        and module.weight.numel() >= main.weight.numel()
        and not name.startswith(f"{structure.prefix}.")
    }


@contextmanager
def replaced(structure: Structure, forward: Callable[..., Any]) -> Iterator[None]:
    """While active, a call of a block is one of ``forward(index, original forward, ...)``."""

    def stand_in(index: int, original: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: forward(index, original, *args, **kwargs)

    for index, block in enumerate(structure.blocks):
        block.forward = stand_in(index, block.forward)
    try:
        yield
    finally:
        for block in structure.blocks:
            del block.forward  # uncovers the class's own
