"""Runs with rounded cores: certificates, sizes, recipes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import armor
from armor.cli import app
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.recipe import read_recipe, write_recipe
from armor.run.plan import LayerPlan, make_plan, packed_size
from armor.run.solve import LayerInputs, solve_certified, solve_layer
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES
from armor.sparse.masks import nm_mask

Settings = Callable[..., PruneConfig]
FORMS = [(core, wrappers) for core in CORES for wrappers in (None, "int8")]


def inputs(rows: int, cols: int) -> LayerInputs:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=draw)
    given = torch.randn(300, cols, generator=draw) @ torch.randn(cols, cols, generator=draw)
    return LayerInputs(weight, given.T @ given / 300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", ["full", "diag"])
@pytest.mark.parametrize(("core", "wrappers"), FORMS)
def test_the_certificate_is_on_what_is_stored(
    core: str, wrappers: str | None, objective: str, dtype: torch.dtype
) -> None:
    config = PruneConfig(
        objective=objective, target="dense", iterations=10, core=core, wrappers=wrappers
    )
    plan = LayerPlan("layer", (24, 32), 8)
    factors, record = solve_layer(plan, inputs(24, 32), config, dtype)
    assert record.certificate
    assert record.loss <= record.nearest_loss
    assert record.loss <= record.nowag_loss
    assert objective == "diag" or record.loss <= record.sparsegpt_loss
    if dtype == torch.float32:
        assert record.unrounded_loss == pytest.approx(record.losses[-1], rel=1e-2)
    packed = PackedLayer.from_factors(factors)
    assert (packed.core, packed.dtype) == (core, dtype)
    assert torch.equal(packed.to_factors().dense(), factors.dense())
    if objective == "full":
        given = inputs(24, 32)
        lost = given.weight - packed.to_factors().dense()
        error = float(((lost @ given.second) * lost).sum())
        assert record.output_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("core", CORES)
def test_a_layer_that_is_all_but_sparse_already_keeps_a_start(core: str) -> None:
    """Nothing is left to win: what is kept is as good as the best start, rounded the same way."""
    given = inputs(16, 32)
    weight = given.weight * nm_mask(given.weight.abs())
    config = PruneConfig(target="dense", iterations=3, core=core, wrappers="int8")

    def again(precision: torch.dtype) -> LayerInputs:
        return LayerInputs(weight.to(precision), given.second.to(precision))

    plan = LayerPlan("layer", (16, 32), 8)
    _, record = solve_certified(plan, again, config, torch.bfloat16)
    assert record.certificate
    assert record.loss <= min(record.nowag_loss, record.sparsegpt_loss)


def test_a_baseline_is_rounded_to_the_nearest() -> None:
    plan = LayerPlan("layer", (24, 32))
    config = PruneConfig(method="sparsegpt", core="int4")
    factors, record = solve_layer(plan, inputs(24, 32), config, torch.float32)
    assert PackedLayer.from_factors(factors).core == "int4"
    assert record.loss == pytest.approx(record.sparsegpt_loss)
    exact = solve_layer(plan, inputs(24, 32), PruneConfig(method="sparsegpt"), torch.float32)[1]
    assert exact.loss < record.loss


@pytest.mark.parametrize(("core", "wrappers"), FORMS)
def test_a_run_takes_the_bytes_that_were_planned(
    tiny_model: Path, settings: Settings, tmp_path: Path, core: str, wrappers: str | None
) -> None:
    config = settings(core=core, wrappers=wrappers)
    armor.prune(tiny_model, config, tmp_path / "out", workers=1)
    found = armor.inspect(tmp_path / "out")
    assert found["totals"]["certified"] == found["totals"]["layers"] > 0
    for layer in found["layers"].values():
        planned = packed_size(layer["shape"], 4, 4, core=core, wrappers=wrappers)
        assert layer["ratio"] == pytest.approx(planned)
        assert (layer["core"], layer["wrappers"]) == (core, wrappers)
    model = armor.load(tmp_path / "out")
    with torch.inference_mode():
        assert bool(model(torch.arange(8)[None]).logits.isfinite().all())


def test_a_size_counts_rounded_bytes(tiny_model: Path, settings: Settings, tmp_path: Path) -> None:
    config = settings(core="int4", wrappers="int8", block_size=None, size=0.36)
    armor.prune(tiny_model, config, tmp_path / "out", workers=1)
    found = armor.inspect(tmp_path / "out")
    assert found["budget"]["reached"] <= 0.36
    assert {layer["core"] for layer in found["layers"].values()} == {"int4"}


def test_a_recipe_says_it_for_single_layers(tmp_path: Path) -> None:
    shapes = {"a": (64, 64), "b": (64, 64), "c": (64, 64)}
    overrides = {"a": {"core": "dense"}, "b": {"core": "int4", "wrappers": "dense"}}
    config = PruneConfig(core="int8", wrappers="int8", overrides=overrides, block_size=8)
    plans = make_plan(shapes, config)
    found = {plan.name: plan.settings(config) for plan in plans}
    assert {name: (own.core, own.wrappers) for name, own in found.items()} == {
        "a": (None, None),
        "b": ("int4", None),
        "c": ("int8", "int8"),
    }
    write_recipe(tmp_path / "recipe.yaml", {plan.name: plan.rules() for plan in plans})
    again = PruneConfig(core="int8", wrappers="int8", **read_recipe(tmp_path / "recipe.yaml"))
    assert [plan.settings(again) for plan in make_plan(shapes, again)] == [
        plan.settings(again) for plan in plans
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core": "int3"}, "unknown core 'int3'; valid: int8, int4"),
        ({"core": "int8", "wrappers": "int4"}, "unknown wrappers 'int4'; valid: int8"),
        ({"wrappers": "int8"}, "rounded wrappers need a rounded core"),
        ({"core": "int4", "pattern": "4:8"}, "has the pattern 2:4"),
        ({"core": "int4", "method": "int8"}, "int8 is stored dense"),
        ({"overrides": {"*": {"core": "int5"}}}, "core 'int5'; valid: dense, int8, int4"),
        ({"overrides": {"*": {"core": "int4", "pattern": "50%"}}}, "has the pattern 2:4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArmorError, match=message):
        PruneConfig(**changes)


def test_the_command_refuses_in_one_line(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    command = ["prune", str(tiny_model), "--out", str(tmp_path / "out"), "--calibration", str(text)]
    done = CliRunner().invoke(app, [*command, "--wrappers", "int8"])
    assert isinstance(done.exception, (ArmorError, SystemExit))
    assert not list(tmp_path.iterdir())


def test_tuning_a_rounded_run_is_refused_before_it_begins(
    tiny_model: Path, settings: Settings, tmp_path: Path
) -> None:
    from armor.tuning.config import TuneConfig
    from armor.tuning.prune import prune_and_tune

    with pytest.raises(ArmorError, match="cannot be trained: leave out --tune or the core"):
        prune_and_tune(tiny_model, settings(core="int8"), TuneConfig("full"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
