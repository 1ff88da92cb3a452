"""What this machine can do, and whether it does it right: every backend against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from armor.bench.cases import REAL, in_words
from armor.bench.check import FAILED, Check, broken
from armor.bench.compared import check_layers, check_mlps, check_shared
from armor.bench.forms import name_of
from armor.bench.layers import Measured, measure_shape
from armor.bench.prepared import check_prepared
from armor.bench.report import machine
from armor.device import float32_products
from armor.factorize.inverses import pair_inverses
from armor.factorize.kernels import torch as plain_sweep
from armor.factorize.masks import mask_from_choice
from armor.factorize.sweep import BACKENDS as SWEEPS
from armor.factorize.sweep import sweep
from armor.runtime.dispatch import forced
from armor.triton import why_no_triton
from armor.versions import versions


def about() -> dict[str, Any]:
    """Versions and devices, for a bug report."""
    found: dict[str, Any] = dict(versions("armor", "python", "torch", "numba", "transformers"))
    found["triton"] = versions("triton")["triton"] if find_spec("triton") else None
    found["cuda"] = torch.version.cuda
    found["devices"] = [
        {
            "device": f"cuda:{number}",
            "name": (properties := torch.cuda.get_device_properties(number)).name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": properties.total_memory,
            "processors": properties.multi_processor_count,
        }
        for number in range(torch.cuda.device_count())
    ]
    found["cusparselt"] = torch.backends.cusparselt.version()
    found["ARMOR_BACKEND"] = forced()
    cpu = machine(torch.device("cpu"))
    found["cpu"] = {key: cpu[key] for key in ("name", "instructions", "threads")}
    return found


def checks(device: torch.device) -> Iterator[Check]:
    """All of them, until the device answers no more."""
    with float32_products():  # what the others are compared with
        for part in PARTS:
            for check in part(device):
                yield check
                if check.failed and not _answers(device):
                    yield Check("device", str(device), "answers no more: nothing else was tried")
                    return


def _answers(device: torch.device) -> bool:
    """Whether it still computes: some faults of a kernel end that until the process ends."""
    try:
        return bool(torch.ones(1, dtype=torch.float32, device=device).sum() == 1)
    except RuntimeError:
        return False


def check_sweeps(device: torch.device) -> Iterator[Check]:
    """The solver's kernels for 2:4 against plain torch: the same moves, or none that is worse."""
    where = "4x4 blocks of 32, float32"
    for backend in SWEEPS:
        if backend.any_pattern or backend.name == "torch":
            continue
        what = f"solver {backend.name}"
        if backend.devices is not None and device.type not in backend.devices:
            continue
        if not backend.is_available():
            reason = why_no_triton() if backend.name == "triton" else ""
            yield Check(what, "", reason or f"not installed: pip install {backend.name}")
            continue
        residual, core, choice, left, right = _sweep_case(device)
        found, expected = core.clone(), core.clone()
        try:
            sweep(residual, found, choice.clone(), left, right, backend=backend)
        except Exception as error:
            yield broken(what, where, error)
            continue
        plain_sweep.sweep(residual, expected, choice, left, right, pair_inverses(right))
        # Row by row (Numba) or by sets of rows: not the same core, but about as good a one.
        one, other = (_gain(residual, each - core, left, right) for each in (found, expected))
        verdict = "ok" if abs(one / other - 1) < 0.1 else FAILED
        yield Check(what, where, verdict, abs(one / other - 1))


def _sweep_case(device: torch.device) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")
        return made.to(device)

    eye = torch.eye(32, dtype=torch.float32, device=device)
    a, b = (eye + 0.1 * normal(4, 32, 32) for _ in range(2))
    choice = torch.zeros(128, 32, dtype=torch.uint8, device=device)
    core = normal(128, 128) * mask_from_choice(choice)
    return normal(128, 128), core, choice, a.mT @ a, b @ b.mT


def _gain(residual: Tensor, change: Tensor, left: Tensor, right: Tensor) -> float:
    """What a change of the core takes off the loss of its blocks."""
    blocks = change.unflatten(0, (4, 32)).unflatten(2, (4, 32))
    moved = torch.einsum("irs,isjc,jcd->irjd", left, blocks, right).reshape(change.shape)
    return float((change * (2 * residual - moved)).sum(dtype=torch.float64))


def check_speed(device: torch.device, repeats: int = 5) -> Iterator[Check]:
    """ARMOR against dense on a real layer, with weights that no cache holds."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows: dict[tuple[str, int], Measured] = {}
    try:
        for row in measure_shape(REAL[0], [1, 64], dtype, device, repeats):
            rows[row.contender, row.batch] = row
    except Exception as error:
        yield broken("speed", REAL[0].name, error)
        return
    for batch in (1, 64):
        ratio = rows["dense", batch].seconds / rows["ARMOR", batch].seconds
        where = f"{REAL[0].name}, {in_words(batch)}, {name_of(dtype)}"
        yield Check(f"speed {rows['ARMOR', batch].backend}", where, "against dense", ratio)


#: In the order of the table.
PARTS: tuple[Callable[[torch.device], Iterator[Check]], ...] = (
    check_sweeps,
    check_layers,
    check_shared,
    check_mlps,
    check_prepared,
    check_speed,
)
