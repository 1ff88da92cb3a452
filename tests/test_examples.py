"""The examples run, with small settings, and leave nothing behind in the repository."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from armor.methods import METHODS
from armor.runtime.registry import BACKENDS

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def main() -> Iterator[Callable[[str], Callable[..., Any]]]:
    """The function `main` of an example; what it registers is gone after the test."""
    registries: list[dict[str, Any]] = [METHODS, BACKENDS]
    before = [dict(registry) for registry in registries]
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))["main"]
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals()}
    assert {path.stem for path in FOLDER.glob("*.py")} <= tested


def test_prune_in_python(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ("The square of one is one. " * 50,)
    quick = {"calibration": text, "samples": 2, "seq_len": 32, "iterations": 2}
    main("prune_in_python")(tmp_path / "pruned", **quick)
    lines = capsys.readouterr().out.split("\n")
    assert sum("NoWag-P's" in line for line in lines) == 24
    assert any(line.startswith("24 layers pruned to 0.7") for line in lines)
    assert any(line.startswith("The statement") for line in lines)


def test_one_layer(main: Any) -> None:
    assert main("one_layer")(size=64, iterations=20) < 0.7


def test_own_baseline(main: Any, tmp_path: Path) -> None:
    found = main("own_baseline")(tmp_path, max_chars=4000, samples=4, iterations=5, seq_len=64)
    assert list(found) == ["dense", "wanda", "relative", "armor"]
    assert found["dense"] < found["armor"] < found["relative"] < 100


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_own_backend(main: Any, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    main("own_backend")(32, 64, pattern)
    lines = capsys.readouterr().out.split("\n")
    assert "unpacked         gives the same" in lines
    assert "reference        gives the same" in lines
