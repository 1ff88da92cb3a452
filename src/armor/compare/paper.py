"""The figures that the ARMOR paper published, to stand beside one's own."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from armor.errors import ArmorError

#: The paper's names for what `armor.compare.labels` calls otherwise.
LABELS = {
    "Dense": "dense",
    "SparseGPT": "sparsegpt",
    "Wanda": "wanda",
    "NoWag-P": "nowag",
    "ARMOR": "armor-paper",
}


@cache
def _data() -> dict[str, Any]:
    text = (files("armor.compare") / "paper_results.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def models() -> list[str]:
    """The models that the paper has figures of."""
    return [name for kind in ("tasks", "perplexity") for name in _data()[kind]["models"]]


def sources() -> dict[str, str]:
    """Where the figures come from: of "tasks" and of "perplexity"."""
    return {kind: _data()[kind]["source"] for kind in ("tasks", "perplexity")}


def published(model: str) -> dict[str, dict[str, float]]:
    """The figures of one of `models`: by label, then by task (in [0, 1]) or text.

    Raises:
        ArmorError: another model.
    """
    if model not in models():
        raise ArmorError(f"the paper has no figures of {model!r}; it has: {', '.join(models())}")
    tasks = _data()["tasks"]
    found: dict[str, dict[str, float]] = {label: {} for label in LABELS.values()}
    for name, row in tasks["models"].get(model, {}).items():
        values = [value / 100 for value in row["values"]]
        found[LABELS[name]] |= dict(zip(tasks["columns"], values, strict=True))
    perplexity = _data()["perplexity"]
    for name, value in perplexity["models"].get(model, {}).items():
        found[LABELS[name]][perplexity["text"]] = value
    return found


def same_model(name: str) -> str | None:
    """Which of `models` the folder or Hub id `name` is, going by its last part; None if none."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    last = last.removeprefix("meta-").removesuffix("-hf")
    return {model.lower(): model for model in models()}.get(last)
