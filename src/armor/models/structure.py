"""Where a causal language model keeps its decoder blocks and their linears, found by structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from armor.errors import ArmorError
from armor.models.decoder import decoder_lists
from armor.models.linears import computes_linear
from armor.models.routed import find_routers

REMEDY = "describe it in a recipe (docs/recipe.md)"


@dataclass(frozen=True)
class Structure:
    """The decoder of a model.

    Attributes:
        prefix: dotted name of the `nn.ModuleList` of blocks, such as "model.layers".
        blocks: the blocks in order.
        globs: which linears of a block may be pruned, by their names in it.
        stages: linears of a block that are fed equal tensors, where a description says so.
    """

    prefix: str
    blocks: tuple[nn.Module, ...]
    globs: tuple[str, ...] = ("*",)
    stages: tuple[tuple[str, ...], ...] = field(default=())

    def linears(self, index: int) -> dict[str, nn.Linear]:
        """The linears of block `index` by their name in the model.

        Those in routers are none of them, nor are those that compute something else.
        """
        block = self.blocks[index]
        routers = tuple(f"{router}." for router in find_routers(block))
        return {
            f"{self.prefix}.{index}.{name}": module
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
            and computes_linear(type(module))
            and not f"{name}.".startswith(routers)
            and any(fnmatchcase(name, glob) for glob in self.globs)
        }


def find_structure(model: nn.Module, described: Mapping[str, Any] | None = None) -> Structure:
    """The `nn.ModuleList` with most of the text decoder's linear weights, or the described one.

    Args:
        described: ``blocks``, the name of the list; maybe ``linears`` and ``stages``, as in
            `Structure`.

    Raises:
        ArmorError: no list of blocks with linears; the message lists what was found.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    sizes = {name: _linear_weights(module) for name, module in lists.items()}
    if described:
        prefix = described["blocks"]
        if not sizes.get(prefix):
            raise _refusal(model, lists, f"no module list {prefix!r} with linear layers")
    else:
        text = decoder_lists(model, sizes)
        prefix = max(text, key=lambda name: text[name], default="")
        if not text:
            raise _refusal(model, lists, "no list of decoder blocks with linear layers")
    blocks = tuple(lists[prefix])
    if len(set(map(id, blocks))) < len(blocks):
        raise ArmorError(f"{type(model).__name__} uses a block of {prefix} twice: not supported")
    seen: set[int] = set()
    for block in blocks:
        own = {id(parameter) for parameter in block.parameters()}
        if own & seen:
            raise ArmorError(
                f"{type(model).__name__} has blocks in {prefix} that share weights: not supported"
            )
        seen |= own
    about = described or {}
    structure = Structure(
        prefix,
        blocks,
        tuple(about.get("linears") or ("*",)),
        tuple(map(tuple, about.get("stages") or ())),
    )
    if not any(structure.linears(index) for index in range(len(blocks))):
        raise _refusal(model, lists, f"no linear layer in {prefix} matches the description")
    return structure


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _refusal(model: nn.Module, lists: Mapping[str, nn.ModuleList], what: str) -> ArmorError:
    """What is wrong, and every module list with the kinds of its blocks and of their weights."""
    found = []
    for name, modules in list(lists.items())[:6]:
        kinds = Counter(type(module).__name__ for module in modules)
        weights = Counter(
            f"{type(module).__name__} {'x'.join(map(str, parameter.shape))}"
            for module in modules.modules()
            for parameter in module.parameters(recurse=False)
            if parameter.ndim > 1
        )
        inside = ", ".join(f"{n} {kind}" for kind, n in weights.most_common(4))
        blocks = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        found.append(f"{name}: {blocks}" + (f" with {inside}" if inside else ""))
    listed = "; ".join(found) or "no module lists"
    return ArmorError(
        f"{type(model).__name__}: {what}; found {listed}. Only torch.nn.Linear can be"
        f" pruned; if that is what the model has, {REMEDY}"
    )
