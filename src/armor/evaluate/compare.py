"""compare: several pruning settings on one model, each pruned, stored, loaded and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from armor.calibrate.sources import Source
from armor.checkpoint.inspect import inspect
from armor.checkpoint.jsonfile import read_json, write_json
from armor.config import PRESETS, PruneConfig
from armor.evaluate.perplexity import evaluate
from armor.models.load import load_model, load_tokenizer
from armor.run.plan import LayerPlan
from armor.run.prune import Progress, prune

RESULTS = "results.json"
DENSE = "dense"
#: What `--methods` understands: the baselines, and armor in its two presets.
LABELS = {
    "magnitude": {"method": "magnitude"},
    "wanda": {"method": "wanda"},
    "nowag": {"method": "nowag"},
    "sparsegpt": {"method": "sparsegpt"},
    "armor-paper": PRESETS["paper"],
    "armor": PRESETS["default"],
}


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        label: "dense" or a key of the settings. method: the pruning method, "dense" for none.
        perplexity: by text name.
        gap_left: by text name, the share of the best baseline's gap to dense that is left.
        linear_bytes, dense_linear_bytes: the decoder's linears as stored, and as they were.
        seconds: wall time of the pruning run.
    """

    label: str
    method: str
    perplexity: dict[str, float]
    linear_bytes: int
    dense_linear_bytes: int
    seconds: float
    gap_left: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)


def compare(
    model: str,
    settings: Mapping[str, PruneConfig],
    texts: Mapping[str, Source],
    out: Path,
    *,
    seq_len: int | None = None,
    max_chars: int | None = None,
    on_start: Callable[[str], Progress] = lambda label: Progress(),
) -> list[Row]:
    """Prune `model` with every setting and measure each on every text.

    What `out` already holds from the same model, settings and texts is not done again.

    Args:
        model: folder or Hub id of the dense model.
        settings: by label.
        texts: evaluation texts by name.
        out: folder for one checkpoint a label and results.json.
        on_start: called with each label (and "dense") before its work; gives its display.

    Returns:
        The dense model's row, then one for each setting, in order.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = out / RESULTS
    known = read_json(store)["rows"] if store.is_file() else {}
    question = [model, {name: _source(text) for name, text in texts.items()}, seq_len, max_chars]
    rows: list[Row] = []
    for label, config in {DENSE: None, **settings}.items():
        key = _key([question, label, config and config.to_dict()])
        if key in known:
            row = Row(**known[key])
            finite = {name: inf if got is None else got for name, got in row.perplexity.items()}
            rows.append(replace(row, perplexity=finite))
            continue
        progress = on_start(label)
        seconds, bytes_, dense_bytes, folder = 0.0, 0, 0, model
        if config is not None:
            result = prune(model, config, out / label, fresh=True, progress=progress)
            totals = inspect(result.out)["totals"]
            # Linears left dense count as they are, so that every row speaks of the same ones.
            left = _parameters(result.plans, dense=True)
            left *= totals["dense_bytes"] // _parameters(result.plans, dense=False)
            bytes_, dense_bytes = totals["bytes"] + left, totals["dense_bytes"] + left
            seconds = result.seconds
            folder = str(result.out)
        network, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
        perplexity = {
            name: evaluate(
                network, tokenizer, text, seq_len=seq_len, max_chars=max_chars
            ).perplexity
            for name, text in texts.items()
        }
        method = DENSE if config is None else config.method
        rows.append(Row(label, method, perplexity, bytes_, dense_bytes, seconds))
        known[key] = rows[-1].to_dict()
        write_json(store, {"rows": known})
    return with_gaps(rows)


def with_gaps(rows: Sequence[Row]) -> list[Row]:
    """The rows with the dense model's sizes filled in and `gap_left` where baselines were run."""
    dense = rows[0].perplexity
    baselines = [row for row in rows[1:] if row.method != "armor"]
    size = max((row.dense_linear_bytes for row in rows), default=0)
    done = [replace(rows[0], linear_bytes=size, dense_linear_bytes=size)]
    for row in rows[1:]:
        gaps = {}
        for name, value in row.perplexity.items():
            gap = min((base.perplexity[name] for base in baselines), default=dense[name])
            if gap > dense[name]:
                gaps[name] = (value - dense[name]) / (gap - dense[name])
        done.append(replace(row, gap_left=gaps or None))
    return done


def _parameters(plans: Sequence[LayerPlan], dense: bool) -> int:
    return sum(plan.shape[0] * plan.shape[1] for plan in plans if plan.dense == dense)


def _source(text: Source) -> Any:
    """A text as part of a key: its name, and for a file what it holds."""
    if isinstance(text, (str, PathLike)):
        path = Path(text)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return [str(text), digest]
    return _key(list(text))


def _key(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
