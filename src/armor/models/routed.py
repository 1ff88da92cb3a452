"""Mixtures of experts inside a decoder block, found by structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from armor.models.expert import Experts


@dataclass(frozen=True)
class Routed:
    """A layer that sends each token to a few of its experts.

    Attributes:
        path: of the layer in its decoder block; of `Experts`, that is called with the choice, their
            own. experts: of the list of experts in the layer, "" if the layer is that list.
        router: of the module whose output chooses, in the decoder block.
        count: how many experts.
    """

    path: str
    experts: str
    router: str
    count: int

    def expert(self, number: int) -> str:
        """An expert's path in the decoder block."""
        return _join(self.path, self.experts, str(number))

    def holds(self, linear: str) -> bool:
        """Whether a linear of the decoder block, by its path, is in one of the experts."""
        return linear.startswith(self.expert(0).removesuffix("0"))

    def inside(self, linear: str) -> tuple[int, str]:
        """Its expert's number, and its path in the expert."""
        number, _, rest = linear.removeprefix(self.expert(0).removesuffix("0")).partition(".")
        return int(number), rest


def find_routed(block: nn.Module) -> list[Routed]:
    """Every module with a list of experts of one kind, and a router beside that: see `_router`."""
    found = []
    for path, module in block.named_modules():
        for name, experts in module.named_children():
            if not isinstance(experts, nn.ModuleList) or not _same_kind(experts):
                continue
            router = _router(module, name, len(experts))
            if router is None:
                continue
            own, inside = (_join(path, name), "") if isinstance(experts, Experts) else (path, name)
            found.append(Routed(own, inside, _join(path, router), len(experts)))
    return found


def find_routers(block: nn.Module) -> set[str]:
    """The paths of all routers in a decoder block: also of experts that are no modules, and what
    is called so, by its name or its class."""
    found = set()
    for path, module in block.named_modules():
        if "router" in path.rpartition(".")[2] or type(module).__name__.endswith("Router"):
            found.add(path)
        for name, experts in module.named_children():
            count = _count(experts)
            router = _router(module, name, count) if count > 1 else None
            if router is not None:
                found.add(_join(path, router))
    return found


def _count(experts: nn.Module) -> int:
    """How many experts a module holds: as a list, in 3-D tensors, or as many as it says."""
    if isinstance(experts, nn.ModuleList):
        return len(experts) if _same_kind(experts) else 0
    if isinstance(experts, nn.Conv1d) or any(isinstance(m, nn.Linear) for m in experts.modules()):
        return 0
    for weight in experts.parameters(recurse=False):
        if weight.ndim == 3 and weight.shape[0] < max(weight.shape[1:]):
            return weight.shape[0]
    said = getattr(experts, "num_experts", getattr(experts, "moe_num_experts", 0))
    rows = list(_rows(experts))
    stacked = isinstance(said, int) and said > 1 and all(n > said and n % said == 0 for n in rows)
    return said if stacked and rows else 0


def _router(layer: nn.Module, experts: str, count: int) -> str | None:
    """The child of `layer` that chooses among its `experts`: one with a weight that has a row for
    each of them, or else the smallest one with such a matrix anywhere inside.

    Beside `Experts` the matrix may have up to twice the rows, some of them for doing nothing.
    """
    others = {
        name: child
        for name, child in layer.named_children()
        if name != experts and not isinstance(child, nn.ModuleList) and not _count(child)
    }
    for name, child in others.items():
        weight = getattr(child, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and weight.shape[0] == count:
            return name
    may_idle = isinstance(layer.get_submodule(experts), Experts)
    for most in (count, 2 * count) if may_idle else (count,):
        fitting = [
            name
            for name, child in others.items()
            if any(count <= rows <= most for rows in _rows(child))
        ]
        if fitting:
            return min(fitting, key=lambda name: sum(p.numel() for p in others[name].parameters()))
    return None


def _rows(module: nn.Module) -> Iterator[int]:
    """Of every matrix inside."""
    return (p.shape[0] for p in module.parameters() if p.ndim == 2)


def _same_kind(experts: nn.ModuleList) -> bool:
    """Whether these are several modules of one class, and not plain linears."""
    kinds = {type(expert) for expert in experts}
    return len(experts) > 1 and len(kinds) == 1 and not isinstance(experts[0], nn.Linear)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
