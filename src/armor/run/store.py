"""The run store: what a run has finished, on the disk, each piece atomic and with a checksum."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from armor.checkpoint.folder import full_disk, sync_folder, unfinished_folder
from armor.checkpoint.jsonfile import read_json, write_json
from armor.checkpoint.lock import Lock
from armor.checkpoint.records import LayerRecord
from armor.checkpoint.tensorfile import StoredTensor, map_file, read_file, write_whole_file
from armor.engines.job import Tensors
from armor.errors import ArmorError
from armor.run.manifest import differences, digest, hash_tensors

MANIFEST = "manifest.json"
#: The folder of a pass over the layers before the run itself, see `armor.run.size`.
TRIALS = "trials"
#: What the names of the lock's files begin with, see `armor.checkpoint.lock`.
LOCK = "lock"
_TRIES = 20
#: Activations are kept when this many times as long has passed as it took to keep the last ones.
_RARELY = 20
_FORMAT = 1


@dataclass(frozen=True)
class Finished:
    """One finished layer: its file, its record, and the hash of the moments it was made from."""

    path: Path
    record: LayerRecord
    moments: str


class Store:
    """The folder of an unfinished run, held by one process at a time.

    Attributes:
        folder: ``.OUT.run`` beside OUT. scratch: a folder in it for files of no lasting value.
        layers: the finished layers by name.
        identity: the hash of the manifest.
    """

    def __init__(self, out: Path, manifest: dict[str, Any], fresh: bool = False) -> None:
        """Open the store of `out`, or make it.

        Raises:
            ArmorError: another run holds it, it is from another model or other settings, or
                nothing can be written there.
        """
        self.folder = unfinished_folder(out)
        self.scratch = self.folder / "scratch"
        self.identity = digest(manifest)
        self.layers: dict[str, Finished] = {}
        self.damaged: list[str] = []
        self._last_kept = (-math.inf, 0.0)  # activations: since when, and the seconds it took
        self._lock = Lock(
            self.folder / LOCK,
            f"another run is working in {self.folder}",
            "choose another --out",
        )
        with full_disk(out.parent):
            self._take_lock()
            try:
                self._prepare(out, manifest, fresh)
            except BaseException:
                self._lock.release()
                raise

    def lacks(self, name: str, moments: str | None = None) -> bool:
        """Whether a layer is missing, or was made from other moments than those of this hash."""
        found = self.layers.get(name)
        return found is None or moments not in (None, found.moments)

    def load(self, name: str) -> Tensors:
        """The packed tensors of a finished layer."""
        return {key: stored.load() for key, stored in self.stored(name).items()}

    def stored(self, name: str) -> dict[str, StoredTensor]:
        """The packed tensors of a finished layer, on the disk."""
        return read_file(self.layers[name].path)

    def save(self, name: str, tensors: Tensors, record: LayerRecord, moments: str) -> None:
        """Keep a finished layer. Raises `ArmorError` if the disk is full, or the lock lost."""
        self.check_lock()
        path = self.folder / "layers" / f"{name}.safetensors"
        about = {"layer": name, "record": record.to_dict(), "moments": moments}
        self._write(path, tensors, about)
        self.layers[name] = Finished(path, record, moments)

    def activations_are_due(self) -> bool:
        """Whether to keep activations is worth its time: what an interruption would cost."""
        since, took = self._last_kept
        return time.monotonic() - since >= _RARELY * took

    def save_activations(self, index: int, parts: Iterable[tuple[str, Tensors]]) -> None:
        """Keep the activations at the input of block `index`, one file for each named part."""
        begin = time.monotonic()
        final = self.folder / "activations" / f"{index:05d}"
        if final.exists():
            return
        self.check_lock()
        partial = final.with_name(f"{final.name}.partial")
        with full_disk(self.folder.parent):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        for name, tensors in parts:
            self._write(partial / f"{name}.safetensors", tensors, {"part": name, "index": index})
        with full_disk(self.folder.parent):
            sync_folder(partial)
            partial.rename(final)
            sync_folder(final.parent)
        self._last_kept = time.monotonic(), time.monotonic() - begin

    def drop_activations(self, before: int) -> None:
        """Forget all but the latest activations at or before block `before`, and later ones."""
        for index in self._indices(before)[:-1]:
            shutil.rmtree(self.folder / "activations" / f"{index:05d}")

    def activations(self, before: int) -> tuple[int, dict[str, Path]] | None:
        """The latest sound activations at or before block `before`, and the file of each part."""
        for index in reversed(self._indices(before)):
            folder = self.folder / "activations" / f"{index:05d}"
            files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
            about = {name: self._sound(path) for name, path in files.items()}
            if files and all(
                found and found.get("part") == name and found.get("index") == index
                for name, found in about.items()
            ):
                return index, files
            shutil.rmtree(folder)
        return None

    def check_lock(self) -> None:
        """Raise `ArmorError` if another process has taken this store over."""
        self._lock.check()

    def close(self) -> None:
        """Let others in; what is finished stays."""
        if self._lock.is_held():
            shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.release()

    def remove(self) -> None:
        """Delete the store: the checkpoint is complete."""
        self.check_lock()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.removeprefix(f"{LOCK}.").isdecimal():
                path.unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):  # the next run has made it its own
            self.folder.rmdir()

    def _take_lock(self) -> None:
        for _ in range(_TRIES):
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # removed by a run that has just ended
                return self._lock.take()
        raise ArmorError(f"another run is working in {self.folder}: wait for it")

    def _prepare(self, out: Path, manifest: dict[str, Any], fresh: bool) -> None:
        path = self.folder / MANIFEST
        if fresh or not path.exists():
            path.unlink(missing_ok=True)
            for name in ("layers", "activations", TRIALS):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        for name in ("layers", "activations", "scratch"):
            (self.folder / name).mkdir(exist_ok=True)
        if path.exists():
            self._compare(out, read_json(path), manifest)
            self._scan()
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

    def _scan(self) -> None:
        """Find the finished layers; a damaged file goes, and its layer is done again."""
        for path in sorted((self.folder / "layers").iterdir()):
            about = self._sound(path)
            if about and path.name == f"{about.get('layer')}.safetensors":
                record = LayerRecord.read(about["record"])
                self.layers[about["layer"]] = Finished(path, record, about["moments"])
                continue
            if path.suffix == ".safetensors":
                self.damaged.append(path.stem)
            path.unlink()

    def _write(self, path: Path, tensors: Tensors, about: dict[str, Any]) -> None:
        """A file that appears complete or not at all."""
        text = json.dumps({"run": self.identity, "tensors": hash_tensors(tensors), **about})
        with full_disk(self.folder.parent):
            write_whole_file(path, tensors, {"about": text, "checksum": digest(text)})
            sync_folder(path.parent)

    def _sound(self, path: Path) -> dict[str, Any] | None:
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

    def _indices(self, before: int) -> list[int]:
        names = [path.name for path in (self.folder / "activations").iterdir()]
        return sorted(int(name) for name in names if name.isdigit() and int(name) <= before)
