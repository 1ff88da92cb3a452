"""Numbers that are not weights: codes of quantised models, which must not be taken for weights."""

from __future__ import annotations

import re
from typing import Any

from armor.checkpoint.format import METHOD, from_metadata, short
from armor.checkpoint.tensorfile import FLOATS, StoredTensor
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.renaming import find_stored

#: What stands beside a quantised weight, after its name: without it the weight has no meaning.
_BESIDE = re.compile(
    r"[._](scales?(_inv|_2)?|zero_points?|zeros|absmax|quant_map|quant_state|SCB)\b"
)
#: What MXFP4 stores in the place of a weight, beside its scales.
_BLOCKS = "_blocks"
_REMEDY = (
    "these are codes of a quantised model, not weights: start from the dense model (the one it was"
    " made of, in bfloat16, float16 or float32)"
)


def check_dtypes(model: Any, folder: ModelFolder) -> None:
    """Raise `ArmorError`, with name and dtype, if a weight of `model` is stored as codes.

    Parameters that are numbers with a fraction must be stored as such; buffers may be of integers.
    A folder that says how it is quantised, in a format that transformers reads, is left to it.

    Args:
        model: empty. folder: its files.
    """
    quantization, own = folder.files.config.get("quantization_config"), {}
    if quantization is not None:
        if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
            return
        own = from_metadata(quantization)
    parameters = {
        name
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if tensor.is_floating_point()
    }
    odd = [name for name, stored in folder.tensors.items() if stored.dtype not in FLOATS]
    scales = [
        name
        for name in folder.tensors
        if _BESIDE.search(name) and name.rpartition(".")[0] not in own
    ]
    if not (odd or scales):
        return
    for name, stored in find_stored(model, folder.tensors).items():
        if name not in parameters:
            continue
        parts = (
            [stored] if isinstance(stored, StoredTensor) else [part for *_, part in stored.parts]
        )
        for part in parts:
            if part.dtype not in FLOATS:
                raise ArmorError(
                    f"{folder.path}: tensor {_name(folder, part)} is stored as {part.dtype}:"
                    f" {_REMEDY}"
                )
    for name in scales:
        weight = _BESIDE.split(name, maxsplit=1)[0]
        if f"{weight}{_BLOCKS}" in folder.tensors and weight in parameters:
            raise ArmorError(
                f"{folder.path}: tensor {short(weight)} is stored as {short(weight + _BLOCKS)} and"
                f" {short(name)}: {_REMEDY}"
            )
        if weight in folder.tensors and name not in model.state_dict():
            raise ArmorError(
                f"{folder.path}: tensor {short(weight)} has {short(name)} beside it, which the"
                f" model does not use: {_REMEDY}"
            )


def _name(folder: ModelFolder, stored: StoredTensor) -> str:
    return next(name for name, other in folder.tensors.items() if other is stored)
