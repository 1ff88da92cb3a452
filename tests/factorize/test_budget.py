"""What an iteration of the solver may ask of a GPU: held here, as no GPU is at hand to time it."""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.bench.counting import Counting, Counts
from armor.factorize import adam
from armor.factorize.exact import REPORT_EVERY
from armor.factorize.gpu_workspace import GpuWorkspace
from armor.factorize.kernels import triton
from armor.factorize.kernels.rows import ROWS_TOGETHER
from armor.factorize.problem import Problem

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WIDTH = 4096
needs_triton = pytest.mark.skipif(not triton.is_available(), reason="triton is not installed")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scripts can be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def stored_row(shape: tuple[int, int], full: bool) -> dict[str, Any]:
    """What ``gpu_model.py`` found last of an iteration."""
    found = json.loads((BENCHMARKS / "results" / "gpu_model.json").read_text(encoding="utf-8"))
    (row,) = (
        each
        for each in found["iterations"]
        if (tuple(each["shape"]), each["full"]) == (shape, full)
    )
    return dict(row)


@needs_triton
@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(
    ("full", "launches", "gigabytes", "tera", "milliseconds"),
    [(False, 150, 6, 0.06, 5), (True, 740, 13.5, 0.95, 12)],
)
def test_an_iteration_stays_within_its_budget(
    full: bool, launches: int, gigabytes: float, tera: float, milliseconds: float
) -> None:
    """Of 4096 x 4096 with blocks of 128; the milliseconds are arithmetic on what was counted."""
    from gpu_model import GPUS, TF32, as_dict, count_solve, iteration_seconds

    shape = (WIDTH, WIDTH)
    few, many = (count_solve(shape, full, number) for number in (10, 20))
    more, each = many.less(few), many.less(few, 10)
    assert more.launches["sweep"] == (16 if full else 1) * 10
    assert sum(each.launches.values()) <= launches, each.launches
    assert sum(each.bytes.values()) <= gigabytes * 1e9, each.bytes
    assert sum(each.flops.values()) <= tera * 1e12, each.flops
    assert not more.copied
    # The losses to report, and whether to give up.
    assert sum(more.waits.values()) <= 2 * 10 // REPORT_EVERY, more.waits
    # Two products with a full moment, of three parts each; all others are with blocks or panels.
    in_parts = {name: flops for name, flops in each.flops.items() if name.endswith(TF32)}
    assert sum(in_parts.values()) == (2 * 3 * 2 * WIDTH**3 if full else 0), each.flops
    for gpu in GPUS.values():
        seconds = iteration_seconds(each, shape, full, gpu)
        assert sum(seconds.values()) <= milliseconds / 1e3, seconds
    counts = stored_row(shape, full)["counts"]
    assert counts["flops"] == as_dict(each)["flops"], "run benchmarks/gpu_model.py again"
    for name in ("launches", "bytes"):
        old, new = (sum(one[name].values()) for one in (counts, as_dict(each)))
        assert new == pytest.approx(old, rel=0.02), f"{name}: run benchmarks/gpu_model.py again"


@needs_triton
@pytest.mark.usefixtures("benchmarks")
def test_a_loss_is_measured_by_a_product_in_parts() -> None:
    """Of a start, and of a state that something else has changed."""
    from gpu_model import TF32, as_on_gpu

    target, moment = (torch.empty(512, 512, device="meta") for _ in range(2))
    counting = Counting()
    with as_on_gpu(counting), counting:
        work = GpuWorkspace(Problem(target, moment), 128)
        state = work.start(nowag(work.problem))
        for measure in (work.loss, work.measure):
            before = deepcopy(counting.counts)
            measure(state)
            flops = counting.counts.less(before).flops
            del flops["bmm"]  # with blocks
            assert {name.endswith(TF32) for name in flops} == {True}, flops
            assert sum(flops.values()) == 3 * 2 * 512**3


@needs_triton
@pytest.mark.usefixtures("benchmarks")
def test_a_whole_model_stays_within_its_budget() -> None:
    """Llama-2-7B in 15 minutes on one H200, by arithmetic on what was counted last."""
    from gpu_model import GPUS, LLAMA_2_7B, iteration_seconds, llama

    gpu, seconds = GPUS["H200"], {}
    for shape in LLAMA_2_7B:
        counts = Counts(**{k: Counter(v) for k, v in stored_row(shape, True)["counts"].items()})
        seconds[shape] = sum(iteration_seconds(counts, shape, True, gpu).values())
    minutes = llama(seconds, gpu)
    assert sum(minutes.values()) <= 15, minutes


@needs_triton
@pytest.mark.usefixtures("benchmarks")
def test_rows_by_sets_keep_the_chain_of_a_sweep_short() -> None:
    """What no other count shows: a block's steps wait for one another."""
    from gpu_model import GPUS, sweep_seconds

    for gpu in GPUS.values():
        assert sweep_seconds((WIDTH, WIDTH), True, gpu) <= 2e-3
        assert sweep_seconds((WIDTH, WIDTH), False, gpu) <= 1e-3
    assert 128 // ROWS_TOGETHER * 128 // 4 <= 512


class StillAdam:
    """In the place of torch's, whose fused step the meta device lacks."""

    def __init__(self, parameters: list[Tensor], *_settings: Any, **_more: Any) -> None:
        self.state = {
            each: {name: torch.zeros_like(each) for name in ("exp_avg", "exp_avg_sq")}
            for each in parameters
        }

    def step(self) -> None:
        """Launches and copies nothing."""


@needs_triton
@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("full", [False, True])
def test_an_iteration_of_the_papers_loop_copies_nothing(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor waits for anything. A tensor that is made of numbers is a copy that no count shows."""
    from gpu_model import as_on_gpu

    made: list[Any] = []
    tensor = torch.tensor

    def recorded(data: Any, **settings: Any) -> Tensor:
        made.append(data)
        return tensor(data, **settings)

    monkeypatch.setattr(torch, "tensor", recorded)
    monkeypatch.setattr(torch.optim, "Adam", StillAdam)
    target, square = (torch.empty(64, cols, device="meta") for cols in (96, 96))
    moment = torch.empty(96, 96, device="meta") if full else square[0]
    problem, counting = Problem(target, moment), Counting()
    with as_on_gpu(counting), counting:
        work = GpuWorkspace(problem, 16)
        loop = adam._Loop(work, work.start(nowag(problem)), seed=0)
        loop.iterate()
        before, made[:] = deepcopy(counting.counts), []
        loop.iterate()
    more = counting.counts.less(before)
    assert more.launches
    assert not more.copied
    assert not more.waits
    assert not made
