"""JSON files: read with one-line errors, written with stable bytes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from armor.errors import ArmorError


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises `ArmorError` unless it is readable and a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArmorError(f"cannot read {path}: {reason}") from None
    if not isinstance(data, dict):
        raise ArmorError(f"{path} is not a JSON object")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` in its own key order, numbers that JSON lacks (NaN, inf) as null; atomic."""
    write_text(path, json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8: to a temporary name first, fsynced, then renamed."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """`value` as JSON can say it: numbers it lacks as None, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
