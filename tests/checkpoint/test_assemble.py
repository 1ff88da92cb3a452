"""Writing a checkpoint: what is in it, that it is deterministic, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from armor.checkpoint import Checkpoint, ModelFiles, assemble, check_output
from armor.checkpoint.weights import read_weights
from armor.errors import ArmorError
from armor.sparse.layer import PackedLayer

Q_PROJ = "model.layers.0.self_attn.q_proj"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.fixture
def source(make: Callable[..., Any], tmp_path: Path) -> Path:
    """A dense model folder to change at will."""
    shutil.copytree(make().source, tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_the_chosen_weights_change(make: Callable[..., Any], dtype: torch.dtype) -> None:
    made = make(dtype, bias=True)
    before, after = all_tensors(made.source), all_tensors(made.folder)
    expected = {f"{name}.weight" for name in made.layers}
    packed = {
        f"{name}.{part}": tensor
        for name, layer in made.layers.items()
        for part, tensor in layer.tensors().items()
    }
    assert set(after) == (set(before) - expected) | set(packed)
    for name, tensor in after.items():
        wanted = packed.get(name, before.get(name))
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor, wanted)


def test_config_gains_only_the_metadata(make: Callable[..., Any]) -> None:
    made = make()
    before = json.loads((made.source / "config.json").read_text())
    after = json.loads((made.folder / "config.json").read_text())
    metadata = after.pop("quantization_config")
    assert after == before
    layers = metadata.pop("layers")
    assert metadata == {"quant_method": "armor", "format": 1, "pattern": "2:4"}
    assert layers[Q_PROJ] == {"shape": [64, 64], "block": 16}
    assert set(layers) == set(made.layers)


def test_readme_begins_with_the_warning(make: Callable[..., Any]) -> None:
    first = (make().folder / "README.md").read_text().splitlines()[0]
    assert "import armor" in first
    assert "RANDOM" in first


@pytest.mark.parametrize("block", [4, 8, 16, None])
def test_size_on_disk_is_within_the_bound(make: Callable[..., Any], block: int | None) -> None:
    """Packed bytes in 16-bit dtypes: (1/2 + 1/16 + overhead) of dense, whole blocks counted."""
    made = make(torch.bfloat16, block=block)
    stored = read_weights(made.folder)
    for name, layer in made.layers.items():
        rows, cols = layer.shape
        size = sum(t.nbytes for key, t in stored.items() if key.rpartition(".")[0] == name)
        wrappers = 0 if block is None else block**2 * (-(-rows // block) + -(-cols // block))
        # 172/4 = 43 groups: half a byte of padding a row
        assert size <= (0.5625 + wrappers / (rows * cols)) * 2 * rows * cols * 1.01


@pytest.mark.parametrize("limit", [4_000_000_000, 60_000])
def test_same_input_same_bytes(make: Callable[..., Any], tmp_path: Path, limit: int) -> None:
    made = make()
    for name in ("one", "two"):
        assemble(ModelFiles.read(made.source), tmp_path / name, made.layers, {"seed": 0}, limit)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_shards(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    assemble(
        ModelFiles.read(made.source), tmp_path / "out", made.layers, {}, max_shard_bytes=60_000
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    single = all_tensors(made.folder)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in single.values())
    assert set(index["weight_map"]) == set(single)
    for file in files:
        tensors = load_file(tmp_path / "out" / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(
            tensors
        )
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 60_000
        assert all(torch.equal(tensor, single[name]) for name, tensor in tensors.items())


def test_sharded_source_gives_the_same_tensors(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    model = LlamaForCausalLM.from_pretrained(made.source)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    assemble(ModelFiles.read(tmp_path / "sharded"), tmp_path / "out", made.layers, {})
    ours, expected = all_tensors(tmp_path / "out"), all_tensors(made.folder)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_layers_are_fetched_once_and_lazily(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    fetched: list[str] = []

    class Lazy(Mapping[str, PackedLayer]):
        def __getitem__(self, name: str) -> PackedLayer:
            fetched.append(name)
            return made.layers[name]

        def __contains__(self, name: object) -> bool:
            return name in made.layers

        def __iter__(self) -> Iterator[str]:
            return iter(made.layers)

        def __len__(self) -> int:
            return len(made.layers)

    run = {"config": {"method": "armor"}, "layers": {}}
    assemble(ModelFiles.read(made.source), tmp_path / "out", Lazy(), run)
    assert sorted(fetched) == sorted(made.layers)
    assert all_tensors(tmp_path / "out").keys() == all_tensors(made.folder).keys()


def test_unusual_dtypes_and_shapes_pass_through(source: Path, make: Callable[..., Any]) -> None:
    tensors = load_file(source / "model.safetensors")
    extra = {
        "x.int": torch.arange(3),
        "x.bool": torch.tensor([True, False, True]),
        "x.scalar": torch.tensor(1.5, dtype=torch.float64),
        "x.empty": torch.zeros(0, 4),
        "x.f8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    save_file(tensors | extra, source / "model.safetensors")
    assemble(ModelFiles.read(source), source.parent / "out", make().layers, {})
    after = load_file(source.parent / "out" / "model.safetensors")
    for name, tensor in extra.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].shape == tensor.shape
        assert after[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_sidecar_files(source: Path, make: Callable[..., Any]) -> None:
    kept = {
        "tokenizer.json": "{}",
        "tokenizer.model": "pieces",
        "chat_template.jinja": "{{ x }}",
        "LICENSE": "free",
        "LICENCE.md": "free",
        "License-2.0": "free",
        "NOTICE.txt": "by",
        "USE_POLICY.md": "no harm",
        "Acceptable-Use.pdf": "no harm",
        "GEMMA_TERMS_OF_USE.html": "no harm",
        "additional_chat_templates/tool.jinja": "{{ y }}",
    }
    left = {
        "pytorch_model.bin": "pickle",
        "pytorch_model.bin.index.json": "{}",
        "optimizer.pt": "pickle",
        ".hidden.json": "{}",
        "README.md": "the dense model's card",
        "notes.md": "of one who works on it",
        "policy.safetensors": "weights",
        "original/params.json": "{}",
        "eval-wikitext2.json": "{}",
        "bench.json": "{}",
    }
    for name, text in (kept | left).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    out = source.parent / "out"
    assemble(ModelFiles.read(source), out, make().layers, {})
    files = tree(out)
    assert {name: files[name].decode() for name in kept} == kept
    assert not set(files) & (set(left) - {"README.md"})
    assert files["README.md"] != left["README.md"].encode()


def test_numbers_that_json_lacks_become_null(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    run = {"layers": {Q_PROJ: {"loss": float("nan"), "losses": [1.0, float("inf")]}}}
    assemble(ModelFiles.read(made.source), tmp_path / "out", made.layers, run)
    assert Checkpoint.open(tmp_path / "out").run == {
        "layers": {Q_PROJ: {"loss": None, "losses": [1.0, None]}}
    }


def test_pickled_source_is_refused(source: Path, make: Callable[..., Any]) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ArmorError, match=r"only pickled weights.*convert them to safetensors"):
        ModelFiles.read(source).check_dense()


def test_unusable_sources_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="is not a folder"):
        ModelFiles.read(tmp_path / "nowhere").check_dense()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArmorError, match=r"no config\.json"):
        ModelFiles.read(tmp_path / "empty").check_dense()
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArmorError, match=r"already compressed .*'fp8'"):
        ModelFiles.read(source).check_dense()
    (source / "model.safetensors").unlink()
    (source / "config.json").write_text("{}")
    with pytest.raises(ArmorError, match=r"no model\.safetensors"):
        ModelFiles.read(source).check_dense()


def test_existing_output_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    source = ModelFiles.read(made.source)
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out")
    assemble(source, tmp_path / "out", made.layers, {})  # an empty folder may become it
    with pytest.raises(ArmorError, match="exists already"):
        assemble(source, tmp_path / "out", made.layers, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(ArmorError, match="exists already"):
        check_output(tmp_path / "file")


def _renamed(layers: dict[str, PackedLayer]) -> dict[str, PackedLayer]:
    return {"model.layers.9.mlp.up_proj": layers[Q_PROJ]}


def _other_shape(layers: dict[str, PackedLayer]) -> dict[str, PackedLayer]:
    return {Q_PROJ: layers["model.layers.0.self_attn.k_proj"]}


def _other_dtype(layers: dict[str, PackedLayer]) -> dict[str, PackedLayer]:
    return {Q_PROJ: replace(layers[Q_PROJ], left=layers[Q_PROJ].left.half())}


def _nan(layers: dict[str, PackedLayer]) -> dict[str, PackedLayer]:
    return {Q_PROJ: replace(layers[Q_PROJ], core_values=layers[Q_PROJ].core_values * torch.nan)}


def _short_wrapper(layers: dict[str, PackedLayer]) -> dict[str, PackedLayer]:
    return {Q_PROJ: replace(layers[Q_PROJ], right=layers[Q_PROJ].right[1:])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, "has no tensor 'model.layers.9.mlp.up_proj.weight'"),
        (_other_shape, r"shape \(32, 64\) does not fit \(64, 64\)"),
        (_other_dtype, "left is F16, the model is F32"),
        (_nan, "core_values holds NaN or inf in F32"),
        (_short_wrapper, r"right is \(3, 16, 16\), not \(4, 16, 16\)"),
    ],
)
def test_bad_layers_are_refused_and_leave_nothing(
    make: Callable[..., Any],
    tmp_path: Path,
    change: Callable[[dict[str, PackedLayer]], dict[str, PackedLayer]],
    message: str,
) -> None:
    made = make()
    with pytest.raises(ArmorError, match=message):
        assemble(ModelFiles.read(made.source), tmp_path / "out", change(made.layers), {})
    assert list(tmp_path.iterdir()) == []
