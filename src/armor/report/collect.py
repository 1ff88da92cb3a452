"""collect: what lies in a folder, a comparison's or a checkpoint's, as a `Report`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.jsonfile import number, read_json, write_json
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.size import Budget
from armor.checkpoint.tensorfile import StoredTensor
from armor.compare.checkpoints import DENSE, RESULTS
from armor.compare.row import Row
from armor.errors import ArmorError
from armor.report.data import Layer, Report, Run, Sizes
from armor.report.schema import BENCH, COMPARISON, EVAL, Fields, fits


def name_comparison(folder: Path, title: str) -> None:
    """Give the comparison in `folder` a title for its report."""
    file = folder / RESULTS
    write_json(file, {"title": title} | read_json(file))


def collect(folder: Path, evals: Iterable[Path] = (), benches: Iterable[Path] = ()) -> Report:
    """Read the folder of ``armor compare``, ``armor demo`` or ``armor prune``.

    Args:
        evals, benches: files that ``armor eval --json`` and ``armor bench --json`` wrote; those in
            `folder` named ``eval*.json`` and ``bench*.json`` are found without.

    Raises:
        ArmorError: neither kind of folder, or a damaged file.
    """
    if not folder.is_dir():
        raise ArmorError(f"{folder} is not a folder")
    found = Report(
        folder.resolve().name,
        evals=_read(folder.glob("eval*.json"), evals, EVAL, "armor eval"),
        benches=_read(folder.glob("bench*.json"), benches, BENCH, "armor bench"),
    )
    if (folder / RESULTS).is_file():
        return _comparison(folder, found)
    if not (folder / "config.json").is_file():
        raise ArmorError(
            f"{folder} holds neither a checkpoint of armor prune nor the results of armor compare"
        )
    run = read_run(folder, found.title)
    return replace(found, runs={run.label: run})


def _comparison(folder: Path, found: Report) -> Report:
    data = read_json(folder / RESULTS)
    if not fits(data, COMPARISON):
        raise ArmorError(f"{folder / RESULTS} is damaged; run armor compare again")
    known = {item.name for item in fields(Row)}
    try:
        rows = [
            Row(**{key: value for key, value in row.items() if key in known})
            for row in data["rows"]
        ]
        for row in rows:
            missing = [text for text, value in row.perplexity.items() if value is None]
            row.perplexity.update(dict.fromkeys(missing, math.inf))
        title = str(data.get("title") or Path(data["model"]).name)
    except (KeyError, TypeError, AttributeError):
        raise ArmorError(f"{folder / RESULTS} is damaged; run armor compare again") from None
    if not rows:
        raise ArmorError(f"{folder / RESULTS} has no rows yet; run armor compare again")
    whole = all(
        row.perplexity.keys() == rows[0].perplexity.keys()
        and (row.dense_linear_bytes > 0 or row.label == DENSE)
        for row in rows
    )
    if not whole:
        raise ArmorError(f"{folder / RESULTS} is damaged; run armor compare again")
    labels = [row.label for row in rows if row.label != DENSE]
    runs = {
        label: read_run(folder / label, label)
        for label in labels
        if (folder / label / "config.json").is_file()
    }
    return replace(found, title=title, runs=runs, rows=rows, notes=_notes(data))


def _notes(data: dict[str, Any]) -> dict[str, str]:
    """What was read of each text."""
    window, most = data.get("seq_len"), data.get("max_chars")
    notes = {"evaluation window": f"{window} tokens" if window else "the context, at most 2048"}
    return notes | ({"evaluated on": f"the first {most:,} characters"} if most else {})


def read_run(folder: Path, label: str) -> Run:
    """One checkpoint. Only headers and JSON are read; `armor inspect` checks the weights."""
    checkpoint = Checkpoint.open(folder)
    record = checkpoint.run
    known = _mapping(record.get("layers"))
    layers = [
        _layer(name, spec, checkpoint.tensors, _mapping(known.get(name)))
        for name, spec in checkpoint.layers.items()
    ]
    config, machine = _mapping(record.get("config")), _mapping(record.get("machine"))
    facts = {"model": record.get("model")} | {f"machine {key}": v for key, v in machine.items()}
    method = record.get("method") or config.get("method")
    memory = number(record.get("peak_memory_bytes"))
    return Run(
        label,
        str(method or "not recorded"),
        _sizes(checkpoint, layers),
        layers,
        config,
        {key: str(value) for key, value in _mapping(record.get("versions")).items()},
        {key: str(value) for key, value in facts.items() if value is not None},
        {key: str(why) for key, why in _mapping(record.get("dense_layers")).items()},
        number(record.get("seconds")),
        None if memory is None else int(memory),
        Budget.read(record.get("budget"), {layer.name: layer.block for layer in layers}),
    )


def _layer(
    name: str, spec: LayerSpec, tensors: Mapping[str, StoredTensor], record: dict[str, Any]
) -> Layer:
    stored = {part: tensors[f"{name}.{part}"].nbytes for part in spec.tensor_shapes()}
    values = tensors[f"{name}.core_values"]
    dense = values.nbytes // prod(values.shape) * prod(spec.shape)
    certificate = record.get("certificate")
    losses, times = _numbers(record.get("losses")), _numbers(record.get("times"))
    return Layer(
        name,
        spec.shape,
        spec.block,
        sum(stored.values()),
        dense,
        (stored.get("left", 0) + stored.get("right", 0)) / dense,
        loss=number(record.get("loss")),
        nowag_loss=number(record.get("nowag_loss")),
        sparsegpt_loss=number(record.get("sparsegpt_loss")),
        certificate=certificate if isinstance(certificate, bool) else None,
        losses=losses,
        times=times if len(times) == len(losses) else (),
        error=number(record.get("output_error")),
        pattern=str(spec.pattern),
    )


def _sizes(checkpoint: Checkpoint, layers: list[Layer]) -> Sizes:
    def part(*ends: str) -> int:
        return sum(
            checkpoint.tensors[f"{name}.{end}"].nbytes
            for name, spec in checkpoint.layers.items()
            for end in ends
            if end in spec.tensor_shapes()
        )

    values, indices, wrappers = part("core_values"), part("core_indices"), part("left", "right")
    every = sum(stored.nbytes for stored in checkpoint.tensors.values())
    dense = sum(layer.dense_bytes for layer in layers)
    return Sizes(values, indices, wrappers, every - values - indices - wrappers, dense)


def _read(
    found: Iterable[Path], given: Iterable[Path], fields_of: Mapping[str, Fields], command: str
) -> dict[str, dict[str, Any]]:
    """The JSON objects by file name; `found` files of another make are passed over."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(found):
        data = read_json(path)
        if fits(data, fields_of):
            files[path.name] = data
    for path in given:
        data = read_json(path)
        if not fits(data, fields_of):
            raise ArmorError(f"{path} was not written by {command} --json")
        files[path.name if path.name not in files else str(path)] = data
    return files


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = [number(item) for item in value] if isinstance(value, list) else []
    return tuple(found for found in numbers if found is not None)
