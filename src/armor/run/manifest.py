"""The manifest of a run: everything that determines its bytes, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armor.config import PruneConfig
from armor.versions import versions

#: The code that decides on the result.
_CODE = (
    *("baselines", "calibrate", "factorize", "models", "run", "simd", "sparse", "text"),
    *("config.py", "methods.py"),
)


def make_manifest(
    config: PruneConfig, digests: Mapping[str, str], model: Any, windows: Tensor, device: str
) -> dict[str, Any]:
    """What determines the result of a run, as a JSON-ready dict.

    Args:
        digests: of the model's tensors, by name. model: the model's config, as a dict.
        windows: token ids.
    """
    model = {key: value for key, value in model.items() if key != "_name_or_path"}
    settings = config.to_dict()
    del settings["calibration"], settings["bos"]  # the tokens count, wherever they came from
    settings["order of the recipe"] = list(config.overrides)  # a later glob wins
    return {
        "settings": settings,
        "calibration": hash_tensors({"windows": windows}),
        "model": json.loads(json.dumps(model, default=str)),
        "weights": dict(digests),
        "device": device,
        "versions": versions("armor", "torch", "transformers", "numba", "python")
        | {"armor's code": code_digest()},
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, one phrase each: ``samples was 128 and is 64``."""
    return list(_differences(old, new, ""))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        where = f"{path}{name}" if path != "settings " else name
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{where} ")
        elif before != after:
            hashed = any(isinstance(value, str) and len(value) == 64 for value in (before, after))
            yield f"{where} changed" if hashed else f"{where} was {before} and is {after}"


def digest(data: Any) -> str:
    """SHA-256 of a JSON-ready value, hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, their dtypes and shapes, hexadecimal."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@cache
def code_digest(*more: str) -> str:
    """SHA-256 of the code that decides on the result, and of `more` folders, hexadecimal."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for name in (*_CODE, *more):
        path = root / name
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            total.update(file.read_bytes())
    return total.hexdigest()
