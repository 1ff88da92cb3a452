"""The kernel for several rows of input: measured, remembered, or asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from armor.errors import ArmorError
from armor.runtime import Call
from armor.runtime.cpu import backend, choice, tasks, team


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No kernel is asked for; what is measured goes to this file."""
    monkeypatch.delenv(choice.ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choice._measured.cache_clear()
    yield tmp_path / "armor" / "cpu-kernels.json"
    choice._measured.cache_clear()


def test_one_row_has_one_kernel() -> None:
    assert backend.kernel_of(torch.float32, 1) == choice.ROW


def test_the_fastest_is_taken_and_remembered(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    now = iter(range(10**6))
    clock = {"columns": 5, "dot": 7, "panels": 1}

    def run(kernel: str, x: torch.Tensor, layer: object) -> None:
        seen.append((kernel, len(x)))
        for _ in range(clock[kernel]):
            next(now)

    monkeypatch.setattr(choice.time, "perf_counter", lambda: float(next(now)))
    assert choice.kernel_of(torch.float32, 5, run) == "panels"
    assert {rows for _, rows in seen} == {8}
    assert {kernel for kernel, _ in seen} == set(choice.candidates(torch.float32, 8))
    count = len(seen)
    assert choice.kernel_of(torch.float32, 7, run) == "panels"
    choice._measured.cache_clear()  # another process
    assert choice.kernel_of(torch.float32, 8, run) == "panels"
    assert len(seen) == count
    assert choice.kernel_of(torch.float32, 9, run) == "panels"
    assert len(seen) == 2 * count
    assert list(json.loads(kept.read_text()).values()) == ["panels", "panels"]


def test_a_damaged_file_is_measured_anew(kept: Path) -> None:
    kept.parent.mkdir()
    kept.write_text("[1, ")
    found = backend.kernel_of(torch.float32, 2)
    assert found in choice.candidates(torch.float32, 2)
    assert list(json.loads(kept.read_text()).values()) == [found]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_an_unknown_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.ENVIRONMENT, "fast")
    with pytest.raises(ArmorError, match="valid are columns, dot, panels"):
        backend.kernel_of(torch.float32, 2)


def test_layers_of_one_input_together_give_what_each_gives_alone(make_case) -> None:
    for batch in (1, 7, 40):
        cases = [
            make_case(rows, 44, block, batch, bias=bias, seed=rows)
            for rows, block, bias in ((33, 8, True), (64, None, False), (20, 16, False))
        ]
        x, calls = cases[0].x, [case.call for case in cases]
        together = backend.matmul_shared(x, calls)
        for y, call in zip(together, calls, strict=True):
            assert torch.equal(y, backend.matmul(x, call))


def test_patterns_that_differ_share_no_job(make_case) -> None:
    cases = [make_case(32, 64, 16, 3, pattern=pattern) for pattern in ("2:4", "4:8")]
    x, calls = cases[0].x, [case.call for case in cases]
    for y, call in zip(backend.matmul_shared(x, calls), calls, strict=True):
        assert torch.equal(y, backend.matmul(x, call))


@pytest.mark.parametrize("launch", ["torch", "numba"])
@pytest.mark.parametrize("batch", [1, 48])
def test_threads_do_not_change_a_bit(make_case, monkeypatch, launch: str, batch: int) -> None:
    """On torch's threads and on Numba's, one and two."""
    case = make_case(300, 352, 16, batch)
    call = Call(case.layer)
    if launch == "numba":
        monkeypatch.setattr(team, "_starter", lambda: team._on_threads_of_numba)
    found = []
    for threads in (1, 2, 2):
        monkeypatch.setattr(tasks, "_threads", lambda x, calls, count=threads: count)
        found.append(backend.matmul(case.x, call))
    case.check(found[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_starting_threads_takes_a_time() -> None:
    assert 0 < team.start_seconds(2) < 60
