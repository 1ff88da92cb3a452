"""The levels that values are rounded to, where a core or wrappers are stored in few bits."""

from __future__ import annotations

from dataclasses import dataclass

_STEPS = 8  # of a power of two of an 8-bit float
#: Kept values of a row of the core that share a scale; the last ones of a row may be fewer.
SCALE_GROUP = 64


@dataclass(frozen=True)
class Levels:
    """A grid of values, in units of a scale: ``code + offset``, for each code of a range.

    Attributes:
        name: what the settings and the checkpoint call it.
        lowest, highest: code. offset: added to it.
        per_byte: codes that are stored in a byte: one (a float as its bits in uint8, else as int8),
            or two (less `lowest`) as uint8.
        units: from a code to the next: 1; of floats, whose codes are the numbers themselves, of
            each power of two in turn, from that of the smallest on.
    """

    name: str
    lowest: int
    highest: int
    offset: float
    per_byte: int
    units: tuple[float, ...] = (1.0,)

    @property
    def is_float(self) -> bool:
        """Whether levels are as fine as their size: then a whole row shares one scale."""
        return len(self.units) > 1

    def scale_count(self, kept: int) -> int:
        """How many scales a row with so many kept values has."""
        return 1 if self.is_float else -(-kept // SCALE_GROUP)

    def all(self) -> list[float]:
        """Every level in units of the scale, in ascending order."""
        if not self.is_float:
            return [code + self.offset for code in range(self.lowest, self.highest + 1)]
        halves = {step * unit for unit in self.units for step in range(_STEPS, 2 * _STEPS)}
        halves |= {step * self.units[0] for step in range(_STEPS)}
        upper = sorted(half for half in halves if half <= self.highest)
        return [-half for half in reversed(upper[1:])] + upper

    @property
    def largest(self) -> float:
        """The largest magnitude, in units of the scale."""
        return self.highest + self.offset


INT8 = Levels("int8", -127, 127, 0.0, 1)
#: As many levels above 0 as below: those that 2:4 keeps are hardly ever 0.
INT4 = Levels("int4", -8, 7, 0.5, 2)
#: 8-bit floats (E4M3): 3 bits of mantissa, exponents from -6 to 8, no infinity, no NaN.
FP8 = Levels("fp8", -448, 448, 0.0, 1, tuple(2.0**power for power in range(-9, 6)))
#: What a core may be rounded to, by name.
CORES = {levels.name: levels for levels in (INT8, INT4, FP8)}
#: What wrappers may be rounded to, by name.
WRAPPERS = {INT8.name: INT8}
