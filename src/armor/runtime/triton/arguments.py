"""What the launches of the Triton backend take: tuples of what belongs together.

Up to three layers with the same input (query, key and value, or gate and up) share a launch. What
differs between them is a tuple with an entry for each layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class BlockTensors(NamedTuple):
    """The layers of `blocks_kernel`, an entry for each in every tuple.

    Attributes:
        blocks: (count, SIZE, SIZE). scales: (count, SIZE), of blocks of codes, else None instead of
            the tuple. bias: (features,), or None. y: (batch, features). features: of the layer.
        first_tile: the first of the layer's programs. first_feature: where it begins to read x.
    """

    blocks: Any
    scales: Any
    bias: Any
    y: Any
    features: Any
    first_tile: Any
    first_feature: Any


class CoreTensors(NamedTuple):
    """The layers of `core_kernel`, an entry for each in every tuple.

    Attributes:
        core_values: (rows, 2*groups), of 16-bit numbers two as one int32; codes as they are stored.
        core_indices: (rows, ceil(groups/2)). core_scales: (rows, n), of codes, else None.
        left, right: the wrappers, None where not multiplied here. left_scales, right_scales: of
            wrappers of codes, else None.
        bias: (rows,), or None. y: (batch, rows), None where the sums are the result. rows: outputs.
        first_tile: the first of the layer's programs. first_row: where its sums begin.
    """

    core_values: Any
    core_indices: Any
    core_scales: Any
    left: Any
    left_scales: Any
    right: Any
    right_scales: Any
    bias: Any
    y: Any
    rows: Any
    first_tile: Any
    first_row: Any


class Sums(NamedTuple):
    """The shape (parts, batch, width) of sums that are still to be added up over the parts."""

    parts: Any
    batch: Any
    width: Any


class Inputs(NamedTuple):
    """What the core multiplies.

    Attributes:
        features, groups: of a row of x, and of 4 of them. index_bytes: of a row of positions.
        row_values, scales: of a row of the core, as many as are stored.
        x_stride: numbers from the input of one layer to that of the next, 0 if they have the same.
        steps: of GROUPS groups, that a program takes.
    """

    features: Any
    groups: Any
    index_bytes: Any
    row_values: Any
    scales: Any
    x_stride: Any
    steps: Any


class GatedTensors(NamedTuple):
    """What `gated_kernel` reads and writes.

    Attributes:
        gate, up: what the cores made, (batch, width) or parts of it.
        gate_left, up_left, down: A of gate and up, B of the layer behind; (count, SIZE, SIZE).
        gate_bias, up_bias: (features,), or None. y: (batch, features).
    """

    gate: Any
    up: Any
    gate_left: Any
    up_left: Any
    gate_bias: Any
    up_bias: Any
    down: Any
    y: Any
