"""Waves: the linears of a block in the order in which they can be solved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from armor.models.routed import Routed

#: The moments that one pass over the windows sums up take at most so much, or are one stage's.
SUMS_BYTES = 2**30


@dataclass(frozen=True)
class Wave:
    """Stages whose inputs do not depend on each other's results.

    Attributes:
        stages: linears that are fed one and the same tensor, by their names in the block.
        routed: the layer of experts that they are in; without one there is a single stage.
    """

    stages: list[list[str]]
    routed: Routed | None = None


def waves(
    stages: Sequence[list[str]], routed: Sequence[Routed], wanted: Callable[[str], bool]
) -> list[Wave]:
    """The waves of a block with only the linears that are `wanted`.

    All experts of a layer come together, also those that no token reached: first the linears that
    take the layer's input, then the next.

    Args:
        stages: in the order they run.
    """
    found: list[Wave] = []
    seen: set[tuple[Routed, tuple[str, ...]]] = set()
    for stage in stages:
        layer, inside = _place(stage, routed)
        if layer is None:
            found.append(Wave([stage]))
        elif (layer, inside) not in seen:
            seen.add((layer, inside))
            experts = map(layer.expert, range(layer.count))
            found.append(Wave([[f"{one}.{name}" for name in inside] for one in experts], layer))
    kept = (Wave(_only(wave.stages, wanted), wave.routed) for wave in found)
    return [wave for wave in kept if wave.stages]


def passes(stages: Sequence[list[str]], widths: Mapping[str, int]) -> Iterator[list[list[str]]]:
    """The stages of a wave in groups whose moments are summed together.

    Args:
        widths: inputs of each linear.
    """
    group: list[list[str]] = []
    size = 0
    for stage in stages:
        needed = 8 * widths[stage[0]] ** 2  # two float32 matrices
        if group and size + needed > SUMS_BYTES:
            yield group
            group, size = [], 0
        group.append(stage)
        size += needed
    if group:
        yield group


def _place(stage: list[str], routed: Sequence[Routed]) -> tuple[Routed | None, tuple[str, ...]]:
    """The layer of experts that a stage is in, and its linears by their names in the expert."""
    layer = next((layer for layer in routed if layer.holds(stage[0])), None)
    return layer, () if layer is None else tuple(layer.inside(name)[1] for name in stage)


def _only(stages: list[list[str]], wanted: Callable[[str], bool]) -> list[list[str]]:
    kept = ([name for name in stage if wanted(name)] for stage in stages)
    return [stage for stage in kept if stage]
