"""The levels that values are rounded to, where a core or wrappers are stored in few bits."""

from __future__ import annotations

from dataclasses import dataclass

#: Kept values of a row of the core that share a scale; the last ones of a row may be fewer.
SCALE_GROUP = 64


@dataclass(frozen=True)
class Levels:
    """A grid of values, in units of a scale: ``code + offset``, for each code of a range.

    Attributes:
        name: what the settings and the checkpoint call it.
        lowest, highest: code. offset: added to it.
        per_byte: codes that are stored in a byte: one as int8, two (less `lowest`) as uint8.
    """

    name: str
    lowest: int
    highest: int
    offset: float
    per_byte: int

    @property
    def largest(self) -> float:
        """The largest magnitude, in units of the scale."""
        return self.highest + self.offset


INT8 = Levels("int8", -127, 127, 0.0, 1)
#: As many levels above 0 as below: those that 2:4 keeps are hardly ever 0.
INT4 = Levels("int4", -8, 7, 0.5, 2)
#: What a core may be rounded to, by name.
CORES = {levels.name: levels for levels in (INT8, INT4)}
#: What wrappers may be rounded to, by name.
WRAPPERS = {INT8.name: INT8}


def scale_count(kept: int) -> int:
    """How many scales a row with so many kept values has."""
    return -(-kept // SCALE_GROUP)
