"""BlockCall: the arguments of a block's forward; BlockCalls: those of every block and batch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from armor.calibrate.form import Form, hidden_in
from armor.calibrate.state import State
from armor.errors import ArmorError

#: Values that a block cannot change.
_CONSTANT = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class BlockCall:
    """The arguments of a block's forward besides the hidden states.

    Args:
        args, kwargs: as the model gives them, without the hidden states where these are in `args`.
        number: tells apart the mappings among them, which blocks may use to hand something on.

    Attributes:
        form: how the block returns hidden states.
        shape: (batch, seq) of the token ids.
        lowered: the types of device on which `run` computes products in bfloat16.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        number: Callable[[object], int] = id,
    ) -> None:
        self.by_name = "hidden_states" in kwargs
        self.form = Form()
        self.shape: tuple[int, ...] = ()
        self.lowered: tuple[str, ...] = ()
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        given.pop("hidden_states", None)
        # Copied now: the model's own are written to when a block runs.
        self._given = {place: _copied(value) for place, value in given.items()}
        self._mappings = {
            place: number(value)
            for place, value in given.items()
            if isinstance(value, MutableMapping)
        }

    def run(self, block: nn.Module, state: State) -> State:
        """The state after `block`, without a graph."""
        with torch.no_grad(), self.precision(state.hidden.device):
            return self.traced(block, state)

    def precision(self, device: torch.device) -> torch.autocast:
        """A context in which a block on `device` runs as `run` does it."""
        is_lowered = device.type in self.lowered
        return torch.autocast(device.type, torch.bfloat16, enabled=is_lowered)

    def traced(self, block: nn.Module, state: State) -> State:
        """The same with a graph, where gradients are on."""
        return self.call(block, state)[1]

    def call(self, function: Callable[..., Any], state: State) -> tuple[Any, State]:
        """What `function`, a block or its forward, returns, and the state after it.

        Raises:
            ArmorError: it hands something on that is no tensor.
        """
        given = {place: _copied(value) for place, value in self._given.items()}
        for place, number in self._mappings.items():
            given[place].update(_entries(state.carried, number))
        before = {place: dict(given[place]) for place in self._mappings}
        args = [value for place, value in given.items() if isinstance(place, int)]
        kwargs = {place: value for place, value in given.items() if isinstance(place, str)}
        if self.by_name:
            output = function(*args, **kwargs, hidden_states=state.hidden)
        else:
            output = function(state.hidden, *args, **kwargs)
        carried = dict(state.carried)
        for place, number in self._mappings.items():
            for key, value in given[place].items():
                if value is not before[place].get(key):
                    carried.update(_named(number, key, value))
        return output, State(hidden_in(output), carried)

    def to(self, device: torch.device | str) -> BlockCall:
        """The same call with its tensors on `device`."""
        return self.changed(
            lambda _, leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf,
        )

    def changed(self, change: Callable[[str, Any], Any]) -> BlockCall:
        """The same call with ``change(name, value)`` in the place of everything in it."""
        changed = copy.copy(self)
        changed._given = {p: _map(value, change, str(p)) for p, value in self._given.items()}
        return changed

    def leaves(self) -> dict[str, Any]:
        """Everything in it that is no tuple, list or mapping, by name."""
        found: dict[str, Any] = {}
        self.changed(found.__setitem__)
        return found


