"""A runtime backend of your own: four functions, one line, and every layer can run on it.

The backend here unpacks the core of a layer once and keeps it dense: simple, and fast for many
rows, but it takes the memory that the packed form saves. It knows every pattern. To make a backend
part of armor, put it into a folder of ``src/armor/runtime`` and the line into ``BACKENDS`` of
``src/armor/runtime/registry.py``.

    python examples/own_backend.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from armor import ArmorLinear, runtime
from armor.baselines.magnitude import magnitude
from armor.factorize.problem import Problem
from armor.runtime.backend import YES, Call, Verdict
from armor.runtime.reference import times_blocks
from armor.runtime.registry import BACKENDS, Registered
from armor.sparse.factors import with_wrappers
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import Pattern


class Unpacked:
    """A backend is any object with these four functions; those of armor are modules."""

    def is_available(self) -> Verdict:
        """On every machine."""
        return YES

    def is_supported(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        batch: int,
        pattern: Pattern,
    ) -> Verdict:
        """Every layer and every pattern, but not for single rows."""
        return YES if batch > 1 else Verdict("one row is faster from packed data")

    def prepare(self, layer: PackedLayer) -> Tensor:
        """The core S, (out, in)."""
        return layer.to_factors().core

    def matmul(self, x: Tensor, call: Call) -> Tensor:
        """A (S (B x)) + bias for x (batch, in)."""
        layer = call.layer
        core = self.prepare(layer) if call.prepared is None else call.prepared
        if layer.right is not None:
            x = times_blocks(x, layer.right)
        y = x @ core.T
        if layer.left is not None:
            y = times_blocks(y, layer.left)
        return y if call.bias is None else y + call.bias


BACKENDS["unpacked"] = Registered(Unpacked(), devices=("cpu",))


def main(rows: int = 256, cols: int = 512, pattern: str = "4:8") -> None:
    """Run one layer on every backend that can, and compare the results."""
    kept = Pattern.parse(pattern)
    problem = Problem(torch.randn(rows, cols), torch.ones(cols))
    layer = ArmorLinear.from_factors(with_wrappers(magnitude(problem, kept), 16))
    layer.prepare()  # `armor.load` does it for every layer of a model
    x = torch.randn(64, cols)
    expected = x @ layer.dense_weight().T
    for status in runtime.backends((rows, cols), x.dtype, "cpu", len(x), kept):
        if status.usable:
            with runtime.use(status.name):
                torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)
        print(f"{status.name:16} {status.reason or 'gives the same'}")


if __name__ == "__main__":
    main()
