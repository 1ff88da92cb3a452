"""What a report is about: a pruned model or several, as read from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.generalisation import generalisation
from armor.checkpoint.loss_ratio import loss_ratio, mean_loss_ratio
from armor.checkpoint.records import LayerRecord, RunRecord
from armor.checkpoint.stored_size import StoredSize

if TYPE_CHECKING:
    from armor.compare.row import Row


@dataclass(frozen=True)
class Layer:
    """One pruned linear, as it is stored and as the run recorded it.

    Attributes:
        name: as in the checkpoint. spec: shape, block and pattern. size: its bytes.
        record: of the run; its figures are None where the run recorded nothing.
    """

    name: str
    spec: LayerSpec
    size: StoredSize
    record: LayerRecord

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
        return None if self.spec.block is None else self.record.certificate

    @property
    def ratio(self) -> float | None:
        """Its loss over NoWag-P's."""
        return loss_ratio(self.record)

    @property
    def sparsegpt_ratio(self) -> float | None:
        """Its loss over SparseGPT's; None where either is unknown."""
        loss, base = self.record.loss, self.record.sparsegpt_loss
        return None if loss is None or not base else loss / base


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
    sizes: Sizes
    layers: list[Layer]
    record: RunRecord = field(default_factory=RunRecord)

    @property
    def method(self) -> str:
        """The pruning method, in words where it is unknown."""
        return self.record.method or "not recorded"

    @property
    def patterns(self) -> str:
        """The pattern that all layers share, or "mixed patterns"."""
        found = {str(layer.spec.pattern) for layer in self.layers}
        return "mixed patterns" if len(found) > 1 else "".join(found)

    @cached_property
    def mean_ratio(self) -> float | None:
        """Geometric mean of the layers' losses over NoWag-P's."""
        return mean_loss_ratio(layer.record for layer in self.layers)

    @cached_property
    def generalisation(self) -> float | None:
        """Geometric mean of the layers' held-out errors over their fitted ones."""
        return generalisation(layer.record for layer in self.layers)

    @cached_property
    def total_error(self) -> float:
        """The layers' summed output error; 0 where none is recorded."""
        return sum(layer.record.output_error or 0.0 for layer in self.layers)

    def share(self, layer: Layer) -> float | None:
        """The layer's share of `total_error`; None where its own is unknown."""
        error = layer.record.output_error
        return error / self.total_error if error is not None and self.total_error else None

    @property
    def has_block_budget(self) -> bool:
        """Whether each layer's block was chosen to keep its own overhead within a budget."""
        config = self.record.config
        return config.get("block_size", 0) is None and config.get("size") is None

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
        texts: of a comparison, the evaluation texts by name, as `Source.record` has them.
    """

    title: str
    runs: dict[str, Run] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    evals: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    benches: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> Any:
        """The calibration text of every checkpoint, as recorded; None where they differ."""
        found = [run.record.config.get("calibration") for run in self.runs.values()]
        return found[0] if found and all(text == found[0] for text in found) else None
