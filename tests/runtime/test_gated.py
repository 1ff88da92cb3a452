"""Gated MLPs as one: the launch between the cores, what backends make of it, the operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from armor.runtime import Call, use
from armor.runtime.dispatch import gating, run_gated
from armor.runtime.gated import ACTIVATIONS, Gated
from armor.runtime.operator import gated_arguments, gated_operator
from armor.runtime.reference import times_blocks
from armor.runtime.registry import load
from armor.runtime.semi_structured import backend as semi_structured
from armor.runtime.triton.gated import between_cores, takes_gated
from armor.sparse.layer import PackedLayer

pytestmark = [
    pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed"),
    # The interpreter's sigmoid of a large negative number; the quotient is right.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]


def layers_of(gate: Tensor, up: Tensor, down: Tensor, biases: Any, activation: str) -> Gated:
    """All that the launch between the cores looks at."""

    core = torch.zeros(1, 2, dtype=torch.float32), torch.zeros(1, 1, dtype=torch.uint8)

    def call(left: Tensor | None, right: Tensor | None, bias: Tensor | None) -> Call:
        return Call(PackedLayer(4, *core, left, right), bias)

    one, two = (call(left, None, bias) for left, bias in zip((gate, up), biases, strict=True))
    return Gated(one, two, call(None, down, None), activation)


@given(
    block=st.sampled_from([8, 16, 24, 32, 64, 128]),
    features=st.sampled_from([24, 100, 128, 200]),
    batch=st.sampled_from([1, 33, 70]),
    parts=st.sampled_from([None, 1, 3]),
    bias=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=25)
def test_between_the_cores(
    block: int,
    features: int,
    batch: int,
    parts: int | None,
    bias: bool,
    activation: str,
    scale: float,
) -> None:
    """Against float64; of float32 numbers, so that a wrong one shows."""
    draw = torch.Generator().manual_seed(features + batch)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float32)

    count = -(-features // block)
    lefts, down = [normal(count, block, block) for _ in range(2)], normal(count, block, block)
    biases = [normal(features) for _ in range(2)] if bias else [None, None]
    if parts is None:  # two tensors, padded to the right
        cores = [scale * normal(batch, features + 5)[:, :features] for _ in range(2)]
        sums = cores
    else:
        cores = list((scale * normal(parts, batch, 2 * features)).split(features, 2))
        sums = [core.double().sum(0) for core in cores]
    gated = layers_of(*lefts, down, biases, activation)
    y = between_cores(*cores, gated, torch.float32)
    inner = [
        times_blocks(core.double(), left.double()) + (0 if one is None else one.double())
        for core, left, one in zip(sums, lefts, biases, strict=True)
    ]
    expected = times_blocks(gated.between(*inner), down.double())
    assert y.shape == (batch, features)
    assert float((y - expected).norm()) <= 1e-6 * float(expected.norm())


def gated_of(make_case, block: int | None = 16, bias: bool = True, **changes: Any) -> Gated:
    """Layers of 48 inputs, 72 numbers between, 40 outputs, in bfloat16."""
    sizes = {"gate": (72, 48), "up": (72, 48), "down": (40, 72)}
    own = {"block": block, "dtype": torch.bfloat16} | changes
    calls = [
        make_case(*size, batch=1, bias=bias, seed=seed, **own).call
        for seed, size in enumerate(sizes.values())
    ]
    return Gated(*calls, "silu")


def wide(gated: Gated) -> Gated:
    """The same numbers in float64."""
    calls = [
        call._replace(
            layer=call.layer.to(torch.float64),
            bias=None if call.bias is None else call.bias.double(),
        )
        for call in gated.calls
    ]
    return Gated(*calls, gated.activation)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_the_backend_computes_the_whole(make_case, batch: int, bias: bool) -> None:
    gated = gated_of(make_case, bias=bias)
    x = torch.randn(batch, 48, dtype=torch.float32).bfloat16()
    with use("triton"):
        assert gating(x, gated) == "triton"
        y = run_gated(x.view(1, batch, 48), gated)
    assert y.shape == (1, batch, 40)
    assert y.dtype == torch.bfloat16
    with use("reference"):
        expected = run_gated(x.double(), wide(gated))
    assert float((y[0] - expected).norm()) <= 0.03 * float(expected.norm())


def test_other_backends_compute_it_layer_by_layer(make_case) -> None:
    gated = gated_of(make_case)
    x = torch.randn(3, 48, dtype=torch.float32).bfloat16()
    with use("reference"):
        assert gating(x, gated) is None
        expected = run_gated(x.double(), wide(gated))
        y = run_gated(x, gated)
    assert float((y - expected).norm()) <= 0.05 * float(expected.norm())
    assert run_gated(x[:0], gated).shape == (0, 40)


def test_what_is_not_taken(make_case) -> None:
    gated = gated_of(make_case)
    assert takes_gated(gated)
    assert semi_structured.takes_gated(gated)
    other = gated_of(make_case, block=8)
    for call in ("gate", "up", "down"):
        verdict = takes_gated(gated._replace(**{call: getattr(other, call)}))
        assert "of one size" in verdict.reason
    assert "of one size" in takes_gated(gated_of(make_case, block=None)).reason
    assert "of one size" in takes_gated(gated_of(make_case, block=256)).reason
    assert "16 bits" in takes_gated(gated_of(make_case, dtype=torch.float32)).reason
    layer = gated.up.layer
    codes = replace(
        layer,
        core_values=layer.core_values.to(torch.int8),
        core_scales=torch.ones(72, 1, dtype=torch.bfloat16),
    )
    assert "codes" in takes_gated(gated._replace(up=gated.up._replace(layer=codes))).reason


def test_opcheck(make_case) -> None:
    gated = gated_of(make_case)
    x = torch.randn(2, 40, 48, dtype=torch.float32).bfloat16()
    for name in ("reference", "triton"):
        with use(name):
            torch.library.opcheck(gated_operator, (x, *gated_arguments(gated)))
            assert torch.equal(gated_operator(x, *gated_arguments(gated)), run_gated(x, gated))
