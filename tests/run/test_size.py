"""A size for the whole: blocks chosen by what they are worth, never more bytes than asked for."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import armor
from armor.baselines.sparsegpt import sparsegpt
from armor.calibrate.gradients import Draw, _sampled
from armor.checkpoint.folder import unfinished_folder
from armor.cli import app
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.factorize.problem import Problem
from armor.recipe import read_recipe
from armor.run.plan import candidates, make_plan
from armor.run.prune import Progress
from armor.run.size.allocate import Choice, allocate

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of width 128: layers with one, two and three blocks to choose from."""
    folder = tmp_path_factory.mktemp("models") / "wider"
    shutil.copytree(tiny_model, folder)
    config = LlamaConfig.from_pretrained(tiny_model)
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def sized(settings: Settings) -> Settings:
    """A quick run with a size."""
    return lambda **changes: settings(**{"block_size": None, "size": 0.75, **changes})


def _total(found: dict[str, Choice]) -> tuple[int, float]:
    return sum(one.nbytes for one in found.values()), sum(one.harm for one in found.values())


@pytest.mark.parametrize("seed", range(20))
def test_the_allocation_fits_and_is_close_to_the_best(seed: int) -> None:
    draw = random.Random(seed)
    choices = {
        name: [Choice(b, draw.randint(1, 30), draw.random() * 9) for b in (8, 16, 32)]
        + [Choice(None, 40, 0.0)]
        for name in "abcde"
    }
    smallest = sum(min(one.nbytes for one in own) for own in choices.values())
    budget = smallest + draw.randint(0, 60)
    found = allocate(choices, budget)
    assert found is not None
    assert allocate(dict(reversed(choices.items())), budget) == found
    assert allocate(choices, smallest - 1) is None
    nbytes, harm = _total(found)
    every = (_total(dict(zip(choices, some, strict=True))) for some in _product(choices))
    best = min(other for used, other in every if used <= budget)
    largest = max(one.harm for own in choices.values() for one in own)
    assert nbytes <= budget
    assert best <= harm <= best + largest


def _product(choices: dict[str, list[Choice]]) -> Any:
    return itertools.product(*choices.values())


def test_bytes_go_where_they_take_off_most_harm() -> None:
    def layer(weight: float) -> list[Choice]:
        return [Choice(8, 10, 4 * weight), Choice(16, 20, weight), Choice(None, 40, 0.0)]

    found = allocate({"minds": layer(100.0), "does not": layer(1.0)}, 50)
    assert found is not None
    assert [one.block for one in found.values()] == [None, 8]


def test_candidates_divide_where_some_do() -> None:
    assert candidates((64, 64), 4) == (8,)  # 16 would be a half of wrappers
    assert candidates((1536, 512), 2) == (8, 16, 32, 64, 128)
    assert candidates((172, 4096), 2) == (8, 16, 32, 64, 128)[: len(candidates((172, 4096), 2))]
    assert candidates((16, 16), 4) == ()


def test_the_harm_is_that_of_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sized: Settings
) -> None:
    """Block by block from the disk, against one backward pass through the whole model."""
    from armor.run.size import jobs, measure

    samples: dict[str, dict[str, torch.Tensor]] = {}
    windows: list[torch.Tensor] = []
    tried: dict[tuple[str, str], torch.Tensor] = {}
    sample, solve = measure.BackwardPass.samples, jobs.solve_certified

    def spy(backward: Any, layers: Any) -> Any:
        windows.append(torch.cat([ids for batch in backward._tokens for ids in batch.values()]))
        handles = sample(backward, layers)
        samples.update((name, backward._engine.fetch(one)) for name, one in handles.items())
        return handles

    def solved(plan: Any, *args: Any) -> Any:
        factors, record = solve(plan, *args)
        tried.setdefault((plan.name, str(plan.block)), factors.dense().float())
        return factors, record

    monkeypatch.setattr(measure.BackwardPass, "samples", spy)
    monkeypatch.setattr(jobs, "solve_certified", solved)
    armor.prune(model, sized(), tmp_path / "out")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    inputs: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    for name in samples:

        def hook(_module: Any, args: Any, output: torch.Tensor, name: str = name) -> None:
            inputs[name] = args[0].detach()
            output.register_hook(lambda gradient: gradients.update({name: gradient}))

        network.get_submodule(name).register_forward_hook(hook)
    logits = network(windows[0]).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), windows[0][:, 1:].flatten(), reduction="sum"
    ).backward()
    harms = json.loads((tmp_path / "out" / "armor_run.json").read_text())["budget"]["harms"]
    assert harms.keys() == samples.keys()
    assert any(len(own) > 1 for own in harms.values())
    predicted = windows[0][:, 1:].numel()
    for name, own in harms.items():
        weight = network.get_submodule(name).weight
        assert weight.grad is not None
        # The inputs and gradients of each token stand side by side, whatever their order.
        found = samples[name]["gradients"].double().T @ samples[name]["inputs"].double()
        torch.testing.assert_close(
            found * (2 * predicted) ** 0.5,
            weight.grad.double(),
            rtol=0.1,
            atol=0.01 * float(weight.grad.abs().max()),
        )
        for block, harm in own.items():
            errors = inputs[name] @ (tried[name, block] - weight.detach()).T
            total = float((errors * gradients[name]).sum(-1).square().sum())
            assert harm == pytest.approx(total / predicted / 2, rel=0.02)


