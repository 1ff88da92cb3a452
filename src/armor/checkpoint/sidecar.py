"""The small files of a model folder beside its weights: configuration, tokenizer, licence."""

from __future__ import annotations

import os
import re
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
# An allow-list: weights in any format, pickles and hidden files are not copied.
_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
# Licences, notices and policies of use: they must travel with the weights.
_LEGAL = re.compile(
    r"licen[cs]e|notice|copying|copyright|polic(y|ies)|terms|acceptable.?use|attribution|patents"
)
_DOCUMENTS = {"", ".md", ".txt", ".rst", ".html", ".htm", ".pdf", ".rtf"}
_TEMPLATES = "additional_chat_templates"
# Results of `armor eval` and `armor bench` may lie beside a model, but are no part of it.
_MEASUREMENTS = ("eval*.json", "bench*.json")
_MAX_BYTES = 256 << 20  # real ones stay below a fifth of it


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises `ArmorError` if there is none."""
    if not folder.is_dir():
        raise ArmorError(f"{folder} is not a folder")
    if not (folder / CONFIG).exists():
        raise ArmorError(f"{folder} has no {CONFIG}: it is not a (finished) model folder")
    return read_json(safe_path(folder, CONFIG))


def is_measurement(name: str) -> bool:
    """Whether a file of this name holds measurements of a model and is no part of it."""
    return any(fnmatchcase(name, pattern) for pattern in _MEASUREMENTS)


def sidecar_files(folder: Path) -> list[Path]:
    """The files beside config.json and the weights, but for what armor itself writes.

    Raises:
        ArmorError: one is a link out of the folder, or too large to be what it seems.
    """
    paths = [path for path in folder.iterdir() if path.is_file() and is_sidecar(path.name)]
    if (templates := folder / _TEMPLATES).is_dir():
        paths += [path for path in templates.iterdir() if is_sidecar(f"{_TEMPLATES}/{path.name}")]
    for path in paths:
        if (size := no_escape(folder, path).stat().st_size) > _MAX_BYTES:
            raise ArmorError(
                f"{path} has {size / 1e9:.1f} GB, too much for a file beside the weights: move it"
                " out of the folder"
            )
    return sorted(paths)


def copy_sidecar(source: Path, target: Path) -> None:
    """Copy the `sidecar_files`, and fsync. Raises `ArmorError` as it does."""
    for path in sidecar_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        _copy(path, copy)


def is_sidecar(name: str) -> bool:
    """Whether a file goes into every copy of the model, but for what armor itself writes.

    Args:
        name: relative to the model's folder, with forward slashes.
    """
    parent, _, leaf = name.rpartition("/")
    if parent:
        return parent == _TEMPLATES and leaf.endswith(".jinja")
    lower = name.lower()
    if (
        name in (CONFIG, RUN_FILE)
        or is_measurement(name)
        or name.startswith(".")
        or lower.endswith(".index.json")
    ):
        return False
    suffix = Path(lower).suffix
    return suffix in _SUFFIXES or is_legal(lower)


def is_legal(name: str) -> bool:
    """Whether a file of this name is a licence, a notice or a policy of use."""
    lower = name.lower()
    # "LICENSE-2.0" has a suffix that is none.
    known = Path(lower).suffix in _DOCUMENTS or lower.startswith(("license", "licence", "notice"))
    return known and _LEGAL.search(lower) is not None


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
