"""What `inspect` reports, and the two commands around it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from armor.checkpoint import inspect
from armor.checkpoint.format import LayerSpec
from armor.checkpoint.inspect import InspectedLayer, Inspection
from armor.checkpoint.records import LayerRecord, RunRecord
from armor.checkpoint.stored_size import StoredSize
from armor.cli import export as export_command
from armor.cli import inspect as inspect_command
from armor.errors import ArmorError

Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    inspect_command.register(app)
    export_command.register(app)
    return app


def test_sizes_are_those_of_the_tensors(make: Callable[..., Any]) -> None:
    made = make(torch.bfloat16)
    found = inspect(made.folder)
    assert list(found["layers"]) == list(made.layers)
    layer = found["layers"][DOWN]
    # 64 rows of 172: 43 groups, 86 values, 22 bytes of indices; blocks 4 + 11, 16 x 16.
    wrappers = 15 * 256 * 2
    assert layer["bytes"] == 64 * 86 * 2 + 64 * 22 + wrappers
    assert layer["dense_bytes"] == 64 * 172 * 2
    assert layer["overhead"] == wrappers / (64 * 172 * 2)
    assert layer["ratio"] == layer["bytes"] / layer["dense_bytes"]
    assert (layer["shape"], layer["block"], layer["dtype"]) == ([64, 172], 16, "BF16")
    totals = found["totals"]
    assert totals["layers"] == totals["certified"] == 14
    assert totals["bytes"] == sum(layer["bytes"] for layer in found["layers"].values())
    on_disk = (made.source / "model.safetensors").stat().st_size
    assert totals["dense_model_bytes"] == pytest.approx(on_disk, rel=0.02)
    assert found["method"] == "armor"


def test_losses_come_from_the_run(make: Callable[..., Any]) -> None:
    layer = inspect(make().folder)["layers"][Q_PROJ]
    assert (layer["loss"], layer["nowag_loss"], layer["sparsegpt_loss"]) == (0.02, 0.1, None)
    assert (layer["certificate"], layer["seconds"]) == (True, 1.5)


@pytest.mark.parametrize("run", [None, {}, {"layers": []}, {"layers": {Q_PROJ: {"loss": "low"}}}])
def test_a_run_that_tells_nothing(make: Callable[..., Any], tmp_path: Path, run: Any) -> None:
    shutil.copytree(make().folder, tmp_path / "packed")
    (tmp_path / "packed" / "armor_run.json").unlink()
    if run is not None:
        (tmp_path / "packed" / "armor_run.json").write_text(json.dumps(run))
    found = inspect(tmp_path / "packed")
    layer = found["layers"][Q_PROJ]
    assert layer["loss"] is layer["nowag_loss"] is layer["certificate"] is None
    assert found["method"] is None
    assert found["totals"]["certified"] == 0


def test_inspect_command_fits_80_columns(
    make: Callable[..., Any], app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = make(torch.bfloat16)
    target = tmp_path / "found.json"
    result = CliRunner().invoke(app, ["inspect", str(made.folder), "--json", str(target)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "0.mlp.down_proj" in line)
    layer = inspect(made.folder)["layers"][DOWN]
    bytes_ = f"{layer['bytes'] / 1e3:.1f} kB"
    for text in ("64×172", "16", f"{layer['overhead']:.1%}", bytes_, "0.02", "0.200", "yes"):
        assert text in row
    total = next(line for line in lines if line.startswith("all 14"))
    for text in (f"{inspect(made.folder)['totals']['bytes'] / 1e3:.1f} kB", "0.200"):
        assert text in total
    assert "14 of 14 layers" in result.output
    assert json.loads(target.read_text()) == inspect(made.folder)


def test_inspect_command_without_losses(
    make: Callable[..., Any], app: typer.Typer, tmp_path: Path
) -> None:
    shutil.copytree(make().folder, tmp_path / "packed")
    (tmp_path / "packed" / "armor_run.json").unlink()
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "packed")])
    assert result.exit_code == 0
    assert "NoWag" not in result.output
    assert "certi" not in result.output


def with_errors(
    folder: Path, tmp_path: Path, held_out: float, config: dict[str, Any] | None = None
) -> Path:
    """A copy of `folder` whose q_proj and down_proj of block 0 have errors, but no other layer."""
    shutil.copytree(folder, tmp_path / "packed")
    file = tmp_path / "packed" / "armor_run.json"
    run = json.loads(file.read_text())
    run["config"] |= config or {}
    more = {"target_damping": 0.3, "belief": 0.75, "fitted_error": 0.05}
    run["layers"][Q_PROJ] |= more | {"held_out_error": held_out}
    run["layers"][DOWN] |= more | {"held_out_error": 4 * held_out}
    file.write_text(json.dumps(run))
    return tmp_path / "packed"


def test_errors_on_held_out_windows(
    make: Callable[..., Any], app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = with_errors(make(torch.bfloat16).folder, tmp_path, 0.0375)
    found = inspect(folder)
    layer = found["layers"][Q_PROJ]
    assert (layer["target_damping"], layer["belief"]) == (0.3, 0.75)
    assert (layer["fitted_error"], layer["held_out_error"]) == (0.05, 0.0375)
    assert found["layers"]["model.layers.1.mlp.up_proj"]["held_out_error"] is None
    assert found["totals"]["generalisation"] == pytest.approx(1.5)  # of 0.75 and 3
    result = CliRunner().invoke(app, ["inspect", str(folder)])
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("0.mlp.down_proj"))
    assert row.split()[-4:] == ["0.200", "5.0%", "15.0%", "yes"]
    row = next(line for line in lines if line.startswith("1.self_attn.q_proj"))
    assert row.split()[-3:] == ["-", "-", "yes"]
    assert "generalisation held-out error 1.50 times that on what was fitted" in lines
    assert "warning" not in result.output


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"samples": 128, "seq_len": 256}, "more text than 32,768 tokens"),
        ({"samples": 128, "seq_len": None}, "more calibration text"),
    ],
)
def test_more_text_would_help(
    make: Callable[..., Any],
    app: typer.Typer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = with_errors(make().folder, tmp_path, 0.04, config)
    lines = CliRunner().invoke(app, ["inspect", str(folder)]).output.splitlines()
    assert "generalisation held-out error 1.60 times that on what was fitted" in lines
    assert f"warning        {words} would help: --samples, --seq-len" in lines


def test_without_held_out_windows_nothing_is_said(
    make: Callable[..., Any], app: typer.Typer
) -> None:
    folder = make().folder
    found = inspect(folder)
    assert found["totals"]["generalisation"] is None
    assert found["layers"][Q_PROJ]["fitted_error"] is found["layers"][Q_PROJ]["belief"] is None
    output = CliRunner().invoke(app, ["inspect", str(folder)]).output
    assert not any(word in output for word in ("held", "fitted", "generalisation"))


def test_a_wide_table_of_errors_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    spec, stored = LayerSpec((4096, 14336), 128), StoredSize("BF16", 10**8, 10**7, 10**6, 10**9)
    record = LayerRecord.read(
        {"loss": 3e-4, "nowag_loss": 0.1, "certificate": True, "fitted_error": 0.1234}
        | {"held_out_error": 0.5678}
    )
    names = [f"model.layers.{depth}.self_attn.q_proj" for depth in (0, 31)]
    layers = {name: InspectedLayer(spec, stored, record, None) for name in names}
    console = Console()
    with console.capture() as shown:
        console.print(inspect_command._table(Inspection(layers, RunRecord(), 10**10)))
    lines = shown.get().splitlines()
    assert len(lines) == 2 + 2 + 1  # no name is folded
    assert max(map(len, lines)) <= 80


def test_the_size_that_blocks_were_chosen_for(
    make: Callable[..., Any], app: typer.Typer, tmp_path: Path
) -> None:
    shutil.copytree(make().folder, tmp_path / "packed")
    file = tmp_path / "packed" / "armor_run.json"
    run = json.loads(file.read_text())
    harms = {Q_PROJ: {"8": 3.0, "16": 2.0}, DOWN: {"8": 2.0, "16": None}, "gone": {"16": 1.0}}
    budget = {"size": 0.75, "reached": 0.74804, "harms": harms}
    file.write_text(json.dumps(run | {"budget": budget}))
    found = inspect(tmp_path / "packed")
    kept = {"size": 0.75, "reached": 0.74804, "blocks": {"16": 2}, "dense": 1}
    assert found["budget"] == kept
    assert (found["layers"][Q_PROJ]["harm"], found["layers"][DOWN]["harm"]) == (2.0, None)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "packed")])
    line = "size           0.7480, 0.75 asked for; layers: 2 block 16, 1 dense"
    assert line in result.output.splitlines()
    for damaged in (3, {}, {"size": 0.75}, budget | {"harms": [1]}, budget | {"reached": "much"}):
        file.write_text(json.dumps(run | {"budget": damaged}))
        found = inspect(tmp_path / "packed")
        assert found["budget"] is found["layers"][Q_PROJ]["harm"] is None


def test_a_baseline_claims_no_certificate(
    make: Callable[..., Any], app: typer.Typer, tmp_path: Path
) -> None:
    shutil.copytree(make(block=None).folder, tmp_path / "packed")
    file = tmp_path / "packed" / "armor_run.json"
    run = json.loads(file.read_text())
    run["config"] = {"method": "wanda"}
    file.write_text(json.dumps(run))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "packed")])
    assert "method wanda" in result.output
    assert "cert" not in result.output


def test_inspect_command_refuses_an_impossible_file(
    make: Callable[..., Any], app: typer.Typer, tmp_path: Path
) -> None:
    arguments = ["inspect", str(make().folder), "--json", str(tmp_path / "no" / "x.json")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ArmorError)


def test_export_command(make: Callable[..., Any], app: typer.Typer, tmp_path: Path) -> None:
    arguments = ["export", str(make().folder), "--out", str(tmp_path / "dense")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "dense" in result.output
    assert (tmp_path / "dense" / "model.safetensors").exists()
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, ArmorError)
    assert "exists already" in str(again.exception)


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_help_has_an_example(app: typer.Typer, command: str) -> None:
    assert f"armor {command} qwen-armor" in CliRunner().invoke(app, [command, "--help"]).output
