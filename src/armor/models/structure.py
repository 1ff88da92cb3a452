"""Where a causal language model keeps its decoder blocks and their linears, found by structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from armor.errors import ArmorError
from armor.models.routed import find_routed


@dataclass(frozen=True)
class Structure:
    """The decoder of a model.

    Attributes:
        prefix: dotted name of the `nn.ModuleList` of blocks, such as "model.layers".
        blocks: the blocks in order.
    """

    prefix: str
    blocks: tuple[nn.Module, ...]

    def linears(self, index: int) -> dict[str, nn.Linear]:
        """The linears of block `index` by their name in the model; routers are none of them."""
        block = self.blocks[index]
        routers = {routed.router_path for routed in find_routed(block)}
        return {
            f"{self.prefix}.{index}.{name}": module
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear) and name not in routers
        }


def find_structure(model: nn.Module) -> Structure:
    """The `nn.ModuleList` that holds most of the model's linear weights.

    Raises:
        ArmorError: no list of blocks with linears; the message names the module lists found.
    """
    sizes: dict[str, int] = {}
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            lists[name] = module
            sizes[name] = sum(
                linear.weight.numel()
                for linear in module.modules()
                if isinstance(linear, nn.Linear)
            )
    best = max(sizes, key=lambda name: sizes[name], default=None)
    if best is None or sizes[best] == 0:
        found = ", ".join(lists) or "none"
        raise ArmorError(
            f"{type(model).__name__}: no list of decoder blocks with linear layers"
            f" (module lists: {found})"
        )
    return Structure(best, tuple(lists[best]))
