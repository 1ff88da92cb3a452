"""Unfinished: the hidden folder of a run that is going on, held by one process at a time."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from armor.checkpoint.folder import full_disk, sync_folder, unfinished_folder
from armor.checkpoint.jsonfile import read_json, write_json
from armor.checkpoint.lock import Lock
from armor.checkpoint.tensorfile import map_file, write_whole_file
from armor.engines.job import Tensors
from armor.errors import ArmorError
from armor.run.manifest import differences, digest, hash_tensors

MANIFEST = "manifest.json"
#: What the names of the lock's files begin with, see `armor.checkpoint.lock`.
LOCK = "lock"
_TRIES = 20
_FORMAT = 1


class Unfinished:
    """``.OUT.run`` beside OUT: the manifest of a run, and files with checksums that are of it.

    Attributes:
        folder: where it is. identity: the hash of the manifest.
        scratch: a folder in it for files of no lasting value, empty when a run begins.
    """

    def __init__(self, out: Path, manifest: dict[str, Any], fresh: bool = False) -> None:
        """Open the folder of `out`, or make it.

        Raises:
            ArmorError: another run holds it, it is from another model or other settings, or
                nothing can be written there.
        """
        self.folder = unfinished_folder(out)
        self.scratch = self.folder / "scratch"
        self.identity = digest(manifest)
        self._lock = Lock(
            self.folder / LOCK,
            f"another run is working in {self.folder}",
            "choose another --out",
        )
        with full_disk(out.parent):
            self._take_lock()
            try:
                self._open(out, manifest, fresh)
            except BaseException:
                self._lock.release()
                raise

    def clear(self) -> None:
        """Forget what an earlier run has left: another begins."""

    def prepare(self) -> None:
        """Make what the run needs in its folder, before its manifest is there."""

    def scan(self) -> None:
        """Find what an earlier run has left, which this one goes on with."""

    def check_lock(self) -> None:
        """Raise `ArmorError` if another process has taken this folder over."""
        self._lock.check()

    def close(self) -> None:
        """Let others in; what is finished stays."""
        if self._lock.is_held():
            shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.release()

    def remove(self) -> None:
        """Delete the folder: the checkpoint is complete."""
        self.check_lock()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.removeprefix(f"{LOCK}.").isdecimal():
                path.unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):  # the next run has made it its own
            self.folder.rmdir()

    def write(self, path: Path, tensors: Tensors, about: dict[str, Any]) -> None:
        """A file of this run, which appears complete or not at all.

        Args:
            about: JSON-ready, what the file says of itself.

        Raises:
            ArmorError: the disk is full.
        """
        text = json.dumps({"run": self.identity, "tensors": hash_tensors(tensors), **about})
        with full_disk(self.folder.parent):
            write_whole_file(path, tensors, {"about": text, "checksum": digest(text)})
            sync_folder(path.parent)

    def sound(self, path: Path) -> dict[str, Any] | None:
        """What a file of this run says of itself; None if it is damaged or no such file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            about: dict[str, Any] = json.loads(metadata["about"])
            if digest(metadata["about"]) != metadata["checksum"] or about["run"] != self.identity:
                return None
            return about if hash_tensors(map_file(path)) == about["tensors"] else None
        except (SafetensorError, ArmorError, OSError, ValueError, KeyError):
            return None

    def _take_lock(self) -> None:
        for _ in range(_TRIES):
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # removed by a run that has just ended
                return self._lock.take()
        raise ArmorError(f"another run is working in {self.folder}: wait for it")

    def _open(self, out: Path, manifest: dict[str, Any], fresh: bool) -> None:
        path = self.folder / MANIFEST
        if fresh or not path.exists():
            path.unlink(missing_ok=True)
            self.clear()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        self.prepare()
        if path.exists():
            self._compare(out, read_json(path), manifest)
            self.scan()
        else:
            write_json(path, {"format": _FORMAT, **manifest})
            sync_folder(self.folder)

    def _compare(self, out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
        if found := differences(old, json.loads(json.dumps({"format": _FORMAT, **new}))):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ArmorError(
                f"{out} has an unfinished run with another input: {found[0]}{more}; give the same"
                " command to go on, --fresh to start over, or another --out"
            )