class BlockCalls:
    """How every block is called in every batch.

    Batches with as many windows mostly get equal arguments (rotary tables, masks): these are held
    once. Tensors that differ, such as inputs made of the token ids, are left to the caller.

    Args:
        lowered: see `BlockCall`.
    """

    def __init__(self, lowered: tuple[str, ...] = ()) -> None:
        self._lowered = lowered
        self._common: dict[tuple[int, ...], list[BlockCall]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, batch: str, calls: list[BlockCall]) -> list[dict[str, Tensor]]:
        """Note the calls of the blocks in a batch.

        Returns:
            For each block the tensors that only this batch has, by name, contiguous.

        Raises:
            ArmorError: something else than a tensor differs from another batch.
        """
        shape = self._shapes[batch] = calls[0].shape
        for call in calls:
            call.lowered = self._lowered
        if shape not in self._common:
            self._common[shape] = [call.changed(_compact) for call in calls]
            return [{} for _ in calls]
        same: dict[tuple[int, int], bool] = {}
        return [
            dict(_differences(common.leaves(), call.leaves(), same))
            for common, call in zip(self._common[shape], calls, strict=True)
        ]

    def of(self, index: int, batch: str, own: Mapping[str, Tensor]) -> BlockCall:
        """The call of block `index` in a batch; `own`: what `add` has returned for the two."""
        call = self.any(index, batch)
        return call.changed(lambda name, leaf: own.get(name, leaf)) if own else call

    def any(self, index: int, batch: str) -> BlockCall:
        """The call of block `index` in some batch as large as this one."""
        return self._common[self._shapes[batch]][index]


def _differences(
    common: Mapping[str, Any], leaves: Mapping[str, Any], same: dict[tuple[int, int], bool]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `leaves` that differ from those in `common`.

    Args:
        same: which tensors were compared, by their ids, and whether they are equal.
    """
    if common.keys() != leaves.keys():
        raise _varying(sorted(common.keys() ^ leaves.keys())[0])
    for name, leaf in leaves.items():
        known = common[name]
        if isinstance(leaf, Tensor) and isinstance(known, Tensor):
            pair = id(known), id(leaf)
            if pair not in same:
                same[pair] = known.dtype == leaf.dtype and torch.equal(known, leaf)
            if not same[pair]:
                yield name, leaf.contiguous()
        elif not _alike(known, leaf):
            raise _varying(name)


def _alike(one: Any, other: Any) -> bool:
    """Whether two arguments, of whatever type, say the same."""
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, nn.Module):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if hasattr(one, "__dict__") and not callable(one):
        return _alike(vars(one), vars(other))
    return bool(np.all(one == other))


def _varying(name: str) -> ArmorError:
    return ArmorError(
        f"the model calls its blocks with another {name!r} from batch to batch: not supported"
    )


def _compact(_name: str, leaf: Any) -> Any:
    """`leaf` without the rest of a larger tensor of which it is a view."""
    if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > leaf.nbytes:
        return leaf.clone()
    return leaf


def _copied(value: Any) -> Any:
    """`value` so that a block that changes it does not change what the next batch gets."""
    if isinstance(value, (MutableMapping, list)):
        return copy.copy(value)
    if isinstance(value, (*_CONSTANT, Tensor, tuple, nn.Module)):
        return value
    return copy.deepcopy(value)


def _map(value: Any, change: Callable[[str, Any], Any], name: str) -> Any:
    """`value` with every leaf replaced, and its own containers."""
    if isinstance(value, MutableMapping):
        made = copy.copy(value)
        for key in value:
            made[key] = _map(value[key], change, f"{name}/{key}")
        return made
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        items = [_map(item, change, f"{name}/{number}") for number, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return change(name, value)


def _named(number: int, key: Any, value: Any) -> dict[str, Tensor]:
    """An entry that a block has made in the mapping `number`, as named tensors."""
    items = {"": value} if isinstance(value, Tensor) else dict(enumerate(_sequence(value)))
    if not isinstance(key, (str, int)) or not all(isinstance(t, Tensor) for t in items.values()):
        raise ArmorError(
            f"a block of the model hands {key!r} on to later ones, which is no tensor:"
            " not supported"
        )
    encoded = json.dumps(key)
    return {f"{number}/{place}/{encoded}": own.contiguous() for place, own in items.items()}


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (None,)


def _entries(carried: Mapping[str, Tensor], number: int) -> dict[Any, Any]:
    """The inverse of `_named`, of all entries of one mapping."""
    found: dict[Any, Any] = {}
    for name, tensor in carried.items():
        own, place, encoded = name.split("/", 2)
        if int(own) == number:
            key = json.loads(encoded)
            found[key] = (*found.get(key, ()), tensor) if place else tensor
    return found
