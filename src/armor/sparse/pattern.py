"""The sparsity pattern of a core: N of every M entries, or a share of all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from armor.errors import ArmorError


@dataclass(frozen=True)
class Pattern:
    """Which entries of a core may differ from zero.

    Attributes:
        kept, group: of every `group` consecutive entries of a row, `kept`; both 0 if unstructured.
        percent: of an unstructured pattern, how many of 100 entries of the matrix are zero; else 0.
    """

    kept: int
    group: int
    percent: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``"4:8"`` or ``"50%"``; raises `ArmorError` on anything else."""
        if not isinstance(text, str):
            raise ArmorError(f"a pattern is a text, such as '2:4' or '50%', not {text!r}")
        if found := re.fullmatch(r"([1-7]):([248])", text):
            kept, group = int(found[1]), int(found[2])
            if kept < group:
                return cls(kept, group)
        elif (found := re.fullmatch(r"([1-9][0-9]?)%", text)) is not None:
            return cls(0, 0, int(found[1]))
        raise ArmorError(
            f"unknown pattern {text!r}; valid: N of every 2, 4 or 8 entries, such as 2:4 and 4:8,"
            " or a share of zeros wherever they are, such as 50%"
        )

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}" if self.group else f"{self.percent}%"

    @property
    def is_unstructured(self) -> bool:
        """Whether entries compete all over the matrix."""
        return not self.group

    @property
    def density(self) -> float:
        """Share of the entries that are kept."""
        return self.kept / self.group if self.group else 1 - self.percent / 100

    def count(self, shape: tuple[int, int]) -> int:
        """How many entries an unstructured core of `shape` keeps: at least 1."""
        return max(1, round(self.density * shape[0] * shape[1]))

    @property
    def masks(self) -> tuple[tuple[int, ...], ...]:
        """The kept positions of each mask of a group, in lexicographic order (N:M only)."""
        return _masks(self.kept, self.group)


@cache
def _masks(kept: int, group: int) -> tuple[tuple[int, ...], ...]:
    return tuple(combinations(range(group), kept))


TWO_OF_FOUR = Pattern(2, 4)
#: Nothing is zero: of a weight that is kept as it is, not packed. No name of it can be parsed.
EVERYTHING = Pattern(1, 1)


def counted(patterns: Iterable[Pattern | str]) -> str:
    """How many layers have which pattern, the most frequent first: "9 layers 2:4, 1 layer 50%"."""
    return ", ".join(
        f"{count} {'layer' if count == 1 else 'layers'} {pattern}"
        for pattern, count in Counter(map(str, patterns)).most_common()
    )
