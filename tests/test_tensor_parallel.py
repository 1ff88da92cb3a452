"""``armor inspect --tensor-parallel``: what it says of a checkpoint is what parts of it take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import armor
from armor.checkpoint.reader import Checkpoint
from armor.cli import app
from armor.config import PruneConfig
from armor.demo.text import calibration_text
from armor.sparse.shard import cut_columns, cut_rows
from armor.vllm.degrees import degrees


@pytest.fixture(scope="module")
def folder(
    make_llama: Callable[..., Any], byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four heads of width 16, two of keys and values; an MLP of 80, in blocks of 16."""
    home = tmp_path_factory.mktemp("split")
    make_llama(hidden_size=64, intermediate_size=80, num_hidden_layers=1).save_pretrained(
        home / "dense"
    )
    byte_tokenizer.save_pretrained(home / "dense")
    config = PruneConfig(
        calibration=(calibration_text()[:10_000],),
        samples=2,
        seq_len=32,
        iterations=1,
        block_size=16,
        overrides={"*.up_proj": {"pattern": "50%"}},
    )
    armor.prune(home / "dense", config, home / "pruned")
    return home / "pruned"


def test_degrees(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    found = {degree.count: degree for degree in degrees(checkpoint)}
    assert found[8].reason == found[16].reason == "4 attention heads"
    assert found.keys() == {2, 4, 8, 16}
    assert not found[2].reason
    # Halves of 80 in blocks of 16: of gate, up and down the block in the middle is in both.
    assert found[2].cut == 3
    assert found[4].surplus > found[2].surplus > 0


@pytest.mark.parametrize("count", [2, 4])
def test_bytes_are_those_of_the_parts(folder: Path, count: int) -> None:
    checkpoint = Checkpoint.open(folder)
    totals = [0] * count
    for name in checkpoint.layers:
        layer = checkpoint.layer(name)
        rows, cols = layer.shape
        shards = 2 if name.endswith(("k_proj", "v_proj")) else count
        for rank in range(count):
            at = rank * shards // count
            if name.endswith(("o_proj", "down_proj")):
                part = cut_columns(layer, at * cols // shards, (at + 1) * cols // shards)
            else:
                part = cut_rows(layer, at * rows // shards, (at + 1) * rows // shards)
            totals[rank] += sum(tensor.nbytes for tensor in part.tensors().values())
    (said,) = (degree.bytes for degree in degrees(checkpoint) if degree.count == count)
    # Of an unstructured layer only the share is known beforehand.
    assert said == pytest.approx(max(totals), rel=0.05)


def test_command(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "inspected.json"
    done = CliRunner().invoke(
        app, ["inspect", str(folder), "--tensor-parallel", "--json", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert "split in 8     no: 4 attention heads" in done.output
    assert " a process, " in done.output
    described = json.loads(file.read_text())["tensor_parallel"]
    assert described["2"]["admitted"]
    assert described["8"] == {
        "admitted": False,
        "reason": "4 attention heads",
        "bytes": 0,
        "surplus": 0,
        "layers_cut_in_a_block": 0,
    }
