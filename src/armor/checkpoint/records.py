"""What a run writes down, as types: a layer's record, out of armor_run.json and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerRecord:
    """What is kept about a solved layer. Losses are relative to that of a zero weight.

    Attributes:
        shape: (out, in). block: wrapper block, None without wrappers.
        loss: of the factors as stored, in the model's dtype.
        nowag_loss, sparsegpt_loss: of the baselines on the same problem, in the same dtype (None
            where not run).
        certificate: the loss never rose (asked of the exact solver only) and ends at or below
            NoWag-P's (and SparseGPT's).
        losses: at the start and after each iteration (each hundred of them for Adam).
        times: seconds from the layer's start to each of `losses`.
        output_energy, output_error: on the calibration text, mean squared norm of what the layer
            should put out (its target), and of what the factors miss of it.
        seconds: wall time of the whole layer.
        note: what was unusual, "" if nothing.
    """

    shape: tuple[int, int]
    block: int | None
    loss: float
    nowag_loss: float
    sparsegpt_loss: float | None
    certificate: bool
    losses: list[float]
    seconds: float
    note: str = ""
    times: list[float] = field(default_factory=list)
    output_energy: float | None = None
    output_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)
