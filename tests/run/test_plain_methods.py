"""Methods whose weights are stored dense: ordinary model folders, with the bytes they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import armor
from armor.baselines.quantised import rounded, rounded_bytes
from armor.checkpoint.folder import unfinished_folder
from armor.cli import app
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.plan import make_plan, packed_size
from armor.run.prune import Progress

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_model(tiny_model: Path, settings: Settings, tmp_path: Path, bits: int) -> None:
    out = tmp_path / "out"
    result = armor.prune(tiny_model, settings(method=f"int{bits}"), out)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, out))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        is_linear = name.removesuffix(".weight") in result.records
        assert torch.equal(after[name], rounded(weight, bits) if is_linear else weight)
    assert len(result.records) == 14
    for record in result.records.values():
        assert record.shape is not None
        assert record.compact_bytes == rounded_bytes(record.shape, bits)
    run = json.loads((out / "armor_run.json").read_text())
    sizes = [(record.compact_bytes, record.shape) for record in result.records.values()]
    assert run["plain"] == {
        "compact_bytes": sum(count for count, _ in sizes),
        "dense_bytes": sum(4 * shape[0] * shape[1] for _, shape in sizes),
    }
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(out)


def test_low_rank_takes_the_bytes_of_the_wrappers() -> None:
    shapes = {"a": (512, 512), "b": (1536, 512), "c": (172, 4096)}
    for changes in ({}, {"block_size": 32}, {"overrides": {"b": {"block": 64}}}):
        own = make_plan(shapes, PruneConfig(**changes), 2)  # type: ignore[arg-type]
        low = make_plan(shapes, PruneConfig(method="sparsegpt-lowrank", **changes), 2)  # type: ignore[arg-type]
        for plan, other in zip(own, low, strict=True):
            assert other.block is None
            wrappers = round(plan.overhead * plan.shape[0] * plan.shape[1])
            assert other.rank == wrappers // sum(plan.shape) > 0


def test_low_rank_through_a_run(tiny_model: Path, settings: Settings, tmp_path: Path) -> None:
    result = armor.prune(tiny_model, settings(method="sparsegpt-lowrank"), tmp_path / "low")
    plain = armor.prune(tiny_model, settings(method="sparsegpt"), tmp_path / "plain")
    own = armor.prune(tiny_model, settings(), tmp_path / "own")
    for plan in result.plans:
        record, alone = result.records[plan.name], plain.records[plan.name]
        assert plan.rank
        assert record.loss is not None
        assert alone.loss is not None
        assert record.loss < alone.loss
        core = packed_size(plan.shape, None, 4) * plan.shape[0] * plan.shape[1] * 4
        assert record.compact_bytes == round(core) + plan.rank * sum(plan.shape) * 4
    inside = armor.inspect(tmp_path / "own")["layers"]
    for name, record in result.records.items():
        assert own.records[name].block == 4
        assert record.compact_bytes <= inside[name]["bytes"]
        assert record.shape is not None
        assert record.compact_bytes > inside[name]["bytes"] - 4 * sum(record.shape)


@pytest.mark.parametrize("method", ["sparsegpt-lowrank", "int4"])
def test_the_bytes_do_not_depend_on_workers_or_interruptions(
    tiny_model: Path, settings: Settings, weights: Weights, tmp_path: Path, method: str
) -> None:
    config = settings(method=method)
    armor.prune(tiny_model, config, tmp_path / "one")
    done: list[str] = []

    def stop(name: str, _record: Any) -> None:
        done.append(name)
        if len(done) == 9:  # in the second block
            raise KeyboardInterrupt

    out = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        armor.prune(tiny_model, config, out, progress=Progress(finished=stop))
    result = armor.prune(tiny_model, config, out, workers=2)
    assert result.resumed >= 8
    assert not unfinished_folder(out).exists()
    assert weights(out) == weights(tmp_path / "one")
    again = armor.prune(tiny_model, config, out)
    assert again.found
    assert again.records == result.records
    with pytest.raises(ArmorError, match="is of another run: seed was 0 and is 1"):
        armor.prune(tiny_model, settings(method=method, seed=1), out)
    armor.prune(tiny_model, settings(method=method, seed=1), out, fresh=True)


def test_what_is_refused(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="int8 has nothing to choose by size"):
        PruneConfig(method="int8", size=0.7)
    with pytest.raises(ArmorError, match="leave out the recipe's method"):
        PruneConfig(method="int4", overrides={"*": {"method": "wanda"}})
    with pytest.raises(ArmorError, match="method 'int8'; valid: armor, magnitude"):
        PruneConfig(overrides={"*": {"method": "int8"}})
    arguments = ["prune", str(tiny_model), "--out", str(tmp_path / "out"), "--method", "int8"]
    result = CliRunner().invoke(app, [*arguments, "--calibration", str(text)])
    assert isinstance(result.exception, ArmorError)
    assert "armor compare --methods int8 measures it" in str(result.exception)
    assert not list(tmp_path.iterdir())
