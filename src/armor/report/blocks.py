"""What was chosen to reach a given size, by kind of layer, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from armor.checkpoint.records import SizeRecord
from armor.report.data import kind_of


@dataclass(frozen=True)
class Blocks:
    """How many layers of each kind got which block.

    Attributes:
        blocks: the columns, ascending: 0 for pruned without wrappers; None, the last, for layers
            that stay dense.
        rows: kind -> a count for each of `blocks`, and the kind's share of all harm (None if there
            is none); "all" is the last.
    """

    blocks: list[int | None]
    rows: dict[str, tuple[list[int], float | None]]

    @classmethod
    def of(cls, size: SizeRecord) -> Blocks:
        """The table of `size`."""
        columns = list(size.counts)
        total = sum(size.harms.values())
        kinds: dict[str, list[str]] = {}
        for name in size.blocks:
            kinds.setdefault(kind_of(name), []).append(name)
        rows = {}
        for kind, names in {**kinds, "all": list(size.blocks)}.items():
            own = [size.blocks[name] for name in names]
            harm = sum(size.harms.get(name, 0.0) for name in names)
            rows[kind] = [own.count(block) for block in columns], harm / total if total else None
        return cls(columns, rows)
