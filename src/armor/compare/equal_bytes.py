"""What the bytes of a row of armor's would buy otherwise: further rows of a comparison.

Wrappers cost bytes, so a row with wrappers is larger than the baselines beside it. These rows are
not: baselines that leave layers dense, SparseGPT with a matrix of low rank in place of wrappers.
And, whatever it takes, plain rounding to fewer bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from armor.checkpoint.reader import Checkpoint
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.methods import METHODS
from armor.models.folder import ModelFolder
from armor.run.describe import describe_config
from armor.run.open import open_planned


@dataclass(frozen=True)
class SameBytes:
    """The settings of a row that takes the bytes of another, which is pruned first.

    Attributes:
        method: the row's own. label, config: of the other row, a method with wrappers.
    """

    method: str
    label: str
    config: PruneConfig

    def settle(self, model: str, out: Path, sizes: Mapping[str, Any]) -> PruneConfig:
        """The settings, once the other row's checkpoint is in `out`.

        Args:
            sizes: ``linear_bytes`` and ``dense_linear_bytes`` of the other row.
        """
        config = replace(self.config, method=self.method, size=None)
        if METHODS[self.method].low_rank:
            return config if self.config.size is None else self._like_its_layers(config, out)
        _, plans, _ = open_planned(ModelFolder.open(model), config)
        every = sum(prod(plan.shape) for plan in plans)
        left = sum(prod(plan.shape) for plan in plans if plan.dense)
        left *= sizes["dense_linear_bytes"] // every
        share = (sizes["linear_bytes"] - left) / (sizes["dense_linear_bytes"] - left)
        return replace(config, size=share)

    def describe(self) -> dict[str, Any]:
        """For the log of a comparison."""
        return {**describe_config(self.config), "method": self.method, "bytes of": self.label}

    def _like_its_layers(self, config: PruneConfig, out: Path) -> PruneConfig:
        """`config` with the blocks that a size has chosen, as rules for each layer."""
        checkpoint = Checkpoint.open(out / self.label)
        rules: dict[str, dict[str, Any]] = {
            name: {"block": spec.block} for name, spec in checkpoint.layers.items()
        }
        rules |= {name: {"skip": True} for name in checkpoint.run["dense_layers"]}
        return replace(config, overrides=rules)


def with_rivals(settings: Mapping[str, PruneConfig]) -> dict[str, PruneConfig | SameBytes]:
    """`settings` and, after them, the rows that spend the bytes of its last row with wrappers.

    Raises:
        ArmorError: there is none with wrappers.
    """
    own = [label for label, config in settings.items() if METHODS[config.method].wrappers]
    if not own:
        raise ArmorError("--equal-bytes compares with armor: name it among --methods")
    label = own[-1]
    config = settings[label]
    rivals: dict[str, PruneConfig | SameBytes] = {
        f"{method}-same-bytes": SameBytes(method, label, config)
        for method in ("sparsegpt", "wanda")
    }
    rivals["sparsegpt-lowrank"] = SameBytes("sparsegpt-lowrank", label, config)
    for method in ("int8", "int4"):
        rivals[method] = replace(config, method=method, size=None)
    return {**settings, **{name: row for name, row in rivals.items() if name not in settings}}
