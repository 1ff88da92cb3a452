"""The core sweep: one exact pass over every group, on whichever backend fits.

`BACKENDS` says which there are and what each of them runs. All of them do what the plain NumPy
oracles do (`kernels.reference` for 2:4, `kernels.reference_masks` for any pattern), and tests
compare each with its oracle. Words that they share:

- running residual: a row of R with the changes of all rows above it applied.
- partial residual p of a group: the residual with the group itself taken out (set to zero) and
  every other change so far applied.
- gain: what values s take off the loss, ``2 p.s - G_rr s^T H_gg s``; for the best ones ``p.s``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from armor.errors import ArmorError
from armor.factorize.inverses import gain_tables, gain_terms, pair_inverses
from armor.sparse.pattern import TWO_OF_FOUR, Pattern
from armor.triton import is_interpreted

#: Takes column blocks j, and of these residual, core and choice; and G: sweeps them in place.
SweepColumns = Callable[[slice, Tensor, Tensor, Tensor, Tensor], None]
_REAL = (torch.float32, torch.float64)
# On the CPU Triton runs interpreted only, which is for tests.
_TRITON_DEVICES = ("cuda", "cpu") if is_interpreted() else ("cuda",)


@dataclass(frozen=True)
class Backend:
    """One way to run the sweep.

    Attributes:
        name: what `sweep` is asked for.
        any_pattern: whether it runs every pattern, with or without a price, or 2:4 alone without.
        dtypes: of all that is not a code.
        devices: types of device, such as "cpu"; None for all of them.
        load: imports its kernel (kept until it is used: compilers are slow to import). A kernel
            takes (residual, core, choice, gram_left, gram_right, systems), and one for any pattern
            its `GainTerms` and the price besides.
        is_available: whether what it needs is installed.
    """

    name: str
    any_pattern: bool
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[str, ...] | None
    load: Callable[[], Callable[..., None]]
    is_available: Callable[[], bool] = lambda: True

    def runs(self, pattern: Pattern, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it is made for these."""
        return (
            (self.any_pattern or pattern == TWO_OF_FOUR)
            and dtype in self.dtypes
            and (self.devices is None or device.type in self.devices)
        )

    def systems(self, gram_right: Float[Tensor, "j b b"], pattern: Pattern) -> Tensor:
        """The groups' systems as its kernel wants them: `pair_inverses` or `gain_tables`."""
        return gain_tables(gram_right, pattern) if self.any_pattern else pair_inverses(gram_right)


def _numba() -> Callable[..., None]:
    from armor.factorize.kernels.numba import sweep

    return sweep


def _numba_masks() -> Callable[..., None]:
    from armor.factorize.kernels.numba_masks import sweep

    return sweep


def _torch() -> Callable[..., None]:
    from armor.factorize.kernels.torch import sweep

    return sweep


def _torch_masks() -> Callable[..., None]:
    from armor.factorize.kernels.torch_masks import sweep

    return sweep


def _triton() -> Callable[..., None]:
    from armor.factorize.kernels.triton import sweep

    return sweep


def _triton_is_available() -> bool:
    from armor.factorize.kernels import triton

    return triton.is_available()


#: The fastest first: the first that fits is taken.
BACKENDS = (
    Backend("numba", False, _REAL, ("cpu",), _numba),
    Backend("triton", False, _REAL, _TRITON_DEVICES, _triton, _triton_is_available),
    Backend("torch", False, _REAL, None, _torch),
    Backend("numba_masks", True, (torch.float32,), ("cpu",), _numba_masks),
    Backend("torch_masks", True, _REAL, None, _torch_masks),
)


#: Those that take a few dozen launches for each group of a row: slow on a GPU.
STEPWISE = ("torch", "torch_masks")


