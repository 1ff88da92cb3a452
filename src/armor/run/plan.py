"""The plan: which linears are pruned, with which wrapper block, and which stay dense and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from armor.config import AUTO_BLOCKS, PruneConfig
from armor.errors import ArmorError
from armor.sparsity import parse_pattern


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one linear.

    Attributes:
        name: its name in the model. shape: (out, in).
        block: wrapper block size; None without wrappers (a baseline).
        dense: stays as it is.
        note: why it stays dense, or what is unusual about its block; "" if nothing.
    """

    name: str
    shape: tuple[int, int]
    block: int | None = None
    dense: bool = False
    note: str = ""

    @property
    def overhead(self) -> float:
        """Parameters of the wrappers as a share of the dense weight's."""
        return 0.0 if self.block is None else overhead(self.shape, self.block)


def overhead(shape: tuple[int, int], block: int) -> float:
    """Wrapper parameters over dense parameters, partial blocks counted whole."""
    return sum(-(-size // block) for size in shape) * block * block / (shape[0] * shape[1])


def make_plan(shapes: Mapping[str, tuple[int, int]], config: PruneConfig) -> list[LayerPlan]:
    """One plan a linear, in the order of `shapes`.

    Raises:
        ArmorError: the globs match nothing, or an include glob matches nothing.
    """
    for glob in config.include:
        if not any(fnmatchcase(name, glob) for name in shapes):
            raise ArmorError(
                f"--include {glob!r} matches no linear layer; there are, for example,"
                f" {', '.join(list(shapes)[:3])}"
            )
    plans = [_plan_layer(name, shape, config) for name, shape in shapes.items()]
    if all(plan.dense for plan in plans):
        notes = sorted({plan.note for plan in plans})
        raise ArmorError(f"nothing to prune: all {len(plans)} linears stay dense ({notes[0]})")
    return plans


def _plan_layer(name: str, shape: tuple[int, int], config: PruneConfig) -> LayerPlan:
    if config.include and not _matches(name, config.include):
        return LayerPlan(name, shape, dense=True, note="not included")
    if _matches(name, config.exclude):
        return LayerPlan(name, shape, dense=True, note="excluded")
    if config.method != "armor":
        return LayerPlan(name, shape)
    block, note = config.block_size, ""
    if block is None:
        block, note = choose_block(shape, config.overhead_budget)
    kept, of = parse_pattern(config.pattern)
    size = kept / of + overhead(shape, block)
    if size >= 1.0:
        return LayerPlan(
            name, shape, dense=True, note=f"2:4 with block {block} would be {size:.2f}x dense"
        )
    return LayerPlan(name, shape, block, note=note)


def splits(shapes: Sequence[tuple[int, int]], config: PruneConfig) -> bool:
    """Whether the parts of a fused linear get factors of their own, by their shapes (out, in).

    That is a lower loss with the block that the whole would take, and may not be with a smaller one
    (benchmarks/fused.py). So they do where that block is within the budget for each.
    """
    if config.method != "armor":
        return False
    if (block := config.block_size) is not None:
        kept, of = parse_pattern(config.pattern)
        return all(kept / of + overhead(shape, block) < 1.0 for shape in shapes)
    whole = sum(rows for rows, _ in shapes), shapes[0][1]
    block = choose_block(whole, config.overhead_budget)[0]
    return all(choose_block(shape, config.overhead_budget) == (block, "") for shape in shapes)


def choose_block(shape: tuple[int, int], budget: float) -> tuple[int, str]:
    """The largest of 128, 64, 32, 16, 8 that divides both dims within `budget`, and a note.

    Where none fits: the smallest that divides both dims; where none divides, the smallest, with a
    last partial block.
    """
    dividing = [block for block in AUTO_BLOCKS if all(size % block == 0 for size in shape)]
    for block in dividing:
        if overhead(shape, block) <= budget:
            return block, ""
    if dividing:
        block = dividing[-1]
        return block, f"block {block} is {overhead(shape, block):.1%} overhead, over the budget"
    for block in AUTO_BLOCKS:
        if overhead(shape, block) <= budget:
            return block, f"block {block} does not divide {shape[0]}x{shape[1]}: last one partial"
    block = AUTO_BLOCKS[-1]
    return block, f"block {block} is {overhead(shape, block):.1%} overhead and divides neither dim"


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
