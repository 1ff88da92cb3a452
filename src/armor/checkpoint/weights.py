"""The weights of a model folder: which safetensors files there are, which tensors they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from armor.checkpoint.format import short
from armor.checkpoint.jsonfile import read_json
from armor.checkpoint.tensorfile import StoredTensor, read_file
from armor.errors import ArmorError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model in `folder` by name, file by file; only headers are read.

    Raises:
        ArmorError: no safetensors weights, a missing, damaged or suspicious file, a tensor that
            the index lists and no file holds, or one that two files hold.
    """
    index = _read_index(folder) if (folder / INDEX).exists() else None
    files = [SINGLE] if index is None else sorted(set(index.values()))
    single = (folder / SINGLE).exists()
    if index is None and not single:
        raise ArmorError(_no_weights(folder))
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        for tensor, stored in read_file(safe_path(folder, name)).items():
            if tensor in tensors:
                raise ArmorError(
                    f"{folder}: tensor {short(tensor)} is in two files,"
                    f" {tensors[tensor].path.name} and {name}; download the model again"
                )
            tensors[tensor] = stored
    for tensor, name in (index or {}).items():
        if tensor not in tensors:
            raise ArmorError(
                f"{folder}: {short(name)} lacks tensor {short(tensor)}; download the model again"
            )
    if single and SINGLE not in files:  # transformers would read the one that is not checked here
        raise ArmorError(f"{folder} holds {SINGLE} and an index of other files: delete one of them")
    return tensors


def safe_path(folder: Path, name: str) -> Path:
    """The file `name` of `folder`; refuses a name with a folder in it, or what `no_escape` does."""
    if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
        raise ArmorError(f"{folder}: refused file name {short(name)}: it leads out of the folder")
    return no_escape(folder, folder / name)


def no_escape(folder: Path, path: Path) -> Path:
    """`path` if it is a file inside `folder`, links resolved; otherwise raises `ArmorError`.

    A link into the blobs of a Hugging Face cache (``models--x/snapshots/y`` -> ``models--x/blobs``)
    is how that cache is made, and allowed.
    """
    try:
        home, target = folder.resolve(), path.resolve()
        found = target.is_file()
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
