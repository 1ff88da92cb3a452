"""Mixtures of experts inside a decoder block, found by structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Routed:
    """A layer that sends each token to a few of its experts.

    Attributes:
        path: of the layer in its decoder block. experts: of the list of experts in the layer.
        router: of the module in the layer whose output chooses.
        count: how many experts.
    """

    path: str
    experts: str
    router: str
    count: int

    @property
    def router_path(self) -> str:
        """The router's path in the decoder block."""
        return f"{self.path}.{self.router}" if self.path else self.router

    def expert(self, number: int) -> str:
        """An expert's path in the decoder block."""
        return f"{self.path}.{self.experts}.{number}" if self.path else f"{self.experts}.{number}"

    def holds(self, linear: str) -> bool:
        """Whether a linear of the decoder block, by its path, is in one of the experts."""
        return linear.startswith(self.expert(0).removesuffix("0"))

    def inside(self, linear: str) -> tuple[int, str]:
        """Its expert's number, and its path in the expert."""
        number, _, rest = linear.removeprefix(self.expert(0).removesuffix("0")).partition(".")
        return int(number), rest


def find_routed(block: nn.Module) -> list[Routed]:
    """Every module with a list of experts of one kind, and a weight with a row for each expert."""
    found = []
    for path, module in block.named_modules():
        for name, experts in module.named_children():
            if not isinstance(experts, nn.ModuleList) or not _same_kind(experts):
                continue
            router = next(
                (
                    other
                    for other, child in module.named_children()
                    if other != name and _rows(child) == len(experts)
                ),
                None,
            )
            if router is not None:
                found.append(Routed(path, name, router, len(experts)))
    return found


def _same_kind(experts: nn.ModuleList) -> bool:
    """Whether these are several modules of one class, and not plain linears."""
    kinds = {type(expert) for expert in experts}
    return len(experts) > 1 and len(kinds) == 1 and not isinstance(experts[0], nn.Linear)


def _rows(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, nn.Parameter) and weight.ndim == 2 else 0