def choose_backend(
    pattern: Pattern, dtype: torch.dtype, device: torch.device, name: str | None = None
) -> Backend:
    """The backend of that `name`; by default the fastest that is installed.

    Raises:
        ArmorError: no backend of that name, or not for these, or not installed.
    """
    named = [each for each in BACKENDS if name in (None, each.name)]
    if not named:
        valid = ", ".join(each.name for each in BACKENDS)
        raise ArmorError(f"unknown backend {name!r} of the sweep; valid: {valid}")
    installed = [each for each in named if each.is_available()]
    if not installed:
        raise ArmorError(f"backend {name} is not installed: pip install {name}")
    for backend in installed:
        if backend.runs(pattern, dtype, device):
            return backend
    valid = ", ".join(each.name for each in BACKENDS if each.runs(pattern, dtype, device))
    raise ArmorError(
        f"backend {name or 'of the sweep'} does not run pattern {pattern} in"
        f" {str(dtype).removeprefix('torch.')} on {device.type}; valid: {valid or 'none'}"
    )


def sweep(
    residual: Float[Tensor, "out in"],
    core: Float[Tensor, "out in"],
    choice: UInt8[Tensor, "out groups"],
    gram_left: Float[Tensor, "i b b"],
    gram_right: Float[Tensor, "j b b"],
    pattern: Pattern = TWO_OF_FOUR,
    price: Float[Tensor, ""] | None = None,
    backend: str | Backend | None = None,
    systems: Tensor | None = None,
) -> None:
    """One sweep over all groups of all blocks, in place; never raises the loss.

    Blocks are independent given the wrappers, so they run in parallel.

    Args:
        residual: ``R = C - G S H``, (i*b, j*b), as it was at the entry also afterwards.
        core: S, (i*b, j*b), updated.
        choice: code of each group's mask (`group_masks`), uint8 (i*b, j*b/M), updated.
        gram_left: G = A^T A, (i, b, b).
        gram_right: H = B X_jj B^T, (j, b, b).
        price: of a kept entry, float (): masks of every size compete by gain less price. None: a
            group keeps as many entries as it has; an unstructured core keeps its count.
        backend: one of `BACKENDS` or its name; None takes the fastest.
        systems: its `Backend.systems` of `gram_right`, where the caller has them.

    Raises:
        ArmorError: an unknown backend, one that does not run this, or one that is not installed.
    """
    if not isinstance(backend, Backend):
        backend = choose_backend(pattern, core.dtype, core.device, backend)
    if price is not None and not backend.any_pattern:
        raise ArmorError(f"backend {backend.name} of the sweep knows no price of a kept entry")
    if systems is None:
        systems = backend.systems(gram_right, pattern)
    kernel = backend.load()
    if backend.any_pattern:
        terms = gain_terms(pattern)
        kernel(residual, core, choice, gram_left, gram_right, systems, terms, price)
    else:
        kernel(residual, core, choice, gram_left, gram_right, systems)


def column_sweep(
    gram_right: Float[Tensor, "j b b"], pattern: Pattern, price: Float[Tensor, ""] | None
) -> SweepColumns:
    """`sweep` on the fastest backend, for some column blocks at a time."""
    backend = choose_backend(pattern, gram_right.dtype, gram_right.device)
    systems = backend.systems(gram_right, pattern)

    def sweep_columns(
        blocks: slice, residual: Tensor, core: Tensor, choice: Tensor, gram_left: Tensor
    ) -> None:
        own = gram_right[blocks]
        sweep(residual, core, choice, gram_left, own, pattern, price, backend, systems[blocks])

    return sweep_columns


def sweep_gain(
    change: Float[Tensor, "rows cols"],
    residual: Float[Tensor, "rows cols"],
    gram_change_gram: Float[Tensor, "rows cols"],
) -> Float[Tensor, ""]:
    """What a change dS of the core takes off the loss: ``2 <dS, R> - <dS, G dS H>``, float64."""
    return (residual.mul(2.0) - gram_change_gram).mul_(change).sum(dtype=torch.float64)
