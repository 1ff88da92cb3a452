"""The plan: which linears are pruned, with which wrapper block, and which stay dense and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from armor.baselines.quantised import rounded_bytes
from armor.config import AUTO_BLOCKS, PruneConfig
from armor.errors import ArmorError
from armor.methods import METHODS
from armor.recipe import OWN_DTYPE
from armor.sparse.levels import CORES
from armor.sparse.pack import packed_shapes
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one linear.

    Attributes:
        name: its name in the checkpoint. shape: (out, in).
        block: wrapper block size; None without wrappers (a baseline).
        method, pattern, core, wrappers: where they are not those of the run, else "".
        dense: stays as it is.
        blocks: those to choose from, ascending, where the size of the whole decides; 0 stands for
            pruned without wrappers.
        rank: of the matrix that is added to the core, by a method that has one.
        note: why it stays dense, or what is unusual about its block; "" if nothing.
    """

    name: str
    shape: tuple[int, int]
    block: int | None = None
    dense: bool = False
    note: str = ""
    method: str = ""
    pattern: str = ""
    core: str = ""
    wrappers: str = ""
    blocks: tuple[int, ...] = ()
    rank: int = 0

    def settings(self, config: PruneConfig) -> PruneConfig:
        """The run's settings with the layer's own."""
        core, wrappers = (
            None if (own or of_run) == OWN_DTYPE else own or of_run
            for own, of_run in ((self.core, config.core), (self.wrappers, config.wrappers))
        )
        return replace(
            config,
            method=self.method or config.method,
            pattern=self.pattern or config.pattern,
            core=core,
            wrappers=wrappers if core else None,
        )

    def rules(self) -> dict[str, Any]:
        """What a recipe says of the layer to have it pruned like this."""
        if self.dense:
            return {"skip": True}
        rules: dict[str, Any] = {
            "method": self.method,
            "pattern": self.pattern,
            "core": self.core,
            "wrappers": self.wrappers,
            "block": self.block,
        }
        return {key: value for key, value in rules.items() if value}

    @property
    def overhead(self) -> float:
        """Parameters of the wrappers as a share of the dense weight's."""
        return 0.0 if self.block is None else overhead(self.shape, self.block)


def overhead(shape: tuple[int, int], block: int) -> float:
    """Wrapper parameters over dense parameters, partial blocks counted whole."""
    return _wrapper_parameters(shape, block) / (shape[0] * shape[1])


