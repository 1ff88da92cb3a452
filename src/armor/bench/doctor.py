"""What this machine can do, and whether it does it right: every backend against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from armor.bench.layers import Measured, measure_shape, random_layer
from armor.bench.mlp import layers_of, random_mlp
from armor.bench.shapes import Shape
from armor.factorize.inverses import pair_inverses
from armor.factorize.kernels import torch as plain_sweep
from armor.factorize.masks import mask_from_choice
from armor.factorize.sweep import BACKENDS as SWEEPS
from armor.factorize.sweep import sweep
from armor.runtime import Call, backends, use
from armor.runtime.api import linear
from armor.runtime.dispatch import gating, run_gated, supports
from armor.runtime.gated import Gated, Gating
from armor.runtime.registry import REFERENCE, load
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR
from armor.versions import versions

#: Layers that backends are compared on, by name (out, in, block): awkward, and of a real model.
SMALL = (Shape("37x52", 37, 52, 8), Shape("256x512", 256, 512, 32))
REAL = (Shape("4096x4096", 4096, 4096, 128), Shape("1024x4096", 1024, 4096, 128))
#: Rows of input: decoding, a small batch, prefill.
ROWS = (1, 16, 64)
#: (width, numbers between, block) of gated MLPs.
MLPS = ((256, 352, 32), (4096, 11008, 128))
#: More than so much of the norm apart from the reference is wrong, by dtype.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
FAILED = "wrong"


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        what, where: such as "runtime triton" and "4096x4096, 16 rows, bfloat16".
        verdict: "ok", `FAILED`, or why it was not tried.
        figure: the error relative to the reference, or the speed against dense.
    """

    what: str
    where: str
    verdict: str
    figure: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it was tried and is wrong."""
        return self.verdict.startswith(FAILED)


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
    return found


def check_runtime(device: torch.device, quick: bool = False) -> Iterator[Check]:
    """Every backend that is available here, on small shapes and those of a real model."""
    dtypes = (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,)
    for status in backends():
        if status.name == REFERENCE:
            continue
        if not status.usable:
            yield Check(f"runtime {status.name}", "", status.reason)
            continue
        for shape in SMALL if quick else SMALL + REAL:
            for dtype in dtypes:
                yield from _check_layer(status.name, shape, dtype, device)


def check_mlps(device: torch.device, quick: bool = False) -> Iterator[Check]:
    """Gated MLPs as one, on every backend that does it: small, and of a real model."""
    dtype = torch.bfloat16
    for status in backends():
        backend = load(status.name)
        if not status.usable or not isinstance(backend, Gating):
            continue
        for width, inner, block in MLPS[:1] if quick else MLPS:
            rows = ROWS[-1]
            if not supports(status.name, (inner, width), dtype, device, rows, TWO_OF_FOUR):
                continue
            gated = layers_of(random_mlp(width, inner, block, dtype, device))
            x = torch.randn(rows, width, dtype=torch.float32, device=device).to(dtype)
            what, where = f"mlp {status.name}", f"{width}x{inner}, {rows} rows, bfloat16"
            try:
                with use(status.name):
                    one = gating(x, gated)
                    y = run_gated(x, gated)
            except Exception as error:
                yield Check(what, where, f"{FAILED}: {_line(error)}")
                continue
            if one is None:
                yield Check(what, where, "run layer by layer")
                continue
            gate, up, down = (Call(_wide(call.layer)) for call in gated.calls)
            with use(REFERENCE):
                expected = run_gated(x.float(), Gated(gate, up, down, gated.activation))
            yield _compared(what, where, y.float(), expected, TOLERANCE[dtype])


def _check_layer(
    name: str, shape: Shape, dtype: torch.dtype, device: torch.device
) -> Iterator[Check]:
    size = shape.out_features, shape.in_features
    kind = str(dtype).removeprefix("torch.")
    layer = random_layer(shape, dtype, device, prepare=False).packed()
    wide = _wide(layer)
    for rows in ROWS:
        where = f"{shape.name}, {rows} rows, {kind}"
        verdict = supports(name, size, dtype, device, rows, TWO_OF_FOUR)
        if not verdict:
            continue
        x = torch.randn(rows, shape.in_features, dtype=torch.float32, device=device).to(dtype)
        try:
            with use(name):
                y = linear(x, Call(layer))
        except Exception as error:  # whatever a compiler or a driver raises is a finding
            yield Check(f"runtime {name}", where, f"{FAILED}: {_line(error)}")
            continue
        with use(REFERENCE):
            expected = linear(x.float(), Call(wide))
        yield _compared(f"runtime {name}", where, y.float(), expected, TOLERANCE[dtype])


def _wide(layer: PackedLayer) -> PackedLayer:
    """The same in float32."""
    assert layer.left is not None
    assert layer.right is not None
    return PackedLayer(
        layer.in_features,
        layer.core_values.float(),
        layer.core_indices,
        layer.left.float(),
        layer.right.float(),
    )


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
            yield Check(what, "", f"not installed: pip install {backend.name}")
            continue
        residual, core, choice, left, right = _sweep_case(device)
        found, expected = core.clone(), core.clone()
        try:
            sweep(residual, found, choice.clone(), left, right, backend=backend)
        except Exception as error:
            yield Check(what, where, f"{FAILED}: {_line(error)}")
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
        yield Check("speed", REAL[0].name, f"{FAILED}: {_line(error)}")
        return
    for batch in (1, 64):
        ratio = rows["dense", batch].seconds / rows["ARMOR", batch].seconds
        where = f"{REAL[0].name}, {batch} rows, {str(dtype).removeprefix('torch.')}"
        yield Check(f"speed {rows['ARMOR', batch].backend}", where, "against dense", ratio)


def _compared(what: str, where: str, y: Tensor, expected: Tensor, tolerance: float) -> Check:
    error = float((y - expected).norm() / expected.norm())
    return Check(what, where, "ok" if error <= tolerance else FAILED, error)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
