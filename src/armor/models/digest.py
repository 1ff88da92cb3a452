"""One pass over the weights of a model before anything else: all finite, and their digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from armor.checkpoint.tensorfile import DTYPES, StoredTensor
from armor.errors import ArmorError


def digest_weights(
    stored: Mapping[str, StoredTensor], progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, str]:
    """SHA-256 of each tensor, by name. `progress` gets the bytes of each tensor that is done.

    Raises:
        ArmorError: NaN or inf; the message names the tensor.
    """

    def check(name: str) -> str:
        tensor = stored[name]
        dtype = DTYPES.get(tensor.dtype)
        total = hashlib.sha256()
        for chunk in tensor.chunks():
            total.update(chunk)
            if dtype is None or not dtype.is_floating_point:
                continue
            values = torch.frombuffer(bytearray(chunk), dtype=dtype)
            # A single number may be a bound that nothing exceeds (the clipping of Gemma 4).
            sound = torch.isfinite(values) if values.numel() > 1 else ~values.isnan()
            if not sound.all():
                raise ArmorError(f"tensor {name} holds NaN or inf: the model is damaged")
        progress(tensor.nbytes)
        return total.hexdigest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return dict(zip(stored, pool.map(check, stored), strict=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
