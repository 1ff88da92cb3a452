"""What a run writes down (armor_run.json), as types, and how they are read back.

When they are read, what is absent or of another type is None, or empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from armor.checkpoint.jsonfile import number
from armor.checkpoint.tuning import TuningRecord


@dataclass(frozen=True)
class LayerRecord:
    """What is kept about a solved layer. Losses are relative to that of a zero weight.

    A run writes down every figure; of one that is read back, those that are missing are None.

    Attributes:
        shape: (out, in). block: wrapper block, None without wrappers.
        loss: of the factors as stored, in the model's dtype.
        nowag_loss, sparsegpt_loss: of the baselines on the same problem, in the same dtype (None
            where not run).
        certificate: the loss never rose (asked of the exact solver only) and ends at or below
            NoWag-P's (and SparseGPT's).
        losses: at the start and after each iteration (each hundred of them for Adam).
        times: seconds from the layer's start until each of `losses` was known, on a GPU some at a
            time; empty if not recorded.
        output_energy, output_error: on the calibration text, mean squared norm of what the layer
            should put out (its target), and of what the factors miss of it.
        target_damping, belief: of a compensated target, see `armor.calibrate.targets`.
        fitted_error, held_out_error: on a sample of the tokens it was fitted to, and of others:
            what the factors miss of what the layer should put out, with the correction of errors
            before it; relative to the squares of what the dense layer puts out. None where no
            windows were held out.
        seconds: wall time of the whole layer.
        note: what was unusual, "" if nothing.
        compact_bytes: of a layer whose weight is stored as it is: what a compact form would take.
        unrounded_loss, nearest_loss: of a layer that is rounded to few bits: before that, and
            merely rounded to the nearest.
    """

    shape: tuple[int, int] | None
    block: int | None
    loss: float | None
    nowag_loss: float | None
    sparsegpt_loss: float | None
    certificate: bool | None
    losses: list[float]
    seconds: float | None
    note: str = ""
    times: list[float] = field(default_factory=list)
    output_energy: float | None = None
    output_error: float | None = None
    target_damping: float | None = None
    belief: float | None = None
    fitted_error: float | None = None
    held_out_error: float | None = None
    compact_bytes: int | None = None
    unrounded_loss: float | None = None
    nearest_loss: float | None = None

    @classmethod
    def read(cls, data: Any) -> LayerRecord:
        """The inverse of `to_dict`."""
        data = _mapping(data)
        shape, block, certificate = data.get("shape"), data.get("block"), data.get("certificate")
        is_shape = isinstance(shape, (list, tuple)) and [type(size) for size in shape] == [int] * 2
        compact = number(data.get("compact_bytes"))
        losses, times = _numbers(data.get("losses")), _numbers(data.get("times"))
        return cls(
            shape=(shape[0], shape[1]) if is_shape else None,
            block=block if type(block) is int else None,
            loss=number(data.get("loss")),
            nowag_loss=number(data.get("nowag_loss")),
            sparsegpt_loss=number(data.get("sparsegpt_loss")),
            certificate=certificate if isinstance(certificate, bool) else None,
            losses=losses,
            seconds=number(data.get("seconds")),
            note=_text(data.get("note")) or "",
            times=times if len(times) == len(losses) else [],
            output_energy=number(data.get("output_energy")),
            output_error=number(data.get("output_error")),
            target_damping=number(data.get("target_damping")),
            belief=number(data.get("belief")),
            fitted_error=number(data.get("fitted_error")),
            held_out_error=number(data.get("held_out_error")),
            compact_bytes=None if compact is None else int(compact),
            unrounded_loss=number(data.get("unrounded_loss")),
            nearest_loss=number(data.get("nearest_loss")),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class SizeRecord:
    """What a run chose for each layer to reach a given size, see docs/budget.md.

    Attributes:
        size, reached: bytes over dense of all layers that could be pruned: asked for, and taken.
        blocks: what each layer with a choice got: a block, 0 for pruned without wrappers, None
            where it stays dense.
        harms: of those that are pruned, the divergence to expect from it; only comparisons matter.
    """

    size: float
    reached: float
    blocks: dict[str, int | None]
    harms: dict[str, float]

    @classmethod
    def read(cls, data: Any, pruned: Mapping[str, int | None]) -> SizeRecord | None:
        """A run's ``budget``; its layers have the blocks `pruned`. None if it has no sound one."""
        data = _mapping(data)
        size, reached = number(data.get("size")), number(data.get("reached"))
        tried = data.get("harms")
        if size is None or reached is None or not isinstance(tried, dict):
            return None
        blocks = {name: pruned[name] or 0 if name in pruned else None for name in tried}
        found = {
            name: number(own.get(str(blocks[name])))
            for name, own in tried.items()
            if isinstance(own, dict)
        }
        harms = {name: harm for name, harm in found.items() if harm is not None}
        return cls(size, reached, blocks, harms)

    @property
    def counts(self) -> dict[int | None, int]:
        """How many layers got which of `blocks`, ascending, and last (None) how many stay dense."""
        counts = Counter(self.blocks.values())
        return {
            block: counts[block]
            for block in sorted(counts, key=lambda block: 1 << 31 if block is None else block)
        }


@dataclass(frozen=True)
class RunRecord:
    """armor_run.json, as far as it is sound.

    Attributes:
        model: folder or Hub id of the dense model. method: of most layers.
        config: the settings, as `PruneConfig.to_dict`; texts that were given as strings by their
            number and SHA-256.
        versions, machine: what the run used.
        layers: by name. dense_layers: name -> why it stayed dense.
        size: where a size was asked for. tuning: where the factors were trained afterwards.
        seconds, peak_memory: of the whole run; memory in bytes.
    """

    model: str | None = None
    method: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    dense_layers: dict[str, str] = field(default_factory=dict)
    size: SizeRecord | None = None
    tuning: TuningRecord | None = None
    seconds: float | None = None
    peak_memory: int | None = None

    @classmethod
    def read(cls, data: Mapping[str, Any], pruned: Mapping[str, int | None]) -> RunRecord:
        """Args: data: the file's contents. pruned: the block of every layer in the checkpoint."""
        config = _mapping(data.get("config"))
        layers = _mapping(data.get("layers"))
        dense = _mapping(data.get("dense_layers"))
        memory = number(data.get("peak_memory_bytes"))
        return cls(
            model=_text(data.get("model")),
            method=_text(config.get("method")),
            config=config,
            versions=_texts(data.get("versions")),
            machine=_texts(data.get("machine")),
            layers={name: LayerRecord.read(layers.get(name)) for name in pruned},
            dense_layers={name: note for name, note in dense.items() if isinstance(note, str)},
            size=SizeRecord.read(data.get("budget"), pruned),
            tuning=TuningRecord.read(data.get("tuning")),
            seconds=number(data.get("seconds")),
            peak_memory=None if memory is None else int(memory),
        )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> dict[str, str]:
    return {key: str(item) for key, item in _mapping(value).items()}


def _numbers(value: Any) -> list[float]:
    numbers = [number(item) for item in value] if isinstance(value, list) else []
    return [found for found in numbers if found is not None]
