"""Held-out windows: every token is fitted or held out, and sums do not depend on the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from armor.calibrate.held_out import HeldOut
from armor.calibrate.moments import Moments
from armor.calibrate.sample import Sample

SIZES = [(1, 8, 1), (7, 8, 2), (8, 8, 3), (16, 8, 8), (17, 5, 4), (24, 2048, 2), (33, 300, 8)]


def batches(held_out: HeldOut) -> list[tuple[str, int, int]]:
    """Number, first window, windows."""
    starts = range(0, held_out.windows, held_out.batch)
    return [
        (str(number), start, min(held_out.batch, held_out.windows - start))
        for number, start in enumerate(starts)
    ]


@pytest.mark.parametrize(("windows", "seq_len", "batch"), SIZES)
def test_every_token_is_fitted_or_held_out(windows: int, seq_len: int, batch: int) -> None:
    held_out = HeldOut.of(windows, seq_len, batch)
    assert held_out.count <= windows // 8
    assert held_out.count * seq_len <= max(4096, seq_len)
    kept = (windows - held_out.count) * seq_len  # by their place in the text
    fitted: list[int] = []
    seen: list[int] = []
    unseen: list[int] = []
    for number, start, rows in batches(held_out):
        own = range(start * seq_len, (start + rows) * seq_len)
        sides = held_out.split(len(own), number, rows)
        for places, side in zip((fitted, seen, unseen), sides, strict=True):
            places += own[side]
    assert fitted == list(range(kept))
    assert set(seen) <= set(fitted)
    assert all(place >= kept for place in unseen)
    assert len(seen) == len(unseen)
    assert bool(unseen) == (windows >= 8)
    assert len(unseen) <= 2048 + len(batches(held_out))


def test_few_windows_hold_none_out_and_long_ones_one() -> None:
    assert HeldOut.of(7, 2048, 2).count == 0
    assert HeldOut.of(8, 2048, 2).count == 1
    assert HeldOut.of(128, 2048, 2).count == 2
    assert HeldOut.of(128, 256, 8).count == 16
    assert HeldOut.of(128, 100_000, 1).count == 1


def parts(held_out: HeldOut, whole: dict[str, Tensor], weight: Tensor | None) -> dict[str, Tensor]:
    """Batch by batch, half of them in one part and half in another."""
    total = Moments()
    split = batches(held_out)
    for part in (split[: len(split) // 2], split[len(split) // 2 :]):
        moments = Moments()
        for number, start, rows in part:
            own = {kind: tensor[start : start + rows] for kind, tensor in whole.items()}
            held_out.add(moments, number, rows, Sample(**own), weight)
        if part:
            total.merge(moments.tokens, moments.sums())
    assert total.tokens == (held_out.windows - held_out.count) * whole["inputs"].shape[1]
    return total.means("layer")


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_the_parts_add_up_in_any_batch_size(adds: bool, alone: bool) -> None:
    windows, seq_len = 25, 6
    draw = torch.Generator().manual_seed(0)
    widths = {"inputs": 4, "dense": 4} | ({"residual": 3} if adds else {})
    whole = {
        kind: torch.randn(windows, seq_len, width, generator=draw) for kind, width in widths.items()
    }
    flat = {kind: tensor[:22].flatten(0, 1) for kind, tensor in whole.items()}
    weight = torch.randn(3, 4, generator=draw) if alone else None
    lefts = {"second": flat["inputs"], "cross": flat["dense"]}
    if weight is not None:
        missed = (flat["dense"] - flat["inputs"]) @ weight.T
        lefts = {"second": flat["inputs"], "missed": missed + flat.get("residual", 0)}
    for batch in (1, 2, 4, 8, 25):
        held_out = HeldOut.of(windows, seq_len, batch)
        means = parts(held_out, whole, weight)
        assert (held_out.count, held_out.stride) == (3, 1)
        for name, left in lefts.items():
            mean = left.T @ flat["inputs"] / len(flat["inputs"])
            torch.testing.assert_close(means[name], mean)
        assert {name for name in means if "/" not in name} == set(lefts)
        for side, windows_of in (("fitted", slice(0, 3)), ("held_out", slice(22, None))):
            sample = Sample.named(side, means)
            assert sample is not None
            assert (sample.residual is not None) == adds
            for kind, tensor in sample.tensors().items():
                assert torch.equal(tensor, whole[kind][windows_of].flatten(0, 1))