def test_few_tokens_stand_for_all() -> None:
    """Unbiased: over many draws the mean is that of all tokens."""
    linear = torch.nn.Linear(3, 2, bias=False)
    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))

    def total(draw: Draw) -> float:
        with _sampled(torch.nn.Sequential(linear), ["0"], draw) as found:
            linear(inputs).square().sum().backward()
        assert len(found["inputs/0"]) == len(found["gradients/0"]) == max(1, 50 * draw.share)
        return float(found["gradients/0"].double().square().sum())

    whole = total(Draw(1.0, 0))
    draws = [total(Draw(0.2, seed)) for seed in range(300)]
    assert len(set(draws)) > 100
    assert total(Draw(0.2, 5)) == draws[5]
    assert sum(draws) / len(draws) == pytest.approx(whole, rel=0.1)
    assert total(Draw(1e-9, 0)) > 0


@pytest.mark.parametrize("size", [0.7, 0.9])
def test_the_size_is_kept_and_the_bytes_do_not_depend_on_workers(
    model: Path, sized: Settings, weights: Weights, tmp_path: Path, size: float
) -> None:
    found: list[Any] = []
    progress = Progress(measured=lambda *args: found.append(args), planned=found.append)
    result = armor.prune(model, sized(size=size), tmp_path / "one", progress=progress)
    assert [args[1] for args in found[:-1]] == list(range(1, len(found)))
    assert found[-1] == result.plans
    record = json.loads((tmp_path / "one" / "armor_run.json").read_text())
    counted = [plan for plan in result.plans if plan.name in record["budget"]["harms"]]
    assert all(plan.note.startswith("worth more") for plan in counted if plan.dense)
    dense = sum(4 * plan.shape[0] * plan.shape[1] for plan in counted)
    inside = armor_bytes(tmp_path / "one")
    kept = sum(inside.get(p.name, 4 * p.shape[0] * p.shape[1]) for p in counted)
    assert kept / dense == pytest.approx(record["budget"]["reached"])
    shown = armor.inspect(tmp_path / "one")
    blocks = Counter(str(plan.block) for plan in counted if not plan.dense)
    assert shown["budget"] == {
        "size": size,
        "reached": record["budget"]["reached"],
        "blocks": blocks,
        "dense": sum(plan.dense for plan in counted),
    }
    for name, layer in shown["layers"].items():
        assert layer["harm"] == record["budget"]["harms"][name][str(layer["block"])] > 0
    assert kept <= size * dense
    armor.prune(model, sized(size=size), tmp_path / "two", workers=2)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "nowag", "sparsegpt"])
