"""How many kernels a GPU has to compile for the doctor: each takes a second or so.

Run as a script, this file counts them: nothing is compiled, and nothing computed right.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armor.runtime.registry import load
from armor.triton import is_older_than

ROOT = Path(__file__).resolve().parents[2]
MOST = 140


@pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")
@pytest.mark.skipif(is_older_than(3, 6), reason="its compiler is asked in another way")
def test_the_doctor_asks_for_few_kernels() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert {"core_kernel", "blocks_kernel", "gated_kernel"} == set(kernels)
    assert MOST * 3 // 4 < sum(kernels.values()) <= MOST, kernels


def main() -> None:
    """Print how many of each kernel Triton would compile, were the CPU a Hopper GPU."""
    import torch
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from armor.bench import cases, compared
    from armor.bench.forms import dtypes_of
    from armor.bench.shapes import Shape
    from armor.runtime.backend import YES
    from armor.runtime.registry import BACKENDS
    from armor.runtime.semi_structured import backend as semi_structured
    from armor.runtime.semi_structured import compressed
    from armor.runtime.triton import backend as triton

    found: dict[str, set[str]] = {}

    def note(kernel: JITFunction, key: Any, *_others: Any) -> None:
        found.setdefault(kernel.__name__, set()).add(str(key))

    driver.set_active(runpy.run_path(str(ROOT / "scripts" / "compile_kernels.py"))["Gpu"]())
    JITFunction._do_compile = note
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch._cslt_sparse_mm = lambda packed, x, *_: x.new_zeros(x.shape[1], len(packed))
    torch._cslt_compress = lambda dense: dense.new_zeros(dense.numel() * 9 // 16)
    triton._processors = lambda _device: 132
    for module in (semi_structured, compressed):
        module.engine_of = lambda _device: "cusparselt"
    del BACKENDS["cpu"]
    for name in ("semi_structured", "triton"):
        backend: Any = load(name)
        own = backend.is_supported
        backend.is_available = lambda: YES
        backend.is_supported = lambda shape, dtype, _device, *rest, own=own: own(
            shape, dtype, gpu, *rest
        )
        BACKENDS[name] = replace(BACKENDS[name], devices=("cpu",))
    compared.dtypes_of = lambda _device: dtypes_of(gpu)
    # Smaller by whole multiples of 16: nearly the same kernels.
    cases.REAL = Shape("", 1024, 1024, 128), Shape("", 512, 1024, 128)
    cases.REAL_UNLIKE = cases.REAL[0], *[cases.REAL[1]._replace(block=64)] * 2
    compared.MLPS = cases.MLPS[0], (1024, 2816, 128)
    for part in (compared.check_layers, compared.check_shared, compared.check_mlps):
        assert all(not check.verdict.startswith("wrong:") for check in part(cpu))
    sys.stdout.write(json.dumps({name: len(keys) for name, keys in found.items()}))


if __name__ == "__main__":
    main()
