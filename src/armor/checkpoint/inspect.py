"""inspect: what a checkpoint holds, layer by layer, as a JSON-ready dict."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from armor.checkpoint.format import FORMAT, LayerSpec, common_pattern
from armor.checkpoint.jsonfile import number
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.size import Budget

_NUMBERS = (
    *("loss", "nowag_loss", "sparsegpt_loss", "seconds"),
    *("output_energy", "output_error"),
)


def inspect(folder: str | Path) -> dict[str, Any]:
    """Sizes, losses and certificates of the checkpoint `folder`; every index is checked.

    Returns:
        ``format``, ``pattern`` (of most layers), ``method`` (None if unknown);
        ``layers``: name -> ``shape`` [out, in], ``block``, ``pattern``, ``dtype``, ``bytes``
        (packed, without bias), ``dense_bytes``, ``ratio`` of the two, ``overhead`` (wrapper
        parameters over dense ones) and, None where armor_run.json does not tell, ``loss``,
        ``nowag_loss``,
        ``sparsegpt_loss`` (relative proxy losses), ``certificate``, ``seconds``, ``output_energy``
        and ``output_error`` (mean squared norms), ``harm`` (of its block, where a size was asked
        for: how much the model minds it; only comparisons matter);
        ``budget``: None, or of a run with a size: ``size`` asked for and ``reached`` (bytes over
        dense of all layers that could be pruned), ``blocks``: block -> how many layers got it,
        ``dense``: how many stay dense;
        ``dense_layers``: name -> why it stayed dense, of linears that armor left alone;
        ``totals``: ``layers``, ``bytes``, ``dense_bytes``, ``ratio`` of the pruned layers,
        ``model_bytes`` and ``dense_model_bytes`` of all weights, ``certified``.

    Raises:
        ArmorError: not a sound armor checkpoint.
    """
    checkpoint = Checkpoint.open(folder)
    records = _mapping(checkpoint.run.get("layers"))
    blocks = {name: spec.block for name, spec in checkpoint.layers.items()}
    budget = Budget.read(checkpoint.run.get("budget"), blocks)
    layers = {
        name: _layer(checkpoint, name, spec)
        | _record(_mapping(records.get(name)))
        | {"harm": budget.harms.get(name) if budget else None}
        for name, spec in checkpoint.layers.items()
    }
    packed = sum(layer["bytes"] for layer in layers.values())
    dense = sum(layer["dense_bytes"] for layer in layers.values())
    model = sum(stored.nbytes for stored in checkpoint.tensors.values())
    method = _mapping(checkpoint.run.get("config")).get("method")
    return {
        "format": FORMAT,
        "pattern": str(common_pattern(checkpoint.layers)),
        "method": method if isinstance(method, str) else None,
        "layers": layers,
        "budget": None if budget is None else _budget(budget),
        "dense_layers": {
            name: note
            for name, note in _mapping(checkpoint.run.get("dense_layers")).items()
            if isinstance(note, str)
        },
        "totals": {
            "layers": len(layers),
            "bytes": packed,
            "dense_bytes": dense,
            "ratio": packed / dense,
            "model_bytes": model,
            "dense_model_bytes": model - packed + dense,
            "certified": sum(layer["certificate"] is True for layer in layers.values()),
        },
    }


def _layer(checkpoint: Checkpoint, name: str, spec: LayerSpec) -> dict[str, Any]:
    checkpoint.check_pattern(name)
    rows, cols = spec.shape
    stored = {part: checkpoint.tensors[f"{name}.{part}"] for part in spec.tensor_shapes()}
    values = stored["core_values"]
    size = sum(tensor.nbytes for tensor in stored.values())
    element = values.nbytes // prod(values.shape)
    wrappers = sum(stored[part].nbytes for part in ("left", "right") if part in stored)
    dense = rows * cols * element
    return {
        "shape": [rows, cols],
        "block": spec.block,
        "pattern": str(spec.pattern),
        "dtype": values.dtype,
        "bytes": size,
        "dense_bytes": dense,
        "ratio": size / dense,
        "overhead": wrappers / dense,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    counts = budget.counts
    return {
        "size": budget.size,
        "reached": budget.reached,
        "blocks": {str(block): count for block, count in counts.items() if block is not None},
        "dense": counts.get(None, 0),
    }


def _record(record: dict[str, Any]) -> dict[str, Any]:
    """Losses and certificate out of a layer's record, None for what is absent or no number."""
    numbers = {key: number(record.get(key)) for key in _NUMBERS}
    certificate = record.get("certificate")
    return numbers | {"certificate": certificate if isinstance(certificate, bool) else None}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
