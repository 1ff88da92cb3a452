"""What a report is about: a pruned model or several, as read from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from armor.checkpoint.size import Budget
from armor.report.numbers import geometric_mean

if TYPE_CHECKING:
    from armor.compare.row import Row


@dataclass(frozen=True)
class Layer:
    """One pruned linear: sizes as stored, losses as recorded (None where the record is silent).

    Attributes:
        name, shape (out, in), block: as in the checkpoint.
        bytes, dense_bytes: packed without bias, and as it was. overhead: wrappers over dense.
        loss, nowag_loss, sparsegpt_loss: relative proxy losses. certificate: see the record.
        losses, times: after each iteration, and seconds since the layer's start.
        error: mean squared norm of what its output lost. pattern: of its core.
    """

    name: str
    shape: tuple[int, int]
    block: int | None
    bytes: int
    dense_bytes: int
    overhead: float
    loss: float | None = None
    nowag_loss: float | None = None
    sparsegpt_loss: float | None = None
    certificate: bool | None = None
    losses: tuple[float, ...] = ()
    times: tuple[float, ...] = ()
    error: float | None = None
    pattern: str = "2:4"

    @property
    def kind(self) -> str:
        """See `kind_of`."""
        return kind_of(self.name)

    @property
    def depth(self) -> int:
        """The number of its decoder block."""
        return next((int(part) for part in self.name.split(".") if part.isdecimal()), 0)

    @property
    def certified(self) -> bool | None:
        """Its certificate; None of a baseline's layer, which has no wrappers and claims nothing."""
        return None if self.block is None else self.certificate

    @property
    def ratio(self) -> float | None:
        """Its loss over NoWag-P's."""
        return self.over(self.nowag_loss)

    def over(self, base: float | None) -> float | None:
        """Its loss over `base`; None where either is unknown or `base` is zero."""
        return None if self.loss is None or not base else self.loss / base


def kind_of(name: str) -> str:
    """The last part of a layer's name; that of an expert's says so."""
    last = name.rsplit(".", 1)[-1]
    return f"experts.{last}" if ".experts." in name else last


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint's weights: the pruned layers by part, and everything else."""

    values: int
    indices: int
    wrappers: int
    rest: int
    dense: int

    @property
    def packed(self) -> int:
        """The pruned layers as stored."""
        return self.values + self.indices + self.wrappers


@dataclass(frozen=True)
class Run:
    """One checkpoint and the record of the run that made it."""

    label: str
    method: str
    sizes: Sizes
    layers: list[Layer]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    dense_layers: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory: int | None = None
    budget: Budget | None = None

    @property
    def patterns(self) -> str:
        """The pattern that all layers share, or "mixed patterns"."""
        found = {layer.pattern for layer in self.layers}
        return "mixed patterns" if len(found) > 1 else "".join(found)

    @cached_property
    def mean_ratio(self) -> float | None:
        """Geometric mean of the layers' losses over NoWag-P's."""
        return geometric_mean(layer.ratio for layer in self.layers if layer.ratio is not None)

    @cached_property
    def total_error(self) -> float:
        """The layers' summed output error; 0 where none is recorded."""
        return sum(layer.error or 0.0 for layer in self.layers)

    def share(self, layer: Layer) -> float | None:
        """The layer's share of `total_error`."""
        known = layer.error is not None and self.total_error
        return (layer.error or 0.0) / self.total_error if known else None

    @property
    def certified(self) -> tuple[int, int]:
        """Layers whose certificate holds, and layers that have one; a baseline claims none."""
        asked = [layer.certified for layer in self.layers if layer.certified is not None]
        return sum(asked), len(asked)


@dataclass(frozen=True)
class Report:
    """Everything that is shown.

    Attributes:
        rows: of a comparison, the dense model's first; empty for a single checkpoint.
        runs: the checkpoints by label, in the order of the rows.
        evals, benches: the JSON of ``armor eval`` and ``armor bench`` by file name.
        notes: further facts, such as the evaluation window.
    """

    title: str
    runs: dict[str, Run] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    evals: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    benches: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
