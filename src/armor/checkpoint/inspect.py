"""inspect: what a checkpoint holds, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armor.checkpoint.format import FORMAT, LayerSpec, common_pattern
from armor.checkpoint.generalisation import generalisation
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.records import LayerRecord, RunRecord
from armor.checkpoint.stored_size import StoredSize


@dataclass(frozen=True)
class InspectedLayer:
    """One pruned layer: what the checkpoint says of it, its bytes, and what the run recorded.

    Attributes:
        harm: of its block, where a size was asked for: the divergence to expect from it.
    """

    spec: LayerSpec
    size: StoredSize
    record: LayerRecord
    harm: float | None

    @property
    def certificate(self) -> bool | None:
        """The recorded one; None of a layer without wrappers, whose method claims nothing."""
        return None if self.spec.block is None else self.record.certificate

    def to_dict(self) -> dict[str, Any]:
        """The layer's entry in `inspect`."""
        size, record = self.size, self.record
        return {
            "shape": list(self.spec.shape),
            "block": self.spec.block,
            "pattern": str(self.spec.pattern),
            "dtype": size.dtype,
            "core": self.spec.core,
            "wrappers": self.spec.wrappers,
            "parts": {
                "values": size.values,
                "indices": size.indices,
                "wrappers": size.wrappers,
                "scales": size.scales,
            },
            "bytes": size.packed,
            "dense_bytes": size.dense,
            "ratio": size.packed / size.dense,
            "overhead": size.overhead,
            "loss": record.loss,
            "nowag_loss": record.nowag_loss,
            "sparsegpt_loss": record.sparsegpt_loss,
            "unrounded_loss": record.unrounded_loss,
            "nearest_loss": record.nearest_loss,
            "seconds": record.seconds,
            "output_energy": record.output_energy,
            "output_error": record.output_error,
            "target_damping": record.target_damping,
            "belief": record.belief,
            "fitted_error": record.fitted_error,
            "held_out_error": record.held_out_error,
            "certificate": record.certificate,
            "harm": self.harm,
        }


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, with every index checked.

    Attributes:
        layers: the pruned layers by name. run: the record of the run that made it.
        model_bytes: of all weights.
    """

    layers: Mapping[str, InspectedLayer]
    run: RunRecord
    model_bytes: int

    @classmethod
    def of(cls, folder: str | Path) -> Inspection:
        """Read the checkpoint `folder`. Raises `ArmorError` unless it is a sound one."""
        checkpoint = Checkpoint.open(folder)
        run = run_record(checkpoint)
        layers = {}
        for name, spec in checkpoint.layers.items():
            checkpoint.check_pattern(name)
            size = StoredSize.of(name, spec, checkpoint.tensors)
            harm = run.size.harms.get(name) if run.size else None
            layers[name] = InspectedLayer(spec, size, run.layers[name], harm)
        return cls(layers, run, sum(stored.nbytes for stored in checkpoint.tensors.values()))

    @property
    def packed_bytes(self) -> int:
        """Of the pruned layers as stored."""
        return sum(layer.size.packed for layer in self.layers.values())

    @property
    def dense_bytes(self) -> int:
        """Of the same layers when they were dense."""
        return sum(layer.size.dense for layer in self.layers.values())

    @property
    def generalisation(self) -> float | None:
        """See `armor.checkpoint.generalisation`."""
        return generalisation(layer.record for layer in self.layers.values())

    @property
    def dense_model_bytes(self) -> int:
        """Of all weights when they were dense."""
        return self.model_bytes - self.packed_bytes + self.dense_bytes

    def to_dict(self) -> dict[str, Any]:
        """What `inspect` gives."""
        layers, size = self.layers.values(), self.run.size
        counts = {} if size is None else size.counts
        return {
            "format": FORMAT,
            "pattern": str(common_pattern({n: layer.spec for n, layer in self.layers.items()})),
            "method": self.run.method,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "budget": None
            if size is None
            else {
                "size": size.size,
                "reached": size.reached,
                "blocks": {str(block): n for block, n in counts.items() if block is not None},
                "dense": counts.get(None, 0),
            },
            "tuning": None if self.run.tuning is None else self.run.tuning.to_dict(),
            "dense_layers": self.run.dense_layers,
            "totals": {
                "layers": len(layers),
                "bytes": self.packed_bytes,
                "dense_bytes": self.dense_bytes,
                "ratio": self.packed_bytes / self.dense_bytes,
                "model_bytes": self.model_bytes,
                "dense_model_bytes": self.dense_model_bytes,
                "certified": sum(layer.record.certificate is True for layer in layers),
                "generalisation": self.generalisation,
            },
        }


def inspect(folder: str | Path) -> dict[str, Any]:
    """Sizes, losses and certificates of the checkpoint `folder`; every index is checked.

    Returns:
        ``format``, ``pattern`` (of most layers), ``method`` (None if unknown);
        ``layers``: name -> ``shape`` [out, in], ``block``, ``pattern``, ``dtype`` (of the dense
        weight), ``core`` and ``wrappers`` (what they are rounded to, None: not), ``bytes``
        (packed, without bias) and their ``parts``, ``dense_bytes``, ``ratio`` of the two,
        ``overhead`` (wrappers over the dense weight) and, None where armor_run.json lacks it,
        ``loss``, ``nowag_loss``,
        ``sparsegpt_loss`` (relative proxy losses), ``unrounded_loss`` and ``nearest_loss`` (of a
        rounded layer: before that, and merely rounded to the nearest), ``certificate``,
        ``seconds``, ``output_energy`` and ``output_error`` (mean squared norms),
        ``target_damping`` and ``belief`` (of a compensated target), ``fitted_error`` and
        ``held_out_error`` (relative errors on a sample of the tokens the layer was fitted to, and
        of those held out), ``harm`` (of its block, where a
        size was asked for: the divergence to expect from it; only comparisons matter);
        ``budget``: None, or of a run with a size: ``size`` asked for and ``reached`` (bytes over
        dense of all layers that could be pruned), ``blocks``: block -> how many layers got it
        ("0": pruned without wrappers), ``dense``: how many stay dense;
        ``tuning``: None, or of a checkpoint that was tuned: ``kind``, KL divergence from the dense
        model on held-out windows ``before`` and ``after`` in nats a token, ``best_step`` of
        ``steps``, ``seconds`` (losses and errors of layers are those before it);
        ``dense_layers``: name -> why it stayed dense, of linears that armor left alone;
        ``totals``: ``layers``, ``bytes``, ``dense_bytes``, ``ratio`` of the pruned layers,
        ``model_bytes`` and ``dense_model_bytes`` of all weights, ``certified``,
        ``generalisation`` (geometric mean of held-out over fitted error, None without them).

    Raises:
        ArmorError: not a sound armor checkpoint.
    """
    return Inspection.of(folder).to_dict()


def run_record(checkpoint: Checkpoint) -> RunRecord:
    """The record of the run that made `checkpoint`, with a record for each of its layers."""
    blocks = {name: spec.block for name, spec in checkpoint.layers.items()}
    return RunRecord.read(checkpoint.run, blocks)
