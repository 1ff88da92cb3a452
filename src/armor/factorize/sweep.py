"""The core sweep: one exact pass over every group, on whichever backend fits."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from armor.errors import ArmorError
from armor.factorize.kernels.reference import PAIRS
from armor.factorize.masks import LEAST_PIVOT, gain_tables, terms_of
from armor.sparse.pattern import Pattern

BACKENDS = ("numba", "triton", "torch")


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    backend: str | None = None,
    inverses: Tensor | None = None,
) -> None:
    """One sweep over all groups of all blocks, in place; never raises the loss.

    Blocks are independent given the wrappers, so they run in parallel.

    Args:
        residual: ``R = C - G S H``, (i*b, j*b), as it was at the entry also afterwards.
        core: S, (i*b, j*b), updated.
        choice: kept pair of each group, uint8 (i*b, j*b/4), updated.
        gram_left: G = A^T A, (i, b, b).
        gram_right: H = B X_jj B^T, (j, b, b).
        backend: one of `BACKENDS`; None takes the fastest for the device.
        inverses: `pair_inverses` of `gram_right`, where the caller has them.

    Raises:
        ArmorError: an unknown backend, or one that is not installed.
    """
    name = backend or default_backend(core.device)
    if name not in BACKENDS:
        raise ArmorError(f"unknown backend {name!r}; valid: {', '.join(BACKENDS)}")
    kernel = import_module(f"armor.factorize.kernels.{name}")
    if not kernel.is_available():
        raise ArmorError(f"backend {name} is not installed: pip install {name}")
    if inverses is None:
        inverses = pair_inverses(gram_right)
    kernel.sweep(residual, core, choice, gram_left, gram_right, inverses)


def sweep_masks(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    pattern: Pattern,
    price: Tensor | None = None,
    backend: str | None = None,
    tables: Tensor | None = None,
) -> None:
    """`sweep` for any pattern; `choice` holds codes of `masks_of` the pattern.

    Args:
        price: of a kept entry, float (): masks of every size compete by gain less price. None: a
            group keeps as many entries as it has; an unstructured core keeps its count.
        backend: "numba" (float32 only) or "torch"; None takes Numba for float32 on the CPU, else
            PyTorch, which is slower: of all patterns only 2:4 has a Triton kernel.
        tables: `gain_tables` of `gram_right`, where the caller has them.
    """
    fast = core.device.type == "cpu" and core.dtype == torch.float32
    name = backend or ("numba" if fast else "torch")
    kernel = import_module(f"armor.factorize.kernels.{name}_masks")
    if tables is None:
        tables = gain_tables(gram_right, pattern)
    kernel.sweep(residual, core, choice, gram_left, gram_right, tables, terms_of(pattern), price)


def default_backend(device: torch.device) -> str:
    """Numba on the CPU, Triton on CUDA where it is installed, else PyTorch."""
    if device.type == "cpu":
        return "numba"
    if device.type == "cuda":
        from armor.factorize.kernels import triton

        if triton.is_available():
            return "triton"
    return "torch"


def pair_inverses(gram_right: Tensor) -> Tensor:
    """`reference.pair_inverses` for a batch: (j, b, b) -> (j, b/4, 6, 3)."""
    groups = gram_right.shape[-1] // 4
    # (j, 4, 4, b/4): the corner of each group; slices, as index tensors would wait for the device.
    corner = gram_right.reshape(-1, groups, 4, groups, 4).diagonal(dim1=1, dim2=3)
    h11 = torch.stack([corner[:, one, one] for one, _ in PAIRS], -1)
    h12 = torch.stack([corner[:, one, two] for one, two in PAIRS], -1)
    h22 = torch.stack([corner[:, two, two] for _, two in PAIRS], -1)
    det = h11 * h22 - h12 * h12
    regular = det > LEAST_PIVOT * h11 * h22
    det = torch.where(regular, det, 1.0)
    use_first = h11 >= h22
    alone1 = torch.where(use_first & (h11 > 0), 1 / h11, 0.0)
    alone2 = torch.where(~use_first, 1 / h22, 0.0)
    return torch.stack(
        [
            torch.where(regular, h22 / det, alone1),
            torch.where(regular, -h12 / det, 0.0),
            torch.where(regular, h11 / det, alone2),
        ],
        dim=-1,
    )