def _wrapper_parameters(shape: tuple[int, int], block: int) -> int:
    return sum(-(-size // block) for size in shape) * block * block


def make_plan(
    shapes: Mapping[str, tuple[int, int]], config: PruneConfig, itemsize: int = 2
) -> list[LayerPlan]:
    """One plan a linear, in the order of `shapes`; `itemsize` is the bytes of a weight.

    Raises:
        ArmorError: the globs match nothing, or an include glob matches nothing.
    """
    for what, globs in (("--include", config.include), ("recipe, layers", config.overrides)):
        for glob in globs:
            if not any(_matches(name, [glob]) for name in shapes):
                raise ArmorError(
                    f"{what} {glob!r} matches no linear layer; there are, for example,"
                    f" {', '.join(list(shapes)[:3])}"
                )
    plans = [_plan_layer(name, shape, config, itemsize) for name, shape in shapes.items()]
    if all(plan.dense for plan in plans):
        notes = sorted({plan.note for plan in plans})
        raise ArmorError(f"nothing to prune: all {len(plans)} linears stay dense ({notes[0]})")
    return plans


def _plan_layer(name: str, shape: tuple[int, int], config: PruneConfig, itemsize: int) -> LayerPlan:
    if config.include and not _matches(name, config.include):
        return LayerPlan(name, shape, dense=True, note="not included")
    if _matches(name, config.exclude):
        return LayerPlan(name, shape, dense=True, note="excluded")
    rules: dict[str, Any] = {}
    for glob, own in config.overrides.items():
        if _matches(name, [glob]):
            rules |= own
    if rules.get("skip"):
        return LayerPlan(name, shape, dense=True, note="skipped by the recipe")
    method, pattern = rules.get("method", config.method), rules.get("pattern", config.pattern)
    plan = LayerPlan(
        name,
        shape,
        method=method if method != config.method else "",
        pattern=pattern if pattern != config.pattern else "",
        core=rules.get("core", ""),
        wrappers=rules.get("wrappers", ""),
    )
    stored = stored_as(plan.settings(config))
    if plan.method:
        plan = replace(plan, note=f"{method}, by the recipe")
    parsed = Pattern.parse(pattern)
    if METHODS[method].low_rank:
        block = rules.get("block", config.block_size)
        if block in (None, "auto"):
            block, _ = choose_block(shape, config.overhead_budget)
        plan = replace(plan, rank=_wrapper_parameters(shape, block) // sum(shape))
    if METHODS[method].is_plain:
        size = (compact_bytes(plan, config, itemsize) or 0) / (prod(shape) * itemsize)
        if size >= 1.0:
            return LayerPlan(name, shape, dense=True, note=f"{method} would be {size:.2f}x dense")
        return plan
    if not METHODS[method].wrappers:
        if (size := packed_size(shape, None, itemsize, parsed, *stored)) >= 1.0:
            return LayerPlan(name, shape, dense=True, note=f"{pattern} would be {size:.2f}x dense")
        return plan if config.size is None or "method" in rules else replace(plan, blocks=(0,))
    block, note = rules.get("block", config.block_size), ""
    if config.size is not None and "block" not in rules:
        if blocks := candidates(shape, itemsize, parsed, *stored):
            return replace(plan, blocks=blocks)
        note = f"{pattern} with block {AUTO_BLOCKS[-1]} would not be smaller"
        return LayerPlan(name, shape, dense=True, note=note)
    if block in (None, "auto"):
        block, note = choose_block(shape, config.overhead_budget)
    if block % max(parsed.group, 4):
        raise ArmorError(
            f"{name}: block {block} is not a multiple of {parsed.group}, for {pattern}"
        )
    if (size := packed_size(shape, block, itemsize, parsed, *stored)) >= 1.0:
        note = f"{pattern} with block {block} would be {size:.2f}x dense"
        return LayerPlan(name, shape, dense=True, note=note)
    return replace(plan, block=block, note=plan.note or note)


def stored_as(settings: PruneConfig) -> tuple[str | None, str | None]:
    """What core and wrappers are rounded to, by the settings of a layer; None: they are not."""
    wrappers = settings.wrappers if METHODS[settings.method].wrappers else None
    return settings.core, wrappers


def candidates(
    shape: tuple[int, int],
    itemsize: int,
    pattern: Pattern = TWO_OF_FOUR,
    core: str | None = None,
    wrappers: str | None = None,
) -> tuple[int, ...]:
    """The blocks that make a layer smaller, ascending: those that divide both dims, or else any."""
    sizes = {
        block: packed_size(shape, block, itemsize, pattern, core, wrappers)
        for block in AUTO_BLOCKS[::-1]
    }
    blocks = [block for block, size in sizes.items() if size < 1.0]
    dividing = tuple(block for block in blocks if all(size % block == 0 for size in shape))
    return dividing or tuple(blocks)


def packed_size(
    shape: tuple[int, int],
    block: int | None,
    itemsize: int = 2,
    pattern: Pattern = TWO_OF_FOUR,
    core: str | None = None,
    wrappers: str | None = None,
) -> float:
    """Bytes of a pruned layer over those of the dense one, positions and scales counted.

    Args:
        core, wrappers: what they are rounded to; None: they have the dtype of the dense weight.
    """
    values, indices = packed_shapes(*shape, pattern)
    dense = shape[0] * shape[1]
    core_bytes: float = prod(values) * itemsize
    if core is not None:
        core_bytes = prod(values) // CORES[core].per_byte
        core_bytes += shape[0] * CORES[core].scale_count(values[1]) * itemsize
    added = 0.0 if block is None else overhead(shape, block)
    if wrappers is not None and block is not None:
        scales = sum(-(-size // block) for size in shape) * block
        added = added / itemsize + scales / dense
    return (core_bytes + prod(indices)) / (dense * itemsize) + added


def compact_bytes(plan: LayerPlan, config: PruneConfig, itemsize: int) -> int | None:
    """Bytes of a compact form of a layer whose weight is stored as it is; None of any other."""
    own = plan.settings(config)
    method = METHODS[own.method]
    if method.bits is not None:
        return rounded_bytes(plan.shape, method.bits)
    if not method.low_rank:
        return None
    core = packed_size(plan.shape, None, itemsize, Pattern.parse(own.pattern))
    return round(core * prod(plan.shape) * itemsize) + plan.rank * sum(plan.shape) * itemsize


def splits(shapes: Sequence[tuple[int, int]], config: PruneConfig) -> bool:
    """Whether the parts of a fused linear get factors of their own, by their shapes (out, in).

    That is a lower loss with the block that the whole would take, and may not be with a smaller one
    (benchmarks/fused.py). So they do where that block is within the budget for each.
    """
    method = METHODS[config.method]
    if not (method.wrappers or method.low_rank):
        return False
    if (block := config.block_size) is not None:
        pattern = Pattern.parse(config.pattern)
        return all(packed_size(shape, block, pattern=pattern) < 1.0 for shape in shapes)
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
    """Whether a glob matches the layer, or the fused one that it is a part of (``qkv_proj.0``)."""
    whole = re.sub(r"\.\d+$", "", name)
    return any(fnmatchcase(name, glob) or fnmatchcase(whole, glob) for glob in globs)
