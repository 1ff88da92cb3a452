"""The weights of a model folder: which safetensors files there are, which tensors they hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armor.checkpoint.format import short
from armor.checkpoint.jsonfile import read_json
from armor.checkpoint.tensorfile import StoredTensor, read_file
from armor.errors import ArmorError, cannot_read

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder, and the copies that lie there beside them.

    Attributes:
        tensors: every tensor of the model by name, file by file.
        copies: other copies of a tensor, in files for which the index does not name it, by name.
        stray: a model.safetensors beside an index that does not name it.
    """

    tensors: dict[str, StoredTensor]
    copies: dict[str, list[Path]] = field(default_factory=dict)
    stray: Path | None = None

    @property
    def alike_for_transformers(self) -> bool:
        """Whether transformers reads these tensors, too.

        It prefers model.safetensors to an index, and of several copies takes that in the file
        whose name sorts last.
        """
        return self.stray is None and all(
            path.name < self.tensors[name].path.name
            for name, paths in self.copies.items()
            for path in paths
        )

    @property
    def notes(self) -> list[str]:
        """What is ignored, one line each."""
        found = []
        if self.copies:
            name, paths = next(iter(self.copies.items()))
            found.append(
                f"{paths[0].parent}: ignored {len(self.copies)} tensors that lie in other files"
                f" than {INDEX} names, the first {short(name)} in {paths[0].name} (read from"
                f" {self.tensors[name].path.name})"
            )
        if self.stray is not None:
            found.append(
                f"{self.stray} is ignored: {INDEX} beside it names other files (transformers alone"
                f" would read {SINGLE}; delete the one that is not meant)"
            )
        return found


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model in `folder` by name, file by file; see `find_weights`."""
    return find_weights(folder).tensors


def find_weights(folder: Path) -> Weights:
    """The tensors of the model in `folder`; only headers are read.

    Where there is an index, it says which file a tensor is read from.

    Raises:
        ArmorError: no safetensors weights, a missing, damaged or suspicious file, a tensor that
            the index lists and its file does not hold, or one that two files hold and the index
            does not list.
    """
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise ArmorError(_no_weights(folder))
        return Weights(read_file(safe_path(folder, SINGLE)))
    index = _read_index(folder)
    files = sorted(set(index.values()))
    _check_present(folder, files)
    tensors: dict[str, StoredTensor] = {}
    copies: dict[str, list[Path]] = {}
    for name in files:
        for tensor, stored in read_file(safe_path(folder, name)).items():
            if index.get(tensor, name) != name:
                copies.setdefault(tensor, []).append(stored.path)
            elif tensor in tensors:
                raise ArmorError(
                    f"{folder}: tensor {short(tensor)} is in two files,"
                    f" {tensors[tensor].path.name} and {name}, and {INDEX} names neither for it:"
                    " add it to the index, or write the model again with save_pretrained"
                )
            else:
                tensors[tensor] = stored
    for tensor, name in index.items():
        if tensor not in tensors:
            raise ArmorError(_stale(folder, tensor, name, copies))
    stray = folder / SINGLE if (folder / SINGLE).exists() and SINGLE not in files else None
    return Weights(tensors, copies, stray)


def indexed_files(folder: Path) -> list[str]:
    """The names of the weights files of `folder`, there or not: those in its index, if any."""
    return sorted(set(_read_index(folder).values())) if (folder / INDEX).exists() else [SINGLE]


def _check_present(folder: Path, files: list[str]) -> None:
    """Raise `ArmorError`, with their names, if files that the index names are not there."""
    missing = [name for name in files if not os.path.lexists(safe_name(folder, name))]
    if not missing:
        return
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files)
    verb = "is" if len(missing) == 1 else "are"
    message = f"{folder}: {_few(missing)} {verb} missing, which {INDEX} names"
    if others:
        raise ArmorError(
            f"{message}; there is {_few(others)} instead: if files were renamed, give them their"
            " old names or write the model again with save_pretrained; otherwise copy or download"
            " the missing ones"
        )
    raise ArmorError(f"{message}: copy or download again what is missing")


def _stale(folder: Path, tensor: str, name: str, copies: Mapping[str, list[Path]]) -> str:
    """Why a tensor that the index lists was not found."""
    message = f"{folder}: {short(name)} lacks tensor {short(tensor)}, which {INDEX} says is there"
    if tensor in copies:
        return (
            f"{message}; it is in {copies[tensor][0].name}: the index and the files do not belong"
            " together: copy or download both again"
        )
    return f"{message}: the index and the file do not belong together: copy or download both again"


def _few(names: Sequence[str]) -> str:
    """The first names of a list, quoted."""
    first = ", ".join(map(short, names[:2]))
    return first if len(names) <= 2 else f"{first} and {len(names) - 2} more"


def safe_path(folder: Path, name: str) -> Path:
    """The file `name` of `folder`; refuses a name with a folder in it, or what `no_escape` does."""
    return no_escape(folder, safe_name(folder, name))


def safe_name(folder: Path, name: str) -> Path:
    """``folder / name``. Raises `ArmorError` for a name with a folder in it."""
    if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
        raise ArmorError(f"{folder}: refused file name {short(name)}: it leads out of the folder")
    return folder / name


def no_escape(folder: Path, path: Path) -> Path:
    """`path` if it is a file inside `folder`, links resolved; otherwise raises `ArmorError`.

    A link into the blobs of a Hugging Face cache (``models--x/snapshots/y`` -> ``models--x/blobs``)
    is how that cache is made, and allowed.
    """
    try:
        home, target = folder.resolve(), path.resolve()
        found = target.is_file()
    except PermissionError as error:
        raise cannot_read(path, error, "") from None
    except (OSError, ValueError, RuntimeError):  # too long, no file name at all, a loop of links
        raise ArmorError(
            f"{folder}: refused file name {short(path.name)}: copy or download the model again"
        ) from None
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise ArmorError(f"{path} is a link out of its folder: put the file itself there")
    if not found:
        raise ArmorError(f"{folder}: {short(path.name)} is missing: copy or download it again")
    return path


def _read_index(folder: Path) -> dict[str, str]:
    data: Any = read_json(safe_path(folder, INDEX))
    files = data.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ArmorError(f"{folder / INDEX} has no weight_map; download it again")
    if not all(isinstance(name, str) for name in files.values()):
        raise ArmorError(f"{folder / INDEX}: weight_map names a file that is not a string")
    return files


def _no_weights(folder: Path) -> str:
    if any(next(folder.glob(pattern), None) for pattern in _PICKLED):
        return (
            f"{folder} holds only pickled weights, which are never read, as they can run code:"
            " if you trust them, convert them to safetensors with transformers' save_pretrained"
        )
    return f"{folder} holds no {SINGLE}: it is not a (finished) model folder"
