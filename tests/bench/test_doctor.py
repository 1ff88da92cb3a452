"""armor doctor: what is right passes, what is wrong is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from armor.bench import cases, compared, doctor, prepared
from armor.bench.cases import Shape
from armor.bench.forms import Member, dtypes_of, random_member
from armor.cli import app
from armor.runtime import Call, Status, backends, reference
from armor.runtime.backend import YES, Verdict
from armor.runtime.registry import BACKENDS, Registered, load
from armor.sparse.levels import CORES
from armor.sparse.pattern import Pattern

CPU = torch.device("cpu")
REAL = (Shape("64x64", 64, 64, 16), Shape("32x64", 32, 64, 16))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layers of a real model, nothing interpreted."""

    def compiled() -> list[Status]:
        return [each for each in backends() if each.name != "triton"]

    for module in (cases, doctor, prepared):
        monkeypatch.setattr(module, "REAL", REAL)
    for module in (compared, prepared):
        monkeypatch.setattr(module, "backends", compiled)
    unlike = (REAL[0], *[REAL[1]._replace(block=8)] * 2)
    monkeypatch.setattr(cases, "REAL_UNLIKE", unlike)
    monkeypatch.setattr(doctor, "SWEEPS", [each for each in doctor.SWEEPS if each.name != "triton"])
    monkeypatch.delenv("ARMOR_BACKEND", raising=False)


