"""Tensors of a file as they lie on the disk: mapped into memory, paged in when they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from armor.checkpoint.tensorfile import DTYPES, read_file
from armor.engines.job import Tensors


def map_file(path: Path) -> Tensors:
    """The tensors of a safetensors file of our own. Changes to them do not reach the file.

    The pages are shared between processes and can be dropped by the system at any time, so they
    are no memory that one could run out of.
    """
    tensors: Tensors = {}
    for name, stored in read_file(path).items():
        dtype = DTYPES[stored.dtype]
        if not stored.nbytes:
            tensors[name] = torch.empty(stored.shape, dtype=dtype)
            continue
        pages = np.memmap(path, np.uint8, "c", stored.offset, stored.nbytes)
        tensors[name] = torch.from_numpy(pages).view(dtype).reshape(stored.shape)
    return tensors
