"""docs/checkpoint.md: its reader reads real checkpoints, and its facts are facts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from armor.checkpoint import ModelFiles, assemble, read_layers
from armor.checkpoint.format import RUN_FILE
from armor.sparse.pack import valid_indices

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint.md").read_text(encoding="utf-8")


@pytest.fixture
def reader() -> Callable[[Path], dict[str, np.ndarray]]:
    """The reader of the page."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(source, "docs/checkpoint.md", "exec"), scope)
    return lambda folder: dict(scope["weights"](folder))


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reader_of_the_page(
    make: Callable[..., Any],
    reader: Callable[[Path], dict[str, np.ndarray]],
    dtype: torch.dtype,
    block: int | None,
) -> None:
    """172 is no multiple of 16, and has an odd number of groups."""
    folder = make(dtype, block).folder
    found = reader(folder)
    expected = dict(read_layers(folder))
    assert list(found) == list(expected)
    for name, layer in expected.items():
        ours = torch.from_numpy(np.ascontiguousarray(found[name])).to(dtype)
        torch.testing.assert_close(ours, layer.dense())


def test_the_reader_knows_every_pattern(
    make: Callable[..., Any], reader: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    folder = make(patterns=("4:8", "1:4", "50%", "2:8", "2:4")).folder
    found = reader(folder)
    for name, layer in read_layers(folder):
        torch.testing.assert_close(torch.from_numpy(found[name].copy()), layer.dense())


def test_the_reader_reads_shards(
    make: Callable[..., Any], reader: Callable[[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    made = make()
    assemble(
        ModelFiles.read(made.source), tmp_path / "sharded", made.layers, {}, max_shard_bytes=50_000
    )
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one, several = reader(made.folder), reader(tmp_path / "sharded")
    assert all(np.array_equal(one[name], several[name]) for name in one)


def test_the_six_nibbles() -> None:
    sound = [n for n in range(16) if valid_indices(torch.tensor([n | 4 << 4], dtype=torch.uint8))]
    assert ", ".join(map(str, sound[:-1])) + f" and {sound[-1]}" in PAGE
    assert len(sound) == 6


def test_every_key_is_explained(make: Callable[..., Any]) -> None:
    folder = make(bias=True).folder
    metadata = json.loads((folder / "config.json").read_text())["quantization_config"]
    run = json.loads((folder / RUN_FILE).read_text())
    for key in (*metadata, *next(iter(metadata["layers"].values())), *run):
        assert f"`{key}`" in PAGE or f'"{key}"' in PAGE