def test_a_method_without_wrappers_leaves_dense_what_hurts_most(
    model: Path, sized: Settings, weights: Weights, tmp_path: Path, method: str
) -> None:
    settings = sized(size=0.75, method=method)
    result = armor.prune(model, settings, tmp_path / "one")
    record = json.loads((tmp_path / "one" / "armor_run.json").read_text())["budget"]
    harms = {name: own["0"] for name, own in record["harms"].items()}
    assert harms.keys() == {plan.name for plan in result.plans}
    assert 0.7 < record["reached"] <= 0.75
    dense, pruned = (
        [harms[p.name] / (p.shape[0] * p.shape[1]) for p in result.plans if p.dense == dense]
        for dense in (True, False)
    )
    assert pruned
    assert max(dense) > max(pruned)  # what hurts most for its bytes
    shown = armor.inspect(tmp_path / "one")
    assert shown["budget"]["blocks"] == {"0": len(pruned)}
    assert shown["budget"]["dense"] == len(dense)
    for name, layer in shown["layers"].items():
        assert layer["block"] is None
        assert layer["harm"] == harms[name] > 0
    with pytest.raises(KeyboardInterrupt):
        armor.prune(model, settings, tmp_path / "two", workers=2, progress=Progress(finished=_stop))
    armor.prune(model, settings, tmp_path / "two")
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    printed = CliRunner().invoke(app, ["inspect", str(tmp_path / "one")]).stdout
    assert f"layers: {len(pruned)} pruned, {len(dense)} dense" in printed


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_harm_of_a_baseline_is_measured_with_that_very_method(
    model: Path, sized: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from armor.run.size import jobs

    tried: list[bool] = []
    solve = jobs.solve_certified

    def spy(plan: Any, inputs: Any, *args: Any) -> Any:
        factors, record = solve(plan, inputs, *args)
        given = inputs(torch.float32)
        expected = sparsegpt(Problem(given.weight, given.second))
        tried.append(torch.equal(factors.dense(), expected.dense()))
        return factors, record

    monkeypatch.setattr(jobs, "solve_certified", spy)
    armor.prune(model, sized(method="sparsegpt"), tmp_path / "out")
    assert tried == [True] * 14


def armor_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each pruned layer of a checkpoint."""
    from armor.checkpoint.inspect import inspect

    return {name: layer["bytes"] for name, layer in inspect(folder)["layers"].items()}


@pytest.mark.parametrize("after", [1, 5, 13])
def test_measuring_goes_on_where_it_stopped(
    model: Path, sized: Settings, weights: Weights, tmp_path: Path, after: int
) -> None:
    """A layer that was measured is not measured again, before or after the choice."""
    armor.prune(model, sized(), tmp_path / "straight")
    seen: list[str] = []

    def stop(name: str, *_: Any) -> None:
        seen.append(name)
        if len(seen) == after:
            raise KeyboardInterrupt

    def solved(_name: str, _record: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        armor.prune(model, sized(), out, progress=Progress(measured=stop))
    again = Progress(measured=lambda name, *_: seen.append(name), finished=solved)
    with pytest.raises(KeyboardInterrupt):
        armor.prune(model, sized(), out, progress=again)
    armor.prune(model, sized(), out, progress=again_without(seen))
    assert len(seen) == len(set(seen))
    assert weights(out) == weights(tmp_path / "straight")
    assert not unfinished_folder(out).exists()


def again_without(seen: list[str]) -> Progress:
    """Only notes what is measured."""
    return Progress(measured=lambda name, *_: seen.append(name))


def test_another_size_is_another_run(model: Path, sized: Settings, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        armor.prune(model, sized(), tmp_path / "out", progress=Progress(finished=stop))
    with pytest.raises(ArmorError, match=r"size was 0.75 and is 0.9"):
        armor.prune(model, sized(size=0.9), tmp_path / "out")
    fresh: list[str] = []
    progress = Progress(measured=lambda name, *_: fresh.append(name))
    armor.prune(model, sized(size=0.9), tmp_path / "out", fresh=True, progress=progress)
    assert fresh


def test_the_recipe_of_a_size_gives_the_same_bytes(
    model: Path, text: Path, weights: Weights, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    quick = ["--calibration", text, "--samples", 24, "--seq-len", 16, "--iterations", 2]

    def prune(out: str, *more: object) -> None:
        command = ["prune", model, "--out", tmp_path / out, *quick, *more]
        done = CliRunner().invoke(app, list(map(str, command)))
        assert done.exit_code == 0, done.output

    prune("one", "--size", 0.75, "--save-recipe", recipe)
    assert any("block" in rules for rules in read_recipe(recipe)["overrides"].values())
    prune("two", "--recipe", recipe)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def test_what_cannot_be(model: Path, sized: Settings, tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match=r"0.2 cannot be reached: the smallest blocks take 0\.\d+"):
        armor.prune(model, sized(size=0.2), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    for wrong in (0.0, 1.0, -1, float("nan"), True, "0.6"):
        with pytest.raises(ArmorError, match="between 0 and 1"):
            PruneConfig(size=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArmorError, match=r"0.5 cannot be reached: all layers pruned take 0\.\d+"):
        armor.prune(model, sized(size=0.5, method="wanda"), tmp_path / "out")
    for other in ({"block_size": 16}, {"overhead_budget": 0.2}):
        with pytest.raises(ArmorError, match="leave out"):
            PruneConfig(size=0.6, **other)  # type: ignore[arg-type]


def test_nothing_to_choose_is_nothing_to_measure(
    model: Path, sized: Settings, tmp_path: Path
) -> None:
    seen: list[str] = []
    progress = Progress(measured=lambda name, *_: seen.append(name))
    overrides = {"*": {"block": 8}}
    result = armor.prune(model, sized(overrides=overrides), tmp_path / "out", progress=progress)
    assert not seen
    assert {plan.block for plan in result.plans} == {8}
    with pytest.raises(ArmorError, match="cannot be reached"):
        armor.prune(model, sized(overrides=overrides, size=0.6), tmp_path / "small")


def test_gradients_that_are_not_finite_are_one_line(
    model: Path, sized: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from armor.run.size import jobs

    original = jobs.block_gradient

    def broken(*args: Any) -> Any:
        back, samples = original(*args)
        return back, {name: sample * torch.inf for name, sample in samples.items()}

    monkeypatch.setattr(jobs, "block_gradient", broken)
    with pytest.raises(ArmorError, match="not finite on the calibration text"):
        armor.prune(model, sized(), tmp_path / "out")


def test_a_recipe_fixes_what_it_names() -> None:
    shapes = {"a": (512, 512), "b": (512, 512), "c": (512, 512)}
    overrides = {"a": {"block": 16}, "b": {"skip": True}}
    a, b, c = make_plan(shapes, PruneConfig(size=0.6, overrides=overrides))
    assert (a.block, a.blocks) == (16, ())
    assert b.dense
    assert c.blocks == (8, 16, 32, 64)
