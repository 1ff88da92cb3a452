"""Axes: from values to positions, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 2.5, 5)
_DECADES = ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # from many ticks a decade to few
_LOG_FROM = 4.0  # ratio of the largest to the smallest value


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to positions [start, end], linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = ((math.log(x) if self.log else x) for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """At most `most` round values inside [low, high], ascending; as many as that allows."""
        if self.log:
            candidates = [self._decades(steps) for steps in _DECADES]
            found = next((ticks for ticks in candidates if len(ticks) <= most), candidates[-1])
            if len(found) >= 3:
                return found[:: -(-len(found) // most)]
        unit = math.floor(math.log10(self.high - self.low)) - 1
        steps = (factor * 10.0**power for power in range(unit, unit + 4) for factor in _STEPS)
        return next(ticks for ticks in map(self._multiples, steps) if len(ticks) <= most)

    def _multiples(self, step: float) -> list[float]:
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _decades(self, steps: Sequence[int]) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = (step * 10.0**power for power in powers for step in steps)
        return [value for value in values if self.low <= value <= self.high]


def fit(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale with a margin around positive `values`, logarithmic where they span a factor of 4."""
    low, high = min(values), max(values)
    if high > _LOG_FROM * low:
        margin = (high / low) ** 0.06
        return Scale(low / margin, high * margin, start, end, log=True)
    margin = max(0.08 * (high - low), 1e-3 * high)
    return Scale(low - margin, high + margin, start, end)
