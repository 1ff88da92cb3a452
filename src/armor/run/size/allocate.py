"""The budget: one choice a layer, within so many bytes in all, that does the least harm."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What may become of a layer.

    Attributes:
        block: wrapper block, 0 for pruned without wrappers; None leaves the layer dense.
        nbytes: as stored. harm: how much worse the model gets; only comparisons matter.
    """

    block: int | None
    nbytes: int
    harm: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice] | None:
    """A choice for each layer, at most `budget` bytes together; None if that cannot be.

    Every layer begins with its smallest choice. Then, again and again, the step that takes off
    most harm for its bytes, among those that still fit; a layer's steps go along the lower convex
    hull of its choices, so each buys less than the one before. The total harm is above the least
    possible by no more than what the first step that did not fit would have taken off.

    Args:
        choices: by layer; those of equal harm for equal bytes count in order.
    """
    hulls = {name: _hull(own) for name, own in choices.items()}
    at = dict.fromkeys(hulls, 0)
    left = budget - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        return None
    # Names break ties: the result does not depend on the order of anything.
    waiting = [(_slope(*hull[:2]), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        hull, here = hulls[name], at[name]
        cost = hull[here + 1].nbytes - hull[here].nbytes
        if cost > left:
            continue  # smaller ones of other layers may fit
        left -= cost
        at[name] = here + 1
        if here + 2 < len(hull):
            heapq.heappush(waiting, (_slope(*hull[here + 1 : here + 3]), name))
    return {name: hull[at[name]] for name, hull in hulls.items()}


def _slope(small: Choice, large: Choice) -> float:
    """Harm for each further byte; below 0 on a hull."""
    return (large.harm - small.harm) / (large.nbytes - small.nbytes)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull from the smallest choice to the least harm, by bytes."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.nbytes, choice.harm)):
        if hull and choice.harm >= hull[-1].harm:
            continue
        while len(hull) > 1 and _slope(*hull[-2:]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull
