"""A method of one's own is its function and one line: through prune and compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import armor
from armor.cli import app
from armor.config import PruneConfig
from armor.factorize.problem import Problem
from armor.methods import METHODS, Method
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern

Weights = Callable[[Path], dict[str, bytes]]


def first_of_group(problem: Problem, pattern: Pattern) -> Factors:
    """Keeps the first entries of every group."""
    places = -(problem.target.new_ones(problem.target.shape).cumsum(1))
    mask = nm_mask(places, pattern.kept, pattern.group)
    return Factors(problem.target * mask, mask, pattern=pattern)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_there(name: str) -> None:
    method = METHODS[name]
    assert method.wrappers or callable(method.load())


@pytest.mark.parametrize("statistics", ["dense", "pruned"])
def test_a_toy_through_prune(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statistics: str,
) -> None:
    monkeypatch.setitem(METHODS, "first", Method(first_of_group, statistics))  # type: ignore[arg-type]
    armor.prune(tiny_model, settings(method="first"), tmp_path / "first")
    found = armor.inspect(tmp_path / "first")
    assert found["method"] == "first"
    assert all(layer["loss"] > layer["nowag_loss"] for layer in found["layers"].values())
    overrides = {"*.q_proj": {"method": "first"}}
    mixed = armor.prune(tiny_model, settings(overrides=overrides), tmp_path / "mixed")
    assert mixed.records["model.layers.0.self_attn.q_proj"].block is None


def test_a_toy_in_worker_processes(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They learn of it from the run, though they start as fresh interpreters."""
    (tmp_path / "my_method.py").write_text(
        "from armor.baselines.magnitude import magnitude\n"
        "def mine(problem, pattern):\n    return magnitude(problem, pattern)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_method

    monkeypatch.setitem(METHODS, "mine", Method(my_method.mine, statistics="dense"))
    armor.prune(tiny_model, settings(method="mine"), tmp_path / "mine", workers=2)
    armor.prune(tiny_model, settings(method="magnitude"), tmp_path / "magnitude")
    shards = [tmp_path / name / "model.safetensors" for name in ("mine", "magnitude")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_a_toy_through_compare(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "first", Method(first_of_group))
    out = tmp_path / "cmp"
    command = ["compare", tiny_model, "--methods", "first,magnitude,armor:iterations=2"]
    command += ["--calibration", text, "--ppl", text, "--out", out, "--samples", 8]
    command += ["--seq-len", 16, "--block-size", 4, "--max-chars", 2000]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["dense", "first", "magnitude", "armor-iterations=2"]
    assert all(row["perplexity"]["calibration"] > 1 for row in rows)
