"""Checkpoints with rounded cores: what is stored, what is refused, loading and exporting."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import armor
from armor.checkpoint import ModelFiles, assemble, inspect, read_layers
from armor.errors import ArmorError
from armor.factorize.problem import Problem
from armor.factorize.rounding import Storage, round_core, round_factors
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.vllm.degrees import degrees

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint.md").read_text(encoding="utf-8")
UP = "model.layers.0.mlp.up_proj"
KEY = "model.layers.0.self_attn.k_proj"
MISSING = object()


def rounded(
    weight: torch.Tensor, core: str, block: int | None, wrappers: str | None
) -> PackedLayer:
    target = weight.float()
    mask = nm_mask(target.abs())
    factors = Factors(target * mask, mask)
    problem = Problem(target, torch.ones(target.shape[1]))
    storage = Storage(core, wrappers, weight.dtype)
    if block is None:
        return PackedLayer.from_factors(round_core(problem, factors, storage))
    draw = torch.Generator().manual_seed(0)
    left, right = (
        torch.eye(block) + 0.1 * torch.randn(-(-size // block), block, block, generator=draw)
        for size in target.shape
    )
    factors = Factors(factors.core, mask, left, right)
    return PackedLayer.from_factors(round_factors(problem, factors, storage, iterations=1)[0])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def made(
    make: Callable[..., Any],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, dict[str, PackedLayer]]:
    """The dense model, a checkpoint with every kind of layer, and its layers."""
    whole = make(request.param)
    forms = [
        *(("fp8", None, None), ("fp8", 8, "int8"), ("int8", None, None)),
        *(("int4", 8, None), ("int8", 16, None), ("int4", 16, "int8")),
    ]
    layers: dict[str, PackedLayer] = dict(whole.layers)
    files = ModelFiles.read(whole.source)
    for number, name in enumerate(list(layers)[:-1]):  # the last one stays as it is
        core, block, wrappers = forms[number % 6]
        weight = files.tensors[f"{name}.weight"].load()
        layers[name] = rounded(weight, core, block, wrappers)
    folder = tmp_path_factory.mktemp("rounded") / "packed"
    assemble(files, folder, layers, {})
    return whole.source, folder, layers


@pytest.fixture
def folder(made: tuple[Path, Path, Any], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made[1], tmp_path / "packed"))


def test_layers_come_back(made: tuple[Path, Path, dict[str, PackedLayer]]) -> None:
    _, folder, layers = made
    for name, layer in read_layers(folder):
        ours, theirs = layer.tensors(), layers[name].tensors()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[part], theirs[part]) for part in ours)
        assert layer.core == layers[name].core
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["group"] == 64
    assert config["format"] == 1


def test_inspect_counts_the_bytes_of_every_part(made: tuple[Path, Path, Any]) -> None:
    _, folder, layers = made
    for name, found in inspect(folder)["layers"].items():
        tensors = layers[name].tensors()
        assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
        assert sum(found["parts"].values()) == found["bytes"]
        assert found["core"] == layers[name].core
        assert found["parts"]["values"] == tensors["core_values"].nbytes
        rows, cols = layers[name].shape
        assert found["dense_bytes"] == rows * cols * layers[name].dtype.itemsize


def test_loaded_exported_saved_and_multiplied_out(
    made: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    _, folder, layers = made
    model = armor.load(folder)
    assert model.get_submodule(UP).core_scales is not None
    tokens = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        ours = model(tokens).logits
    armor.export_dense(folder, tmp_path / "dense")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    for name, layer in layers.items():
        assert torch.equal(plain.get_submodule(name).weight, layer.dense())
    with torch.inference_mode():
        theirs = plain(tokens).logits
    limit = 0.03 if ours.dtype == torch.bfloat16 else 1e-5
    assert (ours - theirs).norm() < limit * theirs.norm()
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, ours)
    model.dequantize()
    assert torch.equal(model.get_submodule(UP).weight, layers[UP].dense())


def test_the_reader_of_the_page(made: tuple[Path, Path, dict[str, PackedLayer]]) -> None:
    _, folder, layers = made
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(source, "docs/checkpoint.md", "exec"), scope)
    found = dict(scope["weights"](folder))
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        ours = torch.from_numpy(np.ascontiguousarray(found[name]))
        torch.testing.assert_close(ours.to(layer.dtype), layer.dense())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("group",), MISSING, "no group of values that share a scale"),
        (("group",), 96, "this armor reads groups of 64; upgrade"),
        (("group",), "64", "this armor reads groups of 64"),
        (("layers", UP, "core"), "int3", "core 'int3' is none that this armor knows; upgrade"),
        (("layers", UP, "core"), None, "core None is none"),
        (("layers", UP, "core"), MISSING, "does not fit|is U8|is I8|has shape|nothing to round"),
        (("layers", UP, "core"), "swap", "has shape"),
        (("layers", UP, "wrappers"), "int4", "wrappers 'int4' is none that this armor knows"),
        (("layers", UP, "pattern"), "4:8", "a rounded core of 4:8"),
    ],
)
def test_metadata_that_lies_is_refused(
    folder: Path, path: tuple[str, ...], value: Any, message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    place = config["quantization_config"]
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        other = {"int8": "int4", "int4": "int8"}
        place[path[-1]] = other[place[path[-1]]] if value == "swap" else value
    (folder / "config.json").write_text(json.dumps(config))
    assert re.search(message, refusal(folder))


def test_codes_that_are_no_numbers_are_refused(folder: Path) -> None:
    change(folder, lambda tensors: tensors[f"{KEY}.core_values"][3].fill_(255))
    assert f"layer '{KEY}': core_values has codes that are no numbers" in refusal(folder)
    with pytest.raises(ArmorError, match="no numbers"):
        armor.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scales_that_are_none_are_refused(folder: Path, value: float) -> None:
    change(folder, lambda tensors: tensors[f"{UP}.core_scales"][2].fill_(value))
    assert f"layer '{UP}': core_scales has values that are no scales" in refusal(folder)
    with pytest.raises(ArmorError, match="no scales"):
        armor.load(folder)


def test_tensors_that_do_not_fit_are_refused(folder: Path) -> None:
    name = f"{UP}.core_scales"
    change(folder, lambda tensors: tensors.update({name: tensors[name][:, :-1].contiguous()}))
    assert "core_scales has shape" in refusal(folder)
    change(folder, lambda tensors: tensors.pop(name))
    assert "tensor core_scales is missing" in refusal(folder)


def test_codes_of_another_dtype_are_refused(folder: Path) -> None:
    name = f"{UP}.core_values"
    change(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int16)}))
    assert "core_values is I16, not" in refusal(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "model.safetensors" in refusal(folder)


def test_vllm_and_tensor_parallelism_refuse_it(made: tuple[Path, Path, Any]) -> None:
    with pytest.raises(ArmorError, match="reads no fp8 cores yet"):
        degrees(armor.checkpoint.Checkpoint.open(made[1]))


def test_tuning_refuses_it(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    from armor.tuning.config import TuneConfig
    from armor.tuning.tune import tune

    source, folder, _ = made
    with pytest.raises(ArmorError, match="rounded to few bits cannot be trained"):
        tune(folder, source, TuneConfig(calibration=("a text",)), tmp_path / "tuned")
    assert not list(tmp_path.iterdir())


def refusal(folder: Path) -> str:
    with pytest.raises(ArmorError) as caught:
        inspect(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
