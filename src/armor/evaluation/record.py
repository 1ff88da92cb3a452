"""Measurements kept in a JSON file as they are made, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from armor.checkpoint.jsonfile import read_json, write_json
from armor.checkpoint.sidecar import is_measurement
from armor.errors import ArmorError


class Record:
    """The results of one model: named lists of rows, each with the key of what was measured."""

    def __init__(self, path: Path | None, about: dict[str, Any], fresh: bool = False) -> None:
        """Take over what `path` holds about the same model, if it is there and not `fresh`.

        Args:
            path: the file; None keeps nothing.
            about: the head of the file, None for what the file knows better; rows of a file with
                another ``model_id`` are dropped.
        """
        self.path = path
        self.about = dict(about)
        self._old: dict[str, dict[str, Any]] = {}
        self._new: dict[str, list[dict[str, Any]]] = {}
        if path is None or fresh or not path.is_file():
            return
        try:
            data = read_json(path)
        except ArmorError:
            return  # about to be replaced
        if data.get("model_id") == about["model_id"]:
            self.about |= {name: data.get(name) for name, value in about.items() if value is None}
            for kind, rows in data.items():
                if isinstance(rows, list):
                    self._old |= {
                        row["key"]: {"kind": kind, "row": row}
                        for row in rows
                        if isinstance(row, dict) and isinstance(row.get("key"), str)
                    }

    def known(self, key: str) -> dict[str, Any] | None:
        """The row of `key`, if it was measured before."""
        found = self._old.get(key)
        return found and found["row"]

    def add(self, kind: str, key: str, row: dict[str, Any]) -> None:
        """Put `row` at the end of the list `kind`, and write the file."""
        self._new.setdefault(kind, []).append({**row, "key": key})
        if self.path is not None:
            write_json(self.path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The file: what was asked for now first, then what was measured before."""
        lists = {kind: list(rows) for kind, rows in self._new.items()}
        present = {row["key"] for rows in lists.values() for row in rows}
        for key, old in self._old.items():
            if key not in present:
                lists.setdefault(old["kind"], []).append(old["row"])
        return {**self.about, **lists}


def key_of(*parts: Any) -> str:
    """A short digest of JSON-ready `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def model_id(folder: Path) -> str:
    """A digest that changes with a model's files: of the small ones, and of the weights' dates."""
    facts: list[list[Any]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and not is_measurement(path.name):
            facts.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
        elif path.suffix == ".safetensors":
            facts.append([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    return key_of(facts)


def task_files_id(folder: Path | None) -> str:
    """A digest of the task definitions in `folder` (not of the data they read)."""
    if folder is None:
        return ""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".py"))
    return key_of([[str(path.relative_to(folder)), path.read_text("utf-8")] for path in files])
