"""collect: what lies in a folder, a comparison's or a checkpoint's, as a `Report`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from armor.checkpoint.inspect import run_record
from armor.checkpoint.jsonfile import read_json, write_json
from armor.checkpoint.plain import plain_run
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.stored_size import StoredSize
from armor.compare.checkpoints import DENSE, RESULTS
from armor.compare.row import Row
from armor.errors import ArmorError
from armor.report.data import Layer, Report, Run, Sizes
from armor.report.schema import BENCH, COMPARISON, Fields, eval_fields, fits
from armor.text.bos import bos_choice, bos_words


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
        evals=_read(folder.glob("eval*.json"), evals, eval_fields(), "armor eval"),
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
    try:
        rows = [Row.read(row) for row in data["rows"]]
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
        if (folder / label / "config.json").is_file() and plain_run(folder / label) is None
    }
    return replace(
        found, title=title, runs=runs, rows=rows, notes=_notes(data), texts=data.get("texts") or {}
    )


def _notes(data: dict[str, Any]) -> dict[str, str]:
    """What was read of each text."""
    window, most = data.get("seq_len"), data.get("max_chars")
    begins = bos_choice(data.get("bos")) == "always"
    tokens = f"{window} tokens" if window else "the context, at most 2048 tokens"
    notes = {"evaluation window": f"{tokens}, {bos_words(begins)}"}
    return notes | ({"evaluated on": f"the first {most:,} characters"} if most else {})


def read_run(folder: Path, label: str) -> Run:
    """One checkpoint. Only headers and JSON are read; `armor inspect` checks the weights."""
    checkpoint = Checkpoint.open(folder)
    record = run_record(checkpoint)
    layers = [
        Layer(name, spec, StoredSize.of(name, spec, checkpoint.tensors), record.layers[name])
        for name, spec in checkpoint.layers.items()
    ]
    every = sum(stored.nbytes for stored in checkpoint.tensors.values())
    sizes = Sizes(
        values=sum(layer.size.values + layer.size.scales for layer in layers),
        indices=sum(layer.size.indices for layer in layers),
        wrappers=sum(layer.size.wrappers for layer in layers),
        rest=every - sum(layer.size.packed for layer in layers),
        dense=sum(layer.size.dense for layer in layers),
    )
    return Run(label, sizes, layers, record)


def _read(
    found: Iterable[Path], given: Iterable[Path], fields_of: Mapping[str, Fields], command: str
) -> dict[str, dict[str, Any]]:
    """The JSON objects by file name; `found` files that something else wrote are left out."""
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
