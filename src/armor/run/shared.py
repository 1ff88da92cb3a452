"""What several runs on one model have in common: made by the first, kept for the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from safetensors import safe_open

from armor.checkpoint.folder import full_disk
from armor.checkpoint.tensorfile import map_file, write_whole_file
from armor.engines.job import Tensors

T = TypeVar("T")


class Shared:
    """A context: tokens and digests in memory, moments of the dense model in a folder.

    Only for runs of one process on one model that stays as it is. What a run finds here is what it
    would have made itself, so its result is the same.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Args: folder: for the moments, made here and removed at the end; None keeps none."""
        self._folder = folder
        self._made: dict[Hashable, Any] = {}

    def __enter__(self) -> Shared:
        self._remove()  # what a killed process left
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when `key` was asked for first. To be left unchanged."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def moments(self, identity: str) -> DenseMoments | None:
        """Those of the dense model on certain windows and a certain device: `identity`."""
        return None if self._folder is None else DenseMoments(self._folder / identity)

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class DenseMoments:
    """The second moments of what the dense model feeds its linears, a file for each block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, index: int, stages: list[list[str]], means: Tensors) -> None:
        """Keep ``E[x x^T]`` of block `index`: `means`, by the first linear of each stage."""
        with full_disk(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            stored = {"stages": json.dumps(stages)}
            write_whole_file(self._path(index), means, stored, sync=False)

    def load(self, index: int) -> tuple[list[list[str]], Tensors]:
        """What `save` was given."""
        with safe_open(self._path(index), framework="pt") as file:
            stages: list[list[str]] = json.loads(file.metadata()["stages"])
        return stages, map_file(self._path(index))

    def covers(self, index: int, linears: Iterable[str]) -> bool:
        """Whether all of `linears` of block `index` are in the stages kept."""
        if not self._path(index).is_file():
            return False
        stages, _ = self.load(index)
        return set(linears) <= {linear for stage in stages for linear in stage}

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"
