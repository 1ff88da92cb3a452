"""Folders as armor writes them, without pruning anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from armor.checkpoint.format import RUN_FILE, LayerSpec, to_metadata
from armor.checkpoint.jsonfile import write_json
from armor.compare.checkpoints import RESULTS
from armor.compare.compare import with_gaps
from armor.compare.row import Row
from armor.report import name_comparison
from armor.sparse.pattern import Pattern

PERPLEXITY = {"dense": 2.175, "wanda": 25.4, "sparsegpt": 3.86, "armor-paper": 2.7, "armor": 2.308}
DENSE_BYTES = 2_000_000
SHAPES = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 64)}


def layer_record(depth: int, share: float = 1.0) -> dict[str, Any]:
    return {
        "loss": 0.02 * (depth + 1),
        "nowag_loss": 0.1,
        "sparsegpt_loss": 0.05,
        "certificate": True,
        "losses": [0.05, 0.03, 0.02 * (depth + 1)],
        "times": [0.1, 0.2, 0.4],
        "output_error": share * (depth + 1),
        "output_energy": 50.0,
        "seconds": 0.5,
    }


def make_checkpoint(
    folder: Path, label: str = "armor", depths: int = 3, last: str = "2:4", **about: Any
) -> Path:
    """A checkpoint of small float32 layers and an embedding of 4,000 bytes.

    `last` is the pattern of the last layer, which has no wrappers if it is another; `about` more
    of its record.
    """
    block = 8 if label.startswith("armor") else None
    specs, tensors = {}, {"model.embed_tokens.weight": torch.zeros(100, 10)}
    for depth in range(depths):
        for kind, shape in SHAPES.items():
            name = f"model.layers.{depth}.{kind}"
            specs[name] = LayerSpec(shape, block)
            if last != "2:4" and name == f"model.layers.{depths - 1}.{list(SHAPES)[-1]}":
                specs[name] = LayerSpec(shape, None, Pattern.parse(last))
            for part, size in specs[name].tensor_shapes().items():
                dtype = torch.uint8 if part == "core_indices" else torch.float32
                tensors[f"{name}.{part}"] = torch.zeros(size, dtype=dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {"quantization_config": to_metadata(specs)})
    method = label.split("-")[0]
    paper = label == "armor-paper"
    run = {
        "model": "some/model",
        "method": method,
        "config": {
            "method": method,
            "objective": "diag" if paper else "full",
            "solver": "exact",
            "calibration": "c.txt",
            "block_size": None,
            "overhead_budget": 0.1,
            "include": [],
        },
        "versions": {"armor": "0.1.0"},
        "seconds": 12.5,
        "peak_memory_bytes": 10**9,
        "layers": {
            name: {"shape": spec.shape, "block": block, **layer_record(index // 2)}
            for index, (name, spec) in enumerate(specs.items())
        },
        "dense_layers": {"model.layers.9.odd": "excluded"},
    }
    run["config"] |= about.pop("config", {})
    write_json(folder / RUN_FILE, run | about)
    return folder


def make_rows(**perplexity: float) -> list[Row]:
    rows = [
        Row(
            label,
            label.split("-")[0],
            {"stories": perplexity.get(label, value)},
            DENSE_BYTES if label == "dense" else 1_250_000,
            DENSE_BYTES,
            0.0 if label == "dense" else 12.5,
        )
        for label, value in PERPLEXITY.items()
    ]
    return with_gaps(rows)


def make_comparison(folder: Path, rows: list[Row] | None = None) -> Path:
    rows = make_rows() if rows is None else rows
    folder.mkdir()
    for row in rows[1:]:
        make_checkpoint(folder / row.label, row.label)
    data = {"model": "some/model", "seq_len": 256, "max_chars": None, "pruned": {}}
    write_json(folder / RESULTS, data | {"rows": [row.to_dict() for row in rows]})
    name_comparison(folder, "A <b>title</b>")
    return folder


def bench_json() -> dict[str, Any]:
    seconds = {"dense": 1.0e-3, "2:4": 0.8e-3, "ARMOR": 0.5e-3}
    layers = [
        {"layer": layer, "batch": batch, "contender": name, "seconds": value * batch**0.5}
        for layer in ("q_proj", "down_proj")
        for batch in (1, 16)
        for name, value in seconds.items()
    ]
    model = [
        {"contender": name, "prefill": 900.0, "decode": value, "bytes": 2_000_000}
        for name, value in (("ARMOR", 60.0), ("dense", 40.0))
    ]
    machine = {"name": "Some CPU", "device": "cpu", "threads": 2, "torch": "2.13.0"}
    return {"machine": machine, "dtype": "float32", "layers": layers, "model": model}


def eval_json() -> dict[str, Any]:
    row = {
        "source": "texts/stories.txt",
        "perplexity": 2.3456,
        "ci95": [2.2, 2.5],
        "bits_per_byte": 0.61,
        "seq_len": 256,
        "tokens": 12_345,
    }
    task = {"task": "piqa", "shots": 0, "metric": "acc", "value": 0.75, "stderr": 0.01}
    about = {"model": "some/model", "dtype": "float32", "device": "cpu"}
    return {**about, "perplexity": [row], "tasks": [{**task, "samples": 400}]}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of armor compare."""
    return make_comparison(tmp_path_factory.mktemp("report") / "comparison")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the JSON of armor eval and armor bench beside its weights."""
    folder = make_checkpoint(tmp_path_factory.mktemp("report") / "pruned")
    write_json(folder / "bench.json", bench_json())
    write_json(folder / "eval-stories.json", eval_json())
    return folder


@pytest.fixture
def make() -> Callable[..., Path]:
    """`make_comparison`."""
    return make_comparison


@pytest.fixture
def one() -> Callable[..., Path]:
    """`make_checkpoint`."""
    return make_checkpoint
