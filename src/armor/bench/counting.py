"""Counting what torch code would ask of a GPU: launches, waits, copies, bytes and FLOPs.

By dispatch, so that it works without a GPU on tensors of the meta device, which have no numbers.
Kernels of armor's own are launched past torch; whoever counts adds them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations without a kernel.
_FREE = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "lift_fresh", "set_", "resize_"),
}
#: What the host waits for; on the meta device a stand-in for the answer is given: that all is well.
_WAITS: dict[str, Any] = {"_local_scalar_dense": 0.0, "equal": True}
_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}


@dataclass
class Counts:
    """What was counted.

    Attributes:
        launches, bytes: by operation; bytes are those read and written.
        flops: of products of matrices, by operation.
        waits: for answers of the device, by operation.
        copied: bytes, by "to the device" and "to the host".
    """

    launches: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)

    def less(self, other: Counts, times: int = 1) -> Counts:
        """What this has more than `other`, divided by `times`."""
        found = Counts()
        for name in self.__dataclass_fields__:
            own: Counter[str] = getattr(self, name)
            own = own - getattr(other, name)
            getattr(found, name).update({key: -(-count // times) for key, count in own.items()})
        return found


class Counting(TorchDispatchMode):
    """A context in which operations are counted.

    Attributes:
        counts: so far.
        label: what is added to the names of products, for those of another kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.label = ""
        self._every: Tensor | None = None  # whether all of something is so: the latest

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.rpartition("::")[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in _WAITS and any(_is_on_device(tensor) for tensor in given):
            self.counts.waits[name] += 1
            if any(tensor.is_meta for tensor in given):
                return True if given[0] is self._every else _WAITS[name]
        result = _to_host(name, args, kwargs)
        if result is None:
            result = function(*args, **kwargs)
        if name == "all":
            self._every = result
        if function.is_view or name in _FREE:
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(_is_on_device(tensor) for tensor in (*given, *made)):
            return result
        self._count(name, args, given, made)
        return result

    def _count(self, name: str, args: Any, given: list[Tensor], made: list[Tensor]) -> None:
        sides = {_is_on_device(tensor) for tensor in (*given, *made) if tensor.dim()}
        if len(sides) == 2 and made:
            where = "to the device" if _is_on_device(made[0]) else "to the host"
            self.counts.copied[where] += sum(tensor.nbytes for tensor in made)
            self.counts.waits[where] += 1
        first = _PRODUCTS.get(name.rstrip("_"))
        if first is not None:
            name += self.label
        self.counts.launches[name] += 1
        written = {id(tensor): tensor.nbytes for tensor in made}
        read = {id(tensor): tensor.nbytes for tensor in given}
        self.counts.bytes[name] += sum(written.values()) + sum(read.values())
        if first is not None:
            left, right = args[first : first + 2]
            self.counts.flops[name] += 2 * prod(left.shape) * right.shape[-1]


def _to_host(name: str, args: Any, kwargs: Any) -> Tensor | None:
    """A copy to the host of what has no numbers: zeros; None for all else."""
    if name == "copy_" and args[1].is_meta and not args[0].is_meta:
        return args[0].zero_()
    if name == "_to_copy" and args[0].is_meta:
        where, dtype = kwargs.get("device"), kwargs.get("dtype") or args[0].dtype
        if where is not None and where.type == "cpu":
            return torch.zeros(args[0].shape, dtype=dtype, device="cpu")
    return None


def _is_on_device(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"
