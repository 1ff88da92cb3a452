"""Whether the buffers that a model computes when it is built are those of an ordinary load."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor

from armor.errors import ArmorError
from armor.models.folder import ModelFolder, one_line_errors
from armor.models.load import empty_model, read_model


def check_buffers(folder: ModelFolder, model: Any) -> None:
    """Compare the buffers of `model`, built empty from `folder`, that are not in its files.

    Raises:
        ArmorError: one has other values than in a model that ``from_pretrained`` has loaded.
    """
    kept = model.state_dict().keys()
    computed = {name: own for name, own in model.named_buffers() if name not in kept}
    if not computed:
        return
    with one_line_errors(f"cannot load {folder.path}"):
        ordinary = _loaded_buffers(folder, type(model))
    for name, own in computed.items():
        other = ordinary.get(name)
        if other is not None and not _equal(own, other):
            raise ArmorError(
                f"{type(model).__name__} has other values in its buffer {name} after an ordinary"
                " load than when it is built: such a model is not supported; another version of"
                f" transformers than {transformers.__version__} may agree with itself"
            )


def _loaded_buffers(folder: ModelFolder, architecture: Any) -> dict[str, Tensor]:
    """Those of an ordinary load, whose weights take no memory."""
    if int(transformers.__version__.split(".")[0]) < 5:
        from transformers.modeling_utils import no_init_weights

        # Version 4 leaves buffers as a model is built, but for what initialising weights does.
        with no_init_weights():
            return dict(empty_model(folder).named_buffers())
    try:
        with torch.device("meta"):
            empty = architecture(copy.deepcopy(folder.config))
        weights = {
            name: torch.zeros((), dtype=_read_as(tensor.dtype), device="cpu").expand(tensor.shape)
            for name, tensor in empty.state_dict().items()
        }
        loaded = architecture.from_pretrained(
            None, config=copy.deepcopy(folder.config), state_dict=weights, dtype=torch.float32
        )
    except Exception:  # not with such weights: then with the real ones
        loaded = read_model(folder, dtype=torch.float32)
    return dict(loaded.named_buffers())


def _read_as(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a tensor is read; no cast may follow, which would take memory."""
    return torch.float32 if dtype.is_floating_point else dtype


def _equal(own: Tensor, other: Tensor) -> bool:
    if own.shape != other.shape or own.dtype.is_floating_point != other.dtype.is_floating_point:
        return False
    if own.dtype.is_floating_point:
        return torch.allclose(own.double(), other.double(), 1e-6, 0.0, equal_nan=True)
    return torch.equal(own, other)
