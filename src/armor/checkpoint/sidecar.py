"""The small files of a model folder beside its weights: configuration, tokenizer, licence."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.jsonfile import read_json
from armor.checkpoint.weights import no_escape, safe_path
from armor.errors import ArmorError

CONFIG = "config.json"
README = "README.md"
# An allow-list: weights in any format, pickles and hidden files stay behind.
_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
_NAMES = ("license", "notice")
_TEMPLATES = "additional_chat_templates"
# What `armor eval` and `armor bench` found out about a model may lie beside it, but is no part.
_MEASUREMENTS = ("eval*.json", "bench*.json")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises `ArmorError` if there is none."""
    if not folder.is_dir():
        raise ArmorError(f"{folder} is not a folder")
    if not (folder / CONFIG).exists():
        raise ArmorError(f"{folder} has no {CONFIG}: it is not a (finished) model folder")
    return read_json(safe_path(folder, CONFIG))


def is_measurement(name: str) -> bool:
    """Whether a file of this name tells of a model and does not belong to it."""
    return any(fnmatchcase(name, pattern) for pattern in _MEASUREMENTS)


def copy_sidecar(source: Path, target: Path) -> None:
    """Copy everything but config.json, the weights and what armor itself writes, and fsync."""
    for path in sorted(source.iterdir()):
        if path.is_file() and _wanted(path.name):
            _copy(safe_path(source, path.name), target / path.name)
    if (templates := source / _TEMPLATES).is_dir():
        (target / _TEMPLATES).mkdir()
        for path in sorted(templates.glob("*.jinja")):
            _copy(no_escape(source, path), target / _TEMPLATES / path.name)


def _wanted(name: str) -> bool:
    lower = name.lower()
    if (
        name in (CONFIG, RUN_FILE)
        or is_measurement(name)
        or name.startswith(".")
        or lower.endswith(".index.json")
    ):
        return False
    return lower.startswith(_NAMES) or Path(lower).suffix in _SUFFIXES


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
