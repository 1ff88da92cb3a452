"""Choosing what becomes of each layer, within so many bytes in all, by the measured harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.methods import METHODS
from armor.run.plan import LayerPlan, packed_size, stored_as
from armor.run.size.allocate import Choice, allocate
from armor.sparse.pattern import Pattern

#: Harm of each block that was tried, by layer: divergence to expect, nats a token.
Harms = Mapping[str, Mapping[str, float]]


def check_size(plans: Sequence[LayerPlan], config: PruneConfig, itemsize: int) -> None:
    """Raise `ArmorError` if no choice of blocks is as small as `config.size`."""
    assert config.size is not None
    counted = [plan for plan in plans if not plan.dense]
    least = sum(
        min(choice.nbytes for choice in _choices(plan, config, itemsize)) for plan in counted
    )
    dense = sum(_dense_bytes(plan, itemsize) for plan in counted)
    if least > config.size * dense:
        raise ArmorError(
            f"size {config.size:g} cannot be reached: {_smallest(config)} take"
            f" {math.ceil(1e4 * least / dense) / 1e4:.4f} of the dense layers"
        )


def choose(
    plans: Sequence[LayerPlan], config: PruneConfig, itemsize: int, harms: Harms
) -> tuple[list[LayerPlan], dict[str, Any]]:
    """The plans with the blocks that do least harm within `config.size`.

    Returns:
        The plans; for the run's record ``size`` as asked for, ``reached``, and ``harms``.
    """
    assert config.size is not None
    counted = {plan.name: plan for plan in plans if not plan.dense}
    whole = sum(_dense_bytes(plan, itemsize) for plan in counted.values())
    choices = {
        name: _choices(plan, config, itemsize, harms.get(name, {}))
        for name, plan in counted.items()
    }
    chosen = allocate(choices, math.floor(config.size * whole))
    assert chosen is not None  # see check_size
    note = f"worth more dense than its bytes elsewhere, for size {config.size:g}"
    found = []
    for plan in plans:
        if plan.blocks:
            block = chosen[plan.name].block
            dense = block is None
            own = note if dense else plan.note
            found.append(replace(plan, blocks=(), block=block or None, dense=dense, note=own))
        else:
            found.append(plan)
    if all(plan.dense for plan in found):
        raise ArmorError(f"size {config.size:g} leaves every layer dense: ask for less")
    about = {
        "size": config.size,
        "reached": sum(choice.nbytes for choice in chosen.values()) / whole,
        "harms": harms,
    }
    return found, about


def _choices(
    plan: LayerPlan, config: PruneConfig, itemsize: int, harms: Mapping[str, float] | None = None
) -> list[Choice]:
    """What may become of a layer; of one whose block is given, that alone."""
    dense = _dense_bytes(plan, itemsize)
    own = plan.settings(config)
    pattern, stored = Pattern.parse(own.pattern), stored_as(own)

    def nbytes(block: int | None) -> int:
        return round(packed_size(plan.shape, block or None, itemsize, pattern, *stored) * dense)

    if not plan.blocks:
        return [Choice(plan.block, nbytes(plan.block), 0.0)]
    found = harms or {}
    pruned = [
        Choice(block, nbytes(block), found.get(str(block), math.inf)) for block in plan.blocks
    ]
    return [*pruned, Choice(None, dense, 0.0)]


def _smallest(config: PruneConfig) -> str:
    return "the smallest blocks" if METHODS[config.method].wrappers else "all layers pruned"


def _dense_bytes(plan: LayerPlan, itemsize: int) -> int:
    return plan.shape[0] * plan.shape[1] * itemsize
