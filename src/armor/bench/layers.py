"""One layer at a time: dense, plain 2:4 and ARMOR, by shape and number of input rows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from armor.bench.roofline import Cost, Peaks
from armor.bench.shapes import Shape
from armor.bench.timing import interleaved
from armor.linear import ArmorLinear, held_bytes
from armor.runtime.cpu.backend import kernel_of
from armor.runtime.dispatch import choose
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pack import pack, packed_shapes
from armor.sparse.pattern import TWO_OF_FOUR

# Copies of the weights take turns until they are more than the caches hold: a decoding model
# never finds a layer's weights in a cache.
_WORKING_SET = 2**28
_MOST_COPIES = 16
_NIBBLES = (0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110)  # two ascending positions
CONTENDERS = ("dense", "2:4", "ARMOR")  # "2:4": the core alone, also where its pattern is another


@dataclass(frozen=True)
class Measured:
    """One contender on one shape and batch.

    Attributes:
        seconds: median of one call. weight_bytes: of the layer. peak_bytes: memory that one call
            takes beyond weights and input (None on the CPU, where torch does not count it).
        cost: its bytes and FLOPs. backend: of armor's runtime, or torch.
        kernel: of the CPU backend, which has several.
    """

    contender: str
    shape: Shape
    batch: int
    seconds: float
    weight_bytes: int
    peak_bytes: int | None
    cost: Cost
    backend: str
    kernel: str | None = None

    def to_dict(self, peaks: Peaks) -> dict[str, object]:
        """For JSON; times in seconds, rates in bytes a second."""
        bound, what = self.cost.bound(peaks)
        return {
            "layer": self.shape.name,
            "out_features": self.shape.out_features,
            "in_features": self.shape.in_features,
            "block": self.shape.block if self.contender == "ARMOR" else None,
            "pattern": None if self.contender == "dense" else str(self.shape.pattern),
            "batch": self.batch,
            "contender": self.contender,
            "backend": self.backend,
            "kernel": self.kernel,
            "seconds": self.seconds,
            "weight_bytes": self.weight_bytes,
            "peak_bytes": self.peak_bytes,
            "bytes": self.cost.bytes,
            "flops": self.cost.flops,
            "bandwidth": self.cost.bytes / self.seconds,
            "bound_by": what,
            "bound_seconds": bound,
        }


def measure_shape(
    shape: Shape,
    batches: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
) -> list[Measured]:
    """Every contender on `shape` with random weights, for each number of input rows."""
    weight = _random((shape.out_features, shape.in_features), dtype, device)
    copies = min(_MOST_COPIES, max(1, _WORKING_SET // (weight.nbytes // 2)))
    plain = shape._replace(block=None)
    groups: dict[str, list[nn.Linear] | list[ArmorLinear]] = {
        "dense": [_dense_layer(weight) for _ in range(copies)],
        "2:4": _random_layers(plain, dtype, device, copies),
        "ARMOR": _random_layers(shape, dtype, device, copies),
    }
    found = []
    for batch in batches:
        x = _random((batch, shape.in_features), dtype, device)
        runs = {name: partial(_run_all, group, x) for name, group in groups.items()}
        seconds = interleaved(runs, device, repeats)
        for name in CONTENDERS:
            module = groups[name][0]
            found.append(
                Measured(
                    contender=name,
                    shape=shape,
                    batch=batch,
                    seconds=seconds[name] / copies,
                    weight_bytes=held_bytes(module),
                    peak_bytes=_peak(module, x),
                    cost=_cost(shape, batch, dtype, name),
                    backend=(backend := backend_of(module, batch, device)),
                    kernel=kernel_of(dtype, batch) if backend == "cpu" else None,
                )
            )
    return found


def _random(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(size, dtype=torch.float32, device=device).to(dtype)


def _run_all(modules: Sequence[nn.Module], x: Tensor) -> None:
    for module in modules:
        module(x)


def _dense_layer(weight: Tensor) -> nn.Linear:
    rows, cols = weight.shape
    linear = nn.Linear(cols, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


def random_layer(
    shape: Shape, dtype: torch.dtype, device: torch.device, prepare: bool = True
) -> ArmorLinear:
    """A packed layer of random numbers at random positions; `prepare`: for its backend."""
    pattern, size = shape.pattern, (shape.out_features, shape.in_features)

    def random(*size: int) -> Tensor:
        return _random(size, dtype, device)

    if pattern == TWO_OF_FOUR:
        values, indices = packed_shapes(*size)
        nibbles = torch.tensor(_NIBBLES, dtype=torch.uint8, device=device)
        low, high = (
            nibbles[torch.randint(6, indices, dtype=torch.int64, device=device)] for _ in range(2)
        )
        core = random(*values), low | high << 4
    else:
        scores = torch.rand(size, dtype=torch.float32, device=device)
        if pattern.is_unstructured:
            mask = scores < pattern.density
        else:
            mask = nm_mask(scores, pattern.kept, pattern.group)
        core = pack(random(*size), mask, pattern)
    left = right = None
    if shape.block is not None:
        left = random(-(-shape.out_features // shape.block), shape.block, shape.block)
        right = random(-(-shape.in_features // shape.block), shape.block, shape.block)
    packed = PackedLayer(shape.in_features, *core, left, right, pattern)
    module = ArmorLinear.from_packed(packed)
    if prepare:
        module.prepare()
    return module


def _random_layers(
    shape: Shape, dtype: torch.dtype, device: torch.device, count: int
) -> list[ArmorLinear]:
    """Layers of the same random numbers, each in memory of its own."""
    first = random_layer(shape, dtype, device, prepare=False)
    layers = [first, *(deepcopy(first) for _ in range(count - 1))]
    for layer in layers:
        layer.prepare()
    return layers


def _cost(shape: Shape, batch: int, dtype: torch.dtype, contender: str) -> Cost:
    out, into, item = shape.out_features, shape.in_features, dtype.itemsize
    products = out * into
    size = products * item
    if contender != "dense":
        values, indices = packed_shapes(out, into, shape.pattern)
        products = prod(values)
        size = products * item + prod(indices)
    if contender == "ARMOR" and shape.block is not None:
        wrappers = (out + into) * shape.block
        size += wrappers * item
        products += wrappers
    return Cost(size + batch * (out + into) * item, 2 * batch * products)


def backend_of(module: nn.Module, batch: int, device: torch.device) -> str:
    """The backend that computes `batch` rows of input; "torch" where it is a dense layer."""
    if not isinstance(module, ArmorLinear):
        return "torch"
    call = module.call()
    layer = call.layer
    own = layer.pattern, call.prepared_by, layer.core
    return choose(layer.shape, layer.dtype, device, batch, *own)


def _peak(module: nn.Module, x: Tensor) -> int | None:
    if x.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        module(x)
    return torch.cuda.max_memory_allocated() - before
