"""What an iteration of the solver may ask of a GPU: held here, as no GPU is at hand to time it."""

from __future__ import annotations

from pathlib import Path

import pytest

from armor.factorize.exact import REPORT_EVERY
from armor.factorize.kernels import triton

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.skipif(not triton.is_available(), reason="triton is not installed")
@pytest.mark.parametrize(
    ("full", "launches", "gigabytes", "tera"), [(False, 150, 6, 0.06), (True, 740, 13.5, 0.95)]
)
def test_an_iteration_stays_within_its_budget(
    full: bool, launches: int, gigabytes: float, tera: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4096 x 4096 with blocks of 128."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_model import count_solve

    few, many = (count_solve((4096, 4096), full, number) for number in (10, 20))
    more, each = many.less(few), many.less(few, 10)
    assert more.launches["sweep"] == (16 if full else 1) * 10
    assert sum(each.launches.values()) <= launches, each.launches
    assert sum(each.bytes.values()) <= gigabytes * 1e9, each.bytes
    assert sum(each.flops.values()) <= tera * 1e12, each.flops
    assert not more.copied
    # The losses to report, and whether to give up.
    assert sum(more.waits.values()) <= 2 * 10 // REPORT_EVERY, more.waits