def register(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> SimpleNamespace:
    """Adds a backend that computes as the reference does."""
    parts = ("is_available", "is_supported", "prepare", "matmul")
    mine = SimpleNamespace(**{part: getattr(reference, part) for part in parts})
    monkeypatch.setitem(BACKENDS, "mine", Registered(mine, ("cpu",), **settings))
    return mine


def run_doctor(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", "--device", "cpu", *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def test_what_is_here_is_right(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    code, output = run_doctor("--json", str(file))
    assert code == 0, output
    found = json.loads(file.read_text())
    assert found["torch"] == torch.__version__
    assert found["cpu"]["name"] in output
    verdicts = {check["what"]: check["verdict"] for check in found["checks"]}
    assert {f"runtime {name}" for name in BACKENDS if name != "triton"} <= set(verdicts)
    assert verdicts["runtime cpu"] == verdicts["shared cpu"] == verdicts["solver numba"] == "ok"
    assert verdicts["shared (as chosen)"] == "ok"
    assert verdicts["speed cpu"] == "against dense"
    assert "no NVIDIA GPU" in output or torch.cuda.is_available()
    assert not [
        check for check in found["checks"] if check["verdict"] == "ok" and not check["where"]
    ]


def test_every_form_is_compared() -> None:
    checks = [check for check in doctor.check_layers(CPU) if check.what == "runtime cpu"]
    found = {check.where for check in checks if check.verdict == "ok"}
    dtypes = ("float32", "bfloat16", "float16")
    rounded = {f"{core} cores, {dtype}" for core in CORES for dtype in dtypes}
    assert found == {*dtypes, *rounded, "4:8, float32", "50%, float32"}
    assert next(check.trials for check in checks if check.where == "float32") > 8
    # Layers of one input, of every kind, with more rows than decoding has.
    for place in range(3):
        shared = cases.sharing(place)
        assert all(max(case.rows) > 32 for case in shared)
        blocks = [{member.shape.block for member in case.members} for case in shared]
        assert any(len(each) > 1 for each in blocks)
    kinds = [{member.core for member in case.members} for case in cases.sharing(0)]
    assert {None} in kinds
    assert set(CORES) in kinds


@pytest.mark.parametrize(("core", "wrappers"), [(None, None), *product(CORES, (None, "int8"))])
@pytest.mark.parametrize("dtype", dtypes_of(CPU))
def test_random_layers_of_every_form(
    core: str | None, wrappers: str | None, dtype: torch.dtype
) -> None:
    member = Member(Shape("", 256, 512, 32), core, wrappers, bias=True)
    layer = random_member(member, dtype, CPU).packed()
    assert (layer.core, layer.dtype, layer.block) == (core, dtype, 32)
    assert (layer.left_scales is None) == (wrappers is None)
    dense = layer.to(torch.float32).dense()
    assert dense.isfinite().all()
    assert 0.5 < float(dense.square().sum(1).mean().sqrt()) < 2  # outputs as large as inputs
    if layer.levels is not None:  # all levels up to the largest are taken
        codes = layer.float_values() / layer.core_scales.float().amax()
        assert float(codes.abs().max()) > 0.8 * layer.levels.largest


def test_a_wrong_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = register(monkeypatch)
    mine.matmul = lambda x, call: reference.matmul(x, call) * 1.1
    checks = [*doctor.check_layers(CPU), *doctor.check_shared(CPU)]
    assert {check.what for check in checks if check.failed} == {
        *("runtime mine", "shared mine", "shared (as chosen)")
    }
    found = next(check for check in checks if check.failed)
    assert found.where == "37x52, 1 row, float32"
    assert found.figure == pytest.approx(0.1, rel=1e-3)
    assert found.verdict == "wrong"
    assert not [check for check in checks if check.what == "runtime mine" and check.verdict == "ok"]

    def broken(x: Tensor, call: Call) -> Tensor:
        raise RuntimeError("CUDA error: misaligned [/address]\nmore")

    mine.matmul = broken
    first = next(check for check in doctor.check_layers(CPU) if check.failed)
    assert first.verdict == "wrong: CUDA error: misaligned [/address]"
    code, output = run_doctor()
    assert code == 1
    assert "ARMOR_BACKEND=reference" in output
    assert "misaligned [/address]" in output


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    mine = register(monkeypatch)
    mine.matmul = lambda x, call: reference.matmul(x, call).fill_(wrong)
    checks = [check for check in doctor.check_layers(CPU) if check.what == "runtime mine"]
    assert any(check.failed for check in checks)
    assert not any(check.verdict == "ok" for check in checks)


def test_a_wrong_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def matmul(x: Tensor, call: Call) -> Tensor:
        y = reference.matmul(x, call)
        return y * 1.2 if call.layer.core == "int4" and x.dtype == torch.bfloat16 else y

    mine = register(monkeypatch, cores=(None, *CORES))
    mine.matmul = matmul
    failed = [check for check in doctor.check_layers(CPU) if check.failed]
    assert {check.what for check in failed} == {"runtime mine"}
    assert {check.where for check in failed} == {
        f"256x512, {rows}, int4 cores, bfloat16" for rows in ("1 row", "64 rows")
    }


def blocks_of_the_first(right: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """A product that reads B of every layer in blocks of the size that the first one's has."""

    def matmul_shared(x: Tensor, calls: Sequence[Call]) -> list[Tensor]:
        size = calls[0].layer.block
        read = []
        for call in calls:
            own = call.layer.right
            if own is None:
                return right(x, calls)
            count = -(-call.layer.in_features // size)
            numbers = own.flatten().repeat(8)[: count * size * size]
            layer = replace(call.layer, right=numbers.view(count, size, size))
            read.append(call._replace(layer=layer))
        return right(x, read)

    return matmul_shared


def test_a_backend_that_mixes_up_block_sizes_of_one_input_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = load("cpu")
    monkeypatch.setattr(cpu, "matmul_shared", blocks_of_the_first(cpu.matmul_shared))
    assert not [check for check in doctor.check_layers(CPU) if check.failed]
    checks = list(doctor.check_shared(CPU))
    failed = [check for check in checks if check.failed]
    assert {check.what for check in failed} == {"shared cpu", "shared (as chosen)"}
    assert all(check.where.startswith("several block sizes, ") for check in failed)
    places = " ".join(check.where for check in failed if check.what == "shared cpu")
    assert all(dtype in places for dtype in ("float32", "bfloat16", "float16"))
    assert "64 rows, float16" in places
    code, output = run_doctor()
    assert code == 1
    assert "several block sizes, 64 rows, float16" in output


def test_a_backend_that_swaps_layers_of_one_input_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = load("cpu")
    right = cpu.matmul_shared

    def matmul_shared(x: Tensor, calls: Sequence[Call]) -> list[Tensor]:
        first, *others = right(x, calls)
        return [first, *reversed(others)]  # of one shape

    monkeypatch.setattr(cpu, "matmul_shared", matmul_shared)
    failed = [check for check in doctor.check_shared(CPU) if check.failed]
    names = {check.where.partition(",")[0] for check in failed}
    assert names == {case.name for place in range(3) for case in cases.sharing(place)}


def test_what_a_backend_does_not_take_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = register(monkeypatch, cores=("fp8",))

    def is_supported(shape: Any, dtype: torch.dtype, *others: Any) -> Verdict:
        return YES if dtype == torch.bfloat16 else Verdict(f"not {dtype}")

    mine.is_supported = is_supported
    found = [check for check in doctor.check_layers(CPU) if check.what == "runtime mine"]
    assert [(check.where, check.verdict) for check in found] == [
        ("float32, float16", "not torch.float32"),
        ("unrounded, int8, int4 cores", "it does not read unrounded cores"),
        ("fp8 cores, bfloat16", "ok"),
    ]
    mine.is_supported = lambda *_: Verdict("the tensors are on cpu")
    (only,) = (check for check in doctor.check_layers(CPU) if check.what == "runtime mine")
    assert only.verdict == "the tensors are on cpu"
    mine.is_available = lambda: Verdict("no such machine")
    (only,) = (check for check in doctor.check_layers(CPU) if check.what == "runtime mine")
    assert only.verdict == "no such machine"


def test_whether_layers_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [check.verdict for check in doctor.check_prepared(CPU)]
    assert plain == ["of dense's bytes; nothing to prepare; 1 row on cpu, 64 rows on cpu"] * 6

    def is_supported(
        shape: Any, dtype: torch.dtype, device: torch.device, batch: int, pattern: Pattern
    ) -> Verdict:
        return YES if dtype != torch.float32 else Verdict("not float32")

    mine = register(monkeypatch, rows="many", only_prepared=True)
    mine.is_supported = is_supported
    monkeypatch.setitem(BACKENDS, "cpu", replace(BACKENDS["cpu"], rows="few"))
    mine.prepare = lambda layer: torch.cat([layer.core_values.flatten(), layer.core_values[0]])
    found = {check.where: check for check in doctor.check_prepared(CPU)}
    once, without, codes = (
        found[f"32x64, {form}"] for form in ("bfloat16", "float32", "int8 cores, float32")
    )
    assert "; prepared by mine, values held once; 1 row on cpu, 64 rows on mine" in once.verdict
    assert once.figure is not None
    assert "; not prepared for mine: not float32; 1 row on cpu, 64 rows on cpu" in without.verdict
    assert "; not prepared for mine: it does not read int8 cores; " in codes.verdict
    mine.prepare = lambda layer: layer.core_values.flatten().flip(0)
    twice = {check.where: check for check in doctor.check_prepared(CPU)}[once.where]
    assert "; prepared by mine, values held twice; " in twice.verdict
    assert twice.figure is not None
    assert twice.figure > once.figure
    mine.prepare = lambda layer: None
    (none,) = (check for check in doctor.check_prepared(CPU) if check.where == once.where)
    assert "; not prepared for mine: its form would hold the values twice; " in none.verdict
    assert none.verdict.endswith("64 rows on cpu")


def test_a_backend_that_must_be_asked_for_is_prepared_for_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = register(monkeypatch, cores=("fp8",))
    monkeypatch.setitem(BACKENDS, "mine", replace(BACKENDS["mine"], devices=()))
    (check,) = (check for check in doctor.check_prepared(CPU) if check.what == "prepare mine")
    assert check.where == "32x64, fp8 cores, float32"
    assert "1 row on mine" in check.verdict

    def prepare(layer: object) -> Tensor:
        raise RuntimeError("out of memory")

    mine.prepare = prepare
    (check,) = (check for check in doctor.check_prepared(CPU) if check.what == "prepare mine")
    assert check.verdict == "wrong: out of memory"


def test_a_backend_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMOR_BACKEND", "semi_structured")
    assert doctor.about()["ARMOR_BACKEND"] == "semi_structured"
    shared = {check.what: check.verdict for check in doctor.check_shared(CPU)}
    assert shared["shared cpu"] == "ok"
    asked = shared["shared (as chosen)"]
    assert asked == "nothing is chosen: ARMOR_BACKEND is semi_structured"
    for check in doctor.check_prepared(CPU):
        assert check.verdict.startswith("backend semi_structured cannot run this layer: ")


def test_a_device_that_answers_no_more_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = register(monkeypatch)
    mine.matmul = lambda x, call: reference.matmul(x, call) + 1
    monkeypatch.setattr(doctor, "_answers", lambda device: False)
    *_, wrong, last = doctor.checks(CPU)
    assert (wrong.what, wrong.failed) == ("runtime mine", True)
    assert last.verdict == "answers no more: nothing else was tried"
    monkeypatch.undo()
    assert doctor._answers(CPU)


@pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is compiled, for GPUs")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # interpreted
def test_mlps_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere,) = doctor.check_mlps(CPU)
    assert nowhere.verdict == "run layer by layer: no backend here computes gated MLPs as one"
    triton = load("triton")
    monkeypatch.setattr(compared, "backends", lambda: [Status("triton", True, "")])
    monkeypatch.setattr(compared, "MLPS", ((64, 96, 16), (64, 80, 16)))
    checks = list(doctor.check_mlps(CPU))
    assert [check.verdict for check in checks] == ["ok", "ok", "ok"]
    assert [check.where.rpartition(" ")[2] for check in checks] == [
        "bfloat16",
        "bfloat16",
        "float16",
    ]
    right = triton.matmul_gated
    monkeypatch.setattr(triton, "matmul_gated", lambda x, gated: right(x, gated) * 1.1)
    assert all(check.failed for check in doctor.check_mlps(CPU))
    monkeypatch.setattr(triton, "takes_gated", lambda _: Verdict("not these"))
    assert {check.verdict for check in doctor.check_mlps(CPU)} == {"run layer by layer"}
