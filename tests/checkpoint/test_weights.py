"""Which file a tensor is read from: the index decides, and says in one line what does not fit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from armor.checkpoint.jsonfile import read_json
from armor.checkpoint.tensorfile import read_file
from armor.checkpoint.weights import INDEX, find_weights, read_weights
from armor.errors import ArmorError, cannot_read

BASE = "model-00001-of-00001.safetensors"


def write(folder: Path, files: dict[str, dict[str, float]], index: dict[str, str]) -> None:
    for file, values in files.items():
        save_file({name: torch.tensor([value]) for name, value in values.items()}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def values(folder: Path) -> dict[str, float]:
    return {name: float(stored.load()) for name, stored in read_weights(folder).items()}


def refused(folder: Path) -> str:
    with pytest.raises(ArmorError) as caught:
        read_weights(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("overlay", "alike"), [("model-overlay", True), ("a-overlay", False)])
def test_an_overlay_counts_wherever_its_name_sorts(
    tmp_path: Path, overlay: str, alike: bool
) -> None:
    file = f"{overlay}.safetensors"
    files = {BASE: {"a": 1.0, "b": 2.0}, file: {"b": 3.0}}
    write(tmp_path, files, {"a": BASE, "b": file})
    assert values(tmp_path) == {"a": 1.0, "b": 3.0}
    found = find_weights(tmp_path)
    assert found.alike_for_transformers == alike
    (note,) = found.notes
    assert f"'b' in {BASE} (read from {file})" in note


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, {BASE: {"a": 1.0}, "other.safetensors": {"a": 2.0, "c": 3.0}}, {"a": BASE})
    assert values(tmp_path) == {"a": 1.0}
    assert find_weights(tmp_path).notes == []
    assert find_weights(tmp_path).alike_for_transformers


def test_a_stray_single_file(tmp_path: Path) -> None:
    write(tmp_path, {BASE: {"a": 1.0}, "model.safetensors": {"a": 2.0}}, {"a": BASE})
    assert values(tmp_path) == {"a": 1.0}
    found = find_weights(tmp_path)
    assert not found.alike_for_transformers
    assert "model.safetensors is ignored" in found.notes[0]


def test_a_tensor_that_the_index_forgot_is_read_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, {BASE: {"a": 1.0, "b": 2.0}}, {"a": BASE})
    assert values(tmp_path) == {"a": 1.0, "b": 2.0}


def test_renamed_and_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"part-1.safetensors": {"a": 1.0}}, {"a": BASE, "b": "x", "c": "y", "d": "z"})
    message = refused(tmp_path)
    assert f"{BASE!r}, 'x' and 2 more are missing, which {INDEX} names" in message
    assert "there is 'part-1.safetensors' instead: if files were renamed" in message
    (tmp_path / "part-1.safetensors").unlink()
    assert "copy or download again what is missing" in refused(tmp_path)


def test_a_stale_index_names_both_files(tmp_path: Path) -> None:
    files = {"one.safetensors": {"a": 1.0}, "two.safetensors": {"b": 2.0}}
    write(tmp_path, files, {"a": "one.safetensors", "b": "one.safetensors"})
    assert "'one.safetensors' lacks tensor 'b', which" in refused(tmp_path)
    write(tmp_path, files, {"a": "two.safetensors", "b": "one.safetensors"})
    message = refused(tmp_path)
    assert "'two.safetensors' lacks tensor 'a'" in message
    assert "it is in one.safetensors: the index and the files do not belong together" in message


def test_what_helps_against_each_kind_of_failure(tmp_path: Path) -> None:
    denied = str(cannot_read(tmp_path, PermissionError(13, "Permission denied"), "download"))
    assert "Permission denied; this user may not read it" in denied
    assert "download" not in denied
    broken = str(cannot_read(tmp_path, OSError(5, "Input/output error"), "download"))
    assert "Input/output error; check the disk or the network folder" in broken
    absent = cannot_read(tmp_path, FileNotFoundError(2, "No such file or directory"), "download")
    assert str(absent).endswith("No such file or directory; download")


def test_a_file_that_this_user_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything: here the system's answer is made up."""

    def denied(path: Path, *_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(Path, "open", denied)
    for read, name in ((read_file, "model.safetensors"), (read_json, "config.json")):
        with pytest.raises(ArmorError, match=re.escape(f"{name}: Permission denied; this user")):
            read(tmp_path / name)
