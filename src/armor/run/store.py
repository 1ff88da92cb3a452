"""The run store: what a run has finished, on the disk, each piece atomic and with a checksum."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armor.checkpoint.folder import full_disk, sync_folder
from armor.checkpoint.records import LayerRecord
from armor.checkpoint.tensorfile import StoredTensor, read_file
from armor.engines.job import Tensors
from armor.run.saving import Parts, Saving, is_on_gpu, to_host
from armor.run.unfinished import Unfinished

#: The folder of a pass over the layers before the run itself, see `armor.run.size`.
TRIALS = "trials"
#: Activations are kept when this many times as long has passed as it took to keep the last ones.
_RARELY = 20


@dataclass(frozen=True)
class Finished:
    """One finished layer: its file, its record, and the hash of the moments it was made from."""

    path: Path
    record: LayerRecord
    moments: str


class Store(Unfinished):
    """The folder of an unfinished run.

    Attributes:
        layers: the finished layers by name. damaged: those whose files were damaged.
    """

    def __init__(self, out: Path, manifest: dict[str, Any], fresh: bool = False) -> None:
        """See `Unfinished`."""
        self.layers: dict[str, Finished] = {}
        self.damaged: list[str] = []
        self._last_kept = (-math.inf, 0.0)  # activations: since when, and the seconds it took
        self._saving = Saving()  # of activations
        super().__init__(out, manifest, fresh)

    def clear(self) -> None:
        """Forget what an earlier run has left: another begins."""
        for name in ("layers", "activations", TRIALS):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def prepare(self) -> None:
        """Make the folders of the run."""
        for name in ("layers", "activations"):
            (self.folder / name).mkdir(exist_ok=True)

    def scan(self) -> None:
        """Find the finished layers; a damaged file goes, and its layer is done again."""
        for path in sorted((self.folder / "layers").iterdir()):
            about = self.sound(path)
            if about and path.name == f"{about.get('layer')}.safetensors":
                record = LayerRecord.read(about["record"])
                self.layers[about["layer"]] = Finished(path, record, about["moments"])
                continue
            if path.suffix == ".safetensors":
                self.damaged.append(path.stem)
            path.unlink()

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
        """Keep a finished layer.

        Raises:
            ArmorError: the disk is full, maybe of the activations that are being saved, or the lock
                is lost.
        """
        self._saving.check()
        self.check_lock()
        path = self.folder / "layers" / f"{name}.safetensors"
        about = {"layer": name, "record": record.to_dict(), "moments": moments}
        self.write(path, tensors, about)
        self.layers[name] = Finished(path, record, moments)

    def activations_are_due(self) -> bool:
        """Whether to keep activations is worth its time: what an interruption would cost."""
        since, took = self._last_kept
        return not self._saving.is_busy() and time.monotonic() - since >= _RARELY * took

    def save_activations(self, index: int, parts: Parts, before: int) -> None:
        """Keep the activations at the input of block `index`, one file for each named part.

        What a GPU holds is copied, and written while the run goes on.

        Args:
            before: see `drop_activations`, which comes afterwards.
        """
        begin = time.monotonic()
        given = list(parts)
        if not any(is_on_gpu(tensors) for _, tensors in given):
            self._write_activations(index, given, before, begin, lambda: None)
            return
        held = [(name, to_host(tensors)) for name, tensors in given]
        self._saving.start(lambda go_on: self._write_activations(index, held, before, begin, go_on))

    def stop_saving(self) -> None:
        """Activations are of no use any more: what is still being written is given up."""
        self._saving.stop()

    def close(self) -> None:
        """See `Unfinished`."""
        self._saving.stop()
        super().close()

    def remove(self) -> None:
        """See `Unfinished`."""
        self._saving.stop()
        super().remove()

    def _write_activations(
        self, index: int, parts: Parts, before: int, begin: float, go_on: Callable[[], None]
    ) -> None:
        final = self.folder / "activations" / f"{index:05d}"
        if not final.exists():
            self.check_lock()
            partial = final.with_name(f"{final.name}.partial")
            with full_disk(self.folder.parent):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
            for name, tensors in parts:
                go_on()
                about = {"part": name, "index": index}
                self.write(partial / f"{name}.safetensors", tensors, about)
            go_on()
            with full_disk(self.folder.parent):
                sync_folder(partial)
                partial.rename(final)
                sync_folder(final.parent)
            self._last_kept = time.monotonic(), time.monotonic() - begin
        self.drop_activations(before)

    def drop_activations(self, before: int) -> None:
        """Forget all but the latest activations at or before block `before`, and later ones."""
        for index in self._indices(before)[:-1]:
            shutil.rmtree(self.folder / "activations" / f"{index:05d}")

    def activations(self, before: int) -> tuple[int, dict[str, Path]] | None:
        """The latest sound activations at or before block `before`, and the file of each part."""
        for index in reversed(self._indices(before)):
            folder = self.folder / "activations" / f"{index:05d}"
            files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
            about = {name: self.sound(path) for name, path in files.items()}
            if files and all(
                found and found.get("part") == name and found.get("index") == index
                for name, found in about.items()
            ):
                return index, files
            shutil.rmtree(folder)
        return None

    def _indices(self, before: int) -> list[int]:
        names = [path.name for path in (self.folder / "activations").iterdir()]
        return sorted(int(name) for name in names if name.isdigit() and int(name) <= before)
