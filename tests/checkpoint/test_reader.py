"""Reading checkpoints that lie: every one is refused in one line, before anything large is read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import armor
from armor.checkpoint import Checkpoint, inspect, read_layers
from armor.checkpoint.format import LayerSpec
from armor.checkpoint.weights import find_weights
from armor.errors import ArmorError

Q_PROJ = "model.layers.0.self_attn.q_proj"
MISSING = object()


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    shutil.copytree(make().folder, tmp_path / "packed")
    return tmp_path / "packed"


def edit_metadata(folder: Path, path: tuple[str, ...], value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    place = config["quantization_config"]
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder: Path) -> str:
    """The one line with which the folder is refused."""
    with pytest.raises(ArmorError) as caught:
        inspect(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_layers_come_back(make: Callable[..., Any]) -> None:
    made = make(bias=True)
    found = dict(read_layers(made.folder))
    assert list(found) == list(made.layers)
    for name, layer in made.layers.items():
        ours, theirs = found[name].tensors(), layer.tensors()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[part], theirs[part]) for part in ours)
        assert (found[name].shape, found[name].block) == (layer.shape, layer.block)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("quant_method",), "gptq", "not an armor checkpoint"),
        (("quant_method",), MISSING, "not an armor checkpoint"),
        (("format",), 2, "format 2 was written by a newer armor; upgrade"),
        (("format",), "1", "format '1' is not a positive whole number"),
        (("format",), True, "format True is not"),
        (("format",), MISSING, "format None is not"),
        (("scales",), 1, "unknown setting 'scales'"),
        (("pattern",), "3:16", "pattern '3:16' is none that this armor knows; upgrade"),
        (("pattern",), "4:8", "the metadata says"),
        (("pattern",), "50%", "count None is no number of entries"),
        (("pattern",), MISSING, "pattern None is none"),
        (("layers", Q_PROJ, "pattern"), "1:4", "the metadata says"),
        (("layers", Q_PROJ, "pattern"), "2:4 ", "is none that this armor knows"),
        (("layers", Q_PROJ, "pattern"), None, "pattern None is none"),
        (("layers", Q_PROJ, "count"), 2048, "pattern 2:4 has no count"),
        (("layers",), {}, "lists no layers"),
        (("layers",), [], "lists no layers"),
        (("layers", Q_PROJ), None, "has no description"),
        (("layers", Q_PROJ, "zero_point"), 1, "unknown setting 'zero_point'"),
        (("layers", Q_PROJ, "shape"), [64], "not two positive sizes"),
        (("layers", Q_PROJ, "shape"), [64, -64], "not two positive sizes"),
        (("layers", Q_PROJ, "shape"), [64, 2**70], "not two positive sizes"),
        (("layers", Q_PROJ, "shape"), [64, 64.0], "not two positive sizes"),
        (("layers", Q_PROJ, "shape"), [10**9, 10**9], "has shape (64, 32), the metadata says"),
        (("layers", Q_PROJ, "shape"), [64, 60], "the metadata says"),
        (("layers", Q_PROJ, "block"), 6, "not a multiple of 4"),
        (("layers", Q_PROJ, "block"), 0, "not a multiple of 4"),
        (("layers", Q_PROJ, "block"), 32, "the metadata says"),
        (("layers", Q_PROJ, "block"), 68, "larger than the matrix"),
        (("format",), 10**400, "written by a newer armor"),
        (("layers", "a[/b]"), {"shape": [4, 4], "block": None}, "that is no name of a layer"),
        (("layers", ""), {"shape": [4, 4], "block": None}, "that is no name of a layer"),
        (("layers", "a\x1b[2J"), {"shape": [4, 4], "block": None}, "that is no name of a layer"),
        (("layers", Q_PROJ, "block"), None, "does not fit the metadata"),
        (("layers", Q_PROJ), MISSING, "does not fit the metadata"),
        (("joined",), {"a.weight": None}, "lacks its shape"),
        (("joined",), {"a.weight": {"shape": [8, 4]}}, "lacks its shape"),
        (("joined",), {"a.weight": {"shape": [8, 4], "parts": {"b": 2**70}}}, "lacks its shape"),
        (("joined",), {"a.weight": {"shape": [8, 64], "parts": {"b": 8}}}, "missing or misshapen"),
        (
            ("joined",),
            {name: {"shape": [64, 64], "parts": {Q_PROJ: 64}} for name in "ab"},
            "part of two tensors",
        ),
        (
            ("joined",),
            {f"{Q_PROJ}.weight": {"shape": [64, 64], "parts": {Q_PROJ: 64}}},
            "stored whole and in parts",
        ),
        (("layers", "lm_head"), {"shape": [4, 4], "block": None}, "core_values is missing"),
    ],
)
def test_metadata_that_lies(folder: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    edit_metadata(folder, path, value)
    assert message in refused(folder)


def _drop(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q_PROJ}.{part}"]

    return change


def _cast(part: str, dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q_PROJ}.{part}"] = tensors[f"{Q_PROJ}.{part}"].to(dtype)

    return change


def _byte(value: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q_PROJ}.core_indices"][3, 5] = value

    return change


def _add(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.zeros(4, 4)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("core_values"), "core_values is missing"),
        (_drop("right"), "right is missing"),
        (_cast("core_indices", torch.int32), "core_indices is I32, not U8"),
        (_cast("core_values", torch.int32), "core_values is I32, not a float"),
        (_cast("left", torch.float16), "mixed dtypes ['F16', 'F32']"),
        (_byte(0x00), "do not name 2 of every 4"),
        (_byte(0x14), "do not name 2 of every 4"),
        (_byte(0x41), "do not name 2 of every 4"),
        (_byte(0xF4), "do not name 2 of every 4"),
        (_add(f"{Q_PROJ}.weight"), "does not fit the metadata"),
        (_add("lm_head.core_values"), "does not fit the metadata"),
    ],
)
def test_tensors_that_lie(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    edit_tensors(folder, change)
    assert message in refused(folder)


def test_truncated_and_garbled_files(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for spoiled in (
        data[:-1],
        data[:100],
        data[:4],
        b"",
        b"\xff" * 8 + data[8:],
        (2**40).to_bytes(8, "little") + data[8:],
        data[:8] + b"x" + data[9:],
        data + b"\0",
    ):
        path.write_bytes(spoiled)
        assert "cannot read" in refused(folder)


def test_foreign_and_unfinished_folders(folder: Path, make: Callable[..., Any]) -> None:
    assert "not an armor checkpoint" in refused(make().source)
    assert "is not a folder" in refused(folder / "nowhere")
    for text in ("", "[]", "nonsense", "[" * 100_000):
        (folder / "config.json").write_text(text)
        assert "config.json" in refused(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights" in refused(folder)


@pytest.mark.parametrize("text", ["[]", "{", "\xff"])
def test_a_broken_run_file(folder: Path, text: str) -> None:
    (folder / "armor_run.json").write_bytes(text.encode("latin1"))
    assert "armor_run.json" in refused(folder)


def index_of(folder: Path, file: Any, *, extra: str | None = None) -> None:
    """Write an index that says every tensor is in `file`."""
    names = list(load_file(folder / "model.safetensors")) + ([extra] if extra else [])
    index = {"weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b", "..", "c\\d", "", "a\0b"]
)
def test_shard_names_that_lead_out(folder: Path, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "model.safetensors")
    index_of(folder, name)
    assert "leads out of the folder" in refused(folder)


@pytest.mark.parametrize("name", ["x" * 300, "x\ud800", "a\nb"])
def test_impossible_shard_names(folder: Path, name: str) -> None:
    index_of(folder, name)
    assert "x" * 100 not in refused(folder)


def test_links_that_lead_out(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(folder.parent / "elsewhere.safetensors")
    path.symlink_to(folder.parent / "elsewhere.safetensors")
    assert "link out of its folder" in refused(folder)


def test_links_in_a_circle(folder: Path) -> None:
    index_of(folder, "loop")
    (folder / "loop").symlink_to("loop")
    assert "refused file name 'loop'" in refused(folder)


def test_an_index_beside_other_weights(folder: Path) -> None:
    """The index counts; transformers would read model.safetensors, so armor.load refuses."""
    index_of(folder, "other.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    tensors = Checkpoint.open(folder).tensors
    assert {stored.path.name for stored in tensors.values()} == {"other.safetensors"}
    with pytest.raises(ArmorError, match=r"would not read the files that .* delete those"):
        armor.load(folder)


def test_a_header_that_describes_a_tensor_by_a_list(folder: Path) -> None:
    """The safetensors library takes it."""
    header = b'{"a":["F32",[1],[0,4]]}'
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4)
    )
    assert "'a' has an impossible description" in refused(folder)


def test_a_header_with_a_tensor_twice(folder: Path) -> None:
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4)
    )
    assert "same key twice" in refused(folder)


@pytest.mark.parametrize(
    ("record", "loss"),
    [("1" + "0" * 400, None), ("1e999", None), ("-1e999", None), ("NaN", None), ("3", 3.0)],
)
def test_losses_beyond_any_float(folder: Path, record: str, loss: float | None) -> None:
    text = f'{{"layers": {{"{Q_PROJ}": {{"loss": {record}}}}}, "dense_layers": {{"a": [1]}}}}'
    (folder / "armor_run.json").write_text(text)
    found = inspect(folder)
    assert found["layers"][Q_PROJ]["loss"] == loss
    assert found["dense_layers"] == {}


def test_a_terabyte_of_indices_is_not_read_at_once(folder: Path) -> None:
    """A sparse file: it takes no room on the disk, and its metadata fits it."""
    rows, cols = 2**26, 2**14  # 137 GB of indices, 2.2 TB of values
    shapes = LayerSpec((rows, cols), None).tensor_shapes()
    header, end = {}, 0
    for part, dtype, element in (("core_indices", "U8", 1), ("core_values", "F32", 4)):
        size = math.prod(shapes[part]) * element
        offsets = [end, end + size]
        header[f"a.{part}"] = {"dtype": dtype, "shape": shapes[part], "data_offsets": offsets}
        end += size
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        try:
            file.truncate(8 + len(encoded) + end)
        except OSError:
            pytest.skip("the file system has no files of this size")
    edit_metadata(folder, ("layers",), {"a": {"shape": [rows, cols], "block": None}})
    assert "do not name 2 of every 4" in refused(folder)
    with pytest.raises(ArmorError, match="do not name 2 of every 4"):
        next(read_layers(folder))


def test_a_link_inside_the_folder_and_a_linked_folder_are_fine(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(folder / "data")
    path.symlink_to("data")
    (folder.parent / "link").symlink_to(folder)
    assert inspect(folder.parent / "link")["totals"]["layers"] == 14


def test_the_layout_of_a_hub_cache_is_fine(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert inspect(snapshot)["totals"]["layers"] == 14


def test_index_that_lies(folder: Path) -> None:
    index_of(folder, "model.safetensors", extra="ghost")
    assert "lacks tensor 'ghost'" in refused(folder)
    index_of(folder, "other.safetensors")
    message = refused(folder)
    assert "'other.safetensors' is missing, which model.safetensors.index.json names" in message
    assert "there is 'model.safetensors' instead: if files were renamed" in message
    index_of(folder, 3)
    assert "not a string" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "no weight_map" in refused(folder)


def test_a_tensor_in_two_files(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    shutil.copy(folder / "model.safetensors", folder / "copy.safetensors")
    files = dict.fromkeys(names, "model.safetensors") | {names[0]: "copy.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = find_weights(folder)
    assert found.tensors[names[0]].path.name == "copy.safetensors"
    assert found.tensors[names[1]].path.name == "model.safetensors"
    assert set(found.copies) == set(names)
    assert "ignored" in found.notes[0]
    del files[names[0]]
    files[names[1]] = "copy.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert "is in two files" in refused(folder)
