"""The blocks that a run chose for a size of the whole, as armor_run.json tells of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armor.checkpoint.jsonfile import number


@dataclass(frozen=True)
class Budget:
    """See docs/budget.md.

    Attributes:
        size, reached: bytes over dense of all layers that could be pruned: asked for, and taken.
        blocks: what each layer with a choice got, None where it stays dense.
        harms: of those that got a block, how much the model minds it; only comparisons matter.
    """

    size: float
    reached: float
    blocks: dict[str, int | None]
    harms: dict[str, float]

    @classmethod
    def read(cls, record: Any, pruned: Mapping[str, int | None]) -> Budget | None:
        """A run's ``budget``; its layers have the blocks `pruned`. None if it has no sound one."""
        if not isinstance(record, dict):
            return None
        size, reached = number(record.get("size")), number(record.get("reached"))
        tried = record.get("harms")
        if size is None or reached is None or not isinstance(tried, dict):
            return None
        blocks = {name: pruned.get(name) for name in tried}
        found = {
            name: number(own.get(str(blocks[name])))
            for name, own in tried.items()
            if isinstance(own, dict)
        }
        harms = {name: harm for name, harm in found.items() if harm is not None}
        return cls(size, reached, blocks, harms)

    @property
    def counts(self) -> dict[int | None, int]:
        """How many layers got which block, ascending, and last (None) how many stay dense."""
        counts = Counter(self.blocks.values())
        return {
            block: counts[block] for block in sorted(counts, key=lambda block: block or 1 << 31)
        }
