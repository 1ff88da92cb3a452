"""JSON files: read with one-line errors, written with stable bytes."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from armor.checkpoint.atomic import atomic_write
from armor.errors import ArmorError, cannot_read

_MAX_BYTES = 64 << 20
_MAX_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, at most 64 MB, as `parse_json` reads it.

    Raises:
        ArmorError: not readable, too large, not JSON, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES >> 20} MB")
            data = parse_json(file.read())
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, "copy or download the file again") from None
    if not isinstance(data, dict):
        raise ArmorError(f"{path} is not a JSON object; copy or download the file again")
    return data


def parse_json(raw: bytes) -> Any:
    """JSON in UTF-8 that means the same to every reader and can be written again.

    Raises:
        ValueError: not JSON, a key twice in one object, over 64 levels deep, half a surrogate pair.
    """
    text = raw.decode("utf-8")
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [data]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            break
    else:
        raise ValueError("nested too deeply")
    if _SURROGATE.search(text):
        json.dumps(data, ensure_ascii=False).encode()  # raises UnicodeEncodeError, a ValueError
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("an object has the same key twice")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` in its own key order, numbers that JSON lacks (NaN, inf) as null; atomic."""
    write_text(path, json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n")


def check_file(path: Path | None) -> None:
    """Raise `ArmorError` unless a file can be written at `path`, before hours of work for it."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ArmorError(f"cannot write {path}: its folder does not exist")
    if path.is_dir():
        raise ArmorError(f"cannot write {path}: it is a folder; give a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArmorError(f"cannot write {path}: its folder is read-only; choose another one")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, complete or not at all. Raises `OSError` as `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def number(value: Any) -> float | None:
    """A finite float, None for anything else that a file may hold in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond any float
        return None


def plain(value: Any) -> Any:
    """`value` as JSON can say it: numbers it lacks as None, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
