"""Events as JSON lines: one object a line, appended, on disk as soon as it happened."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from armor.checkpoint.jsonfile import plain
from armor.errors import ArmorError


class JsonLines:
    """Appends to `path`; earlier runs in the file stay.

    Args:
        path: the file.
        wait_for: hold events back until one of these kinds comes, so that a run that fails before
            (a mistyped path) leaves no file. Empty: write at once.

    Raises:
        ArmorError: the file cannot be written. Once it could, a full disk costs the rest of the
            log and a warning, never the run.
    """

    def __init__(self, path: Path, wait_for: Collection[str] = ()) -> None:
        self._path = path
        self._wait_for = wait_for
        self._held: list[Mapping[str, Any]] = []
        self._file: TextIO | None = None
        if not wait_for:
            self._open()

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one line."""
        if self._file is None and not self._wait_for:
            return  # given up
        self._held.append(event)
        if event["kind"] in self._wait_for:
            self._wait_for = ()
            self._open()
        if self._file is None:
            return
        try:
            for held in self._held:
                self._file.write(json.dumps(plain(held), ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            warning = "no more events go to %s: %s"
            logging.getLogger("armor").warning(warning, self._path, error.strerror)
            self.close()
        self._held.clear()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):  # closing flushes what a full disk did not take
                file.close()

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise ArmorError(f"cannot write the log {self._path}: {error.strerror}") from None
