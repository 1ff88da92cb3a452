"""What the benchmark counts and says; nothing here depends on how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from armor.bench import roofline
from armor.bench.layers import CONTENDERS, Measured, measure_shape
from armor.bench.report import machine, slower_line, speedups
from armor.bench.roofline import Cost, Peaks, measure_peaks
from armor.bench.shapes import MODELS, Shape, checkpoint_shapes, parse_shapes
from armor.bench.timing import interleaved
from armor.checkpoint.format import LayerSpec
from armor.cli import app
from armor.errors import ArmorError
from armor.sparse.pattern import Pattern

CPU = torch.device("cpu")


def test_shapes() -> None:
    assert parse_shapes("64x128", 32) == [Shape("64x128", 64, 128, 32)]
    named = parse_shapes("8x4,llama-3-8b", None)
    assert len(named) == 1 + len(MODELS["llama-3-8b"])
    assert named[3] == Shape("llama-3-8b gate_proj", 14336, 4096, None)


@pytest.mark.parametrize("text", ["", "64", "64x", "0x4", "-4x4", "4x4x4", "gpt2", "64x128,"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(ArmorError, match="is neither OUTxIN"):
        parse_shapes(text, 128)


def test_shapes_of_a_checkpoint_are_distinct() -> None:
    layers = {
        "model.layers.0.q_proj": LayerSpec((64, 64), 16),
        "model.layers.0.up_proj": LayerSpec((172, 64), 4),
        "model.layers.1.q_proj": LayerSpec((64, 64), 16),
        "model.layers.2.q_proj": LayerSpec((64, 64), 16, Pattern(4, 8)),
        "model.layers.3.q_proj": LayerSpec((64, 64), 8),  # as a size for the model chooses
        "model.layers.4.q_proj": LayerSpec((32, 64), 8),
    }
    assert checkpoint_shapes(layers) == [
        Shape("q_proj", 64, 64, 16),
        Shape("up_proj", 172, 64, 4),
        Shape("q_proj 4:8", 64, 64, 16, Pattern(4, 8)),
        Shape("q_proj block 8", 64, 64, 8),
        Shape("q_proj block 8 32x64", 32, 64, 8),
    ]


def test_runs_take_turns() -> None:
    order: list[str] = []
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, repeats=3
    )
    assert set(seconds) == {"a", "b"}
    assert all(value > 0 for value in seconds.values())
    turns = [name for name, before in zip(order[1:], order, strict=False) if name != before]
    assert len(turns) >= 5  # a, b, a, b, a, b: never all of one first


def test_the_bound_is_the_larger_of_both() -> None:
    peaks = Peaks(bandwidth=100.0, flops=1000.0)
    assert Cost(200, 100).bound(peaks) == (2.0, "bytes")
    assert Cost(200, 5000).bound(peaks) == (5.0, "FLOPs")


def test_peaks_are_positive() -> None:
    peaks = measure_peaks(CPU, torch.float32, repeats=1)
    assert peaks.bandwidth > 0
    assert peaks.flops > 0


@pytest.fixture(scope="module")
def rows() -> list[Measured]:
    return measure_shape(Shape("64x128", 64, 128, 16), [1, 5], torch.bfloat16, CPU, repeats=1)


def test_bytes_and_flops(rows: list[Measured]) -> None:
    found = {(row.contender, row.batch): row for row in rows}
    assert set(found) == {(name, batch) for name in CONTENDERS for batch in (1, 5)}
    dense, plain, armor = (found[name, 5] for name in CONTENDERS)
    weights, wrappers = 64 * 128, (64 + 128) * 16
    assert dense.weight_bytes == 2 * weights
    assert plain.weight_bytes == 2 * weights * 0.5625
    assert armor.weight_bytes == 2 * (weights * 0.5625 + wrappers)
    moved = 2 * 5 * (64 + 128)
    assert dense.cost == Cost(dense.weight_bytes + moved, 2 * 5 * weights)
    assert plain.cost == Cost(plain.weight_bytes + moved, 5 * weights)
    assert armor.cost == Cost(armor.weight_bytes + moved, 5 * weights + 2 * 5 * wrappers)
    assert (dense.backend, plain.backend, armor.backend) == ("torch", "cpu", "cpu")
    assert (dense.kernel, plain.kernel, armor.kernel) == (None, "columns", "columns")
    assert found["ARMOR", 1].to_dict(Peaks(1.0, 1.0))["kernel"] == "row"


@pytest.mark.parametrize(("pattern", "positions"), [("4:8", 7 / 8), ("1:4", 1 / 2), ("50%", 1)])
def test_other_patterns(pattern: str, positions: float) -> None:
    shape = parse_shapes("64x128", 16, Pattern.parse(pattern))[0]
    dense, plain, armor = measure_shape(shape, [1], torch.bfloat16, CPU, repeats=1)
    kept = 64 * 128 * shape.pattern.density
    assert plain.cost == Cost(2 * kept + 64 * 128 * positions / 8 + 2 * (64 + 128), 2 * kept)
    assert (dense.backend, plain.backend, armor.backend) == ("torch", "cpu", "cpu")
    assert plain.to_dict(Peaks(1.0, 1.0))["pattern"] == pattern


def invented(seconds: dict[str, float], batch: int = 1) -> list[Measured]:
    shape = Shape("q_proj", 8, 8, 4)
    return [
        Measured(name, shape, batch, value, 1, None, Cost(1, 1), "torch")
        for name, value in seconds.items()
    ]


def test_says_where_armor_is_slower() -> None:
    fast = invented({"dense": 2.0, "2:4": 1.0, "ARMOR": 1.0})
    slow = invented({"dense": 1.0, "2:4": 1.0, "ARMOR": 2.0}, batch=64)
    assert speedups(fast, "ARMOR") == {("q_proj", 1): 2.0}
    assert slower_line(fast) == "ARMOR is nowhere slower than dense"
    assert slower_line(fast + slow) == "ARMOR is slower than dense at q_proj batch 64 (0.50x)"


def test_machine() -> None:
    about = machine(CPU)
    assert about["torch"] == torch.__version__
    assert about["name"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    text = run(
        *("--shapes", "64x128,32x64", "--batches", "1,3", "--block", "16", "--repeats", "1"),
        *("--dtype", "float32", "--device", "cpu", "--json", str(out)),
    )
    data = json.loads(out.read_text())
    assert len(data["layers"]) == 2 * 2 * 3
    assert data["dtype"] == "float32"
    assert data["backends"]["cpu"] == "usable"
    assert data["summary"] in " ".join(text.split())
    assert "64x128" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to time"),
        (["folder", "--shapes", "8x8"], "say what to time"),
        (["--shapes", "8x8", "--batches", "0"], "not a list of numbers"),
        (["--shapes", "8x8", "--dtype", "int8"], "unknown dtype"),
        (["--shapes", "8by8"], "is neither OUTxIN"),
        (["--shapes", "8x8", "--json", "nowhere/b.json"], "folder does not exist"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    with pytest.raises(ArmorError, match=message):
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("slow", [torch.bfloat16, torch.float32])
def test_the_peak_is_of_the_faster_product(
    monkeypatch: pytest.MonkeyPatch, slow: torch.dtype
) -> None:
    """A CPU without instructions for bfloat16 multiplies float32 a hundred times as fast."""
    multiplied: list[torch.dtype] = []
    draw = roofline._random_square

    def noted(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        multiplied.append(dtype)
        return draw(size, dtype, device)

    def timed(runs: dict[str, object], *_: object) -> dict[str, float]:
        return {name: 100.0 if name == str(slow) else 1.0 for name in runs}

    monkeypatch.setattr(roofline, "_random_square", noted)
    monkeypatch.setattr(roofline, "interleaved", timed)
    measure_peaks(CPU, torch.bfloat16)
    assert multiplied[-1] == (torch.float32 if slow == torch.bfloat16 else torch.bfloat16)
