"""Checkpoints with other patterns than 2:4: through every door, alone and mixed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import armor
from armor.checkpoint import Checkpoint, export_dense, inspect, read_layers
from armor.checkpoint.format import from_metadata, to_metadata
from armor.cli.inspect import inspect_command
from armor.errors import ArmorError
from armor.runtime import backends

EACH = [("1:4",), ("4:8",), ("2:8",), ("50%",), ("2:4", "4:8", "50%", "1:2")]


@pytest.mark.parametrize("patterns", EACH, ids="+".join)
def test_the_whole_way(make, tmp_path: Path, patterns: tuple[str, ...]) -> None:
    """Stored, read, loaded, run, saved again, multiplied out: the same numbers."""
    made = make(patterns=patterns)
    found = dict(read_layers(made.folder))
    for name, layer in made.layers.items():
        assert found[name].pattern == layer.pattern
        assert found[name].count == layer.count
        for part, tensor in layer.tensors().items():
            assert torch.equal(found[name].tensors()[part], tensor)
    model = armor.load(made.folder)
    export_dense(made.folder, tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    tokens = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        ours, theirs = model(tokens).logits, dense(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    ours, theirs = (m.generate(tokens, max_new_tokens=5, do_sample=False) for m in (model, dense))
    assert torch.equal(ours, theirs)
    model.save_pretrained(tmp_path / "again")
    again = dict(read_layers(tmp_path / "again"))
    for name, layer in found.items():
        for part, tensor in layer.tensors().items():
            assert torch.equal(again[name].tensors()[part], tensor)
    described = inspect(made.folder)
    given = [described["layers"][name]["pattern"] for name in made.layers]
    assert given == [str(layer.pattern) for layer in made.layers.values()]
    assert set(given) == set(patterns)
    metadata = Checkpoint.open(made.folder).config["quantization_config"]
    assert metadata["pattern"] == described["pattern"] == Counter(given).most_common(1)[0][0]
    assert to_metadata(from_metadata(metadata)) == metadata


def test_mixed_patterns_in_words(
    make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = make(patterns=("2:4", "4:8", "50%", "1:2")).folder
    words = "4 layers 2:4, 4 layers 4:8, 3 layers 50%, 3 layers 1:2"
    text = " ".join((folder / "README.md").read_text().split())
    assert f"14 linear layers pruned to mixed patterns ({words}) by ARMOR" in text
    inspect_command(folder)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("0.self_attn.q_proj ") for line in lines)
    assert f"patterns       {words}" in lines
    alone = make(patterns=("50%",)).folder
    assert "14 linear layers pruned to 50% sparsity by ARMOR" in (alone / "README.md").read_text()


def named(made: Any, pattern: str) -> str:
    """A layer with 64 inputs."""
    return next(
        name
        for name, layer in made.layers.items()
        if str(layer.pattern) == pattern and layer.in_features == 64
    )


def flip(folder: Path, name: str, byte: int, bit: int) -> None:
    stored = Checkpoint.open(folder).tensors[f"{name}.core_indices"]
    with stored.path.open("r+b") as file:
        file.seek(stored.offset + byte)
        old = file.read(1)[0]
        file.seek(stored.offset + byte)
        file.write(bytes([old ^ 1 << bit]))


@pytest.mark.parametrize("piece", [1 << 20, 1])
def test_every_flipped_bit_is_another_mask_or_refused(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Read by rows, and as long rows are: in parts."""
    monkeypatch.setattr("armor.checkpoint.reader._PIECE", piece)
    made = make(patterns=("4:8", "50%"))
    shutil.copytree(made.folder, tmp_path / "spoiled")
    coded, counted = (named(made, text) for text in ("4:8", "50%"))
    refused = 0
    for bit in range(56):  # 64 inputs: a row of 8 codes is 7 bytes
        flip(tmp_path / "spoiled", coded, bit // 8, bit % 8)
        checkpoint = Checkpoint.open(tmp_path / "spoiled")
        try:
            layer = checkpoint.layer(coded)
        except ArmorError:
            refused += 1
            with pytest.raises(ArmorError, match="indices that do not name 4 of every 8"):
                checkpoint.check_pattern(coded)
        else:
            assert (layer.to_factors().mask.view(-1, 8).sum(-1) == 4).all()
        flip(tmp_path / "spoiled", coded, bit // 8, bit % 8)
    assert 0 < refused < 56
    flip(tmp_path / "spoiled", counted, 0, 0)
    with pytest.raises(ArmorError, match="its bitmap does not keep"):
        Checkpoint.open(tmp_path / "spoiled").layer(counted)
    with pytest.raises(ArmorError, match="its bitmap does not keep"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "spoiled")


@pytest.mark.parametrize("count", [0, -1, 1023, 2**70, True, None, 1024.0])
def test_a_count_that_lies(make, tmp_path: Path, count: object) -> None:
    made = make(patterns=("4:8", "50%"))
    shutil.copytree(made.folder, tmp_path / "spoiled")
    path = tmp_path / "spoiled" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layers"][named(made, "50%")]["count"] = count
    path.write_text(json.dumps(config))
    with pytest.raises(ArmorError, match=r"is no number of entries|core_values has shape"):
        Checkpoint.open(tmp_path / "spoiled")


def test_every_pattern_runs_on_the_cpu_backend() -> None:
    found = {status.name: status for status in backends((64, 64), torch.float32, "cpu", 1, "4:8")}
    assert found["reference"].usable
    assert found["cpu"].usable
    assert found["triton"].reason
