"""A gate for each version of vLLM: tokens, log-probabilities and bytes of one checkpoint.

A new version passes it, or says by how much it differs. ``pytest tests/vllm --write-gate`` writes
the file of a version that has none, if transformers gives the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from armor.checkpoint import ModelFiles, assemble
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask

GATES = Path(__file__).parent / "gates"
BLOCK = 32


@pytest.fixture
def folder(random_model: Callable[..., Any], tmp_path: Path) -> Path:
    """A checkpoint of random factors, the same on every machine: nothing is solved for it."""
    model = random_model("Qwen2")
    model.save_pretrained(tmp_path / "dense")
    generator = torch.Generator().manual_seed(0)

    def wrapper(size: int) -> torch.Tensor:
        shape = (-(-size // BLOCK), BLOCK, BLOCK)
        return torch.eye(BLOCK) + 0.1 * torch.randn(shape, generator=generator)

    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rows, cols = module.weight.shape
            mask = nm_mask(torch.rand(rows, cols, generator=generator), 2, 4)
            core = 1.4 * module.weight.data * mask
            layers[name] = PackedLayer.from_factors(
                Factors(core, mask, wrapper(rows), wrapper(cols))
            )
    assemble(ModelFiles.read(tmp_path / "dense"), tmp_path / "packed", layers, {})
    return tmp_path / "packed"


def test_gate(
    folder: Path, engines: Any, prompts: list[list[int]], request: pytest.FixtureRequest
) -> None:
    from vllm import __version__

    file = GATES / f"{__version__.partition('+')[0]}.json"
    job = {"folder": folder, "prompts": prompts}
    (found,), (wanted,) = engines.vllm([job]), engines.transformers([job])
    assert "error" not in found, found["error"]
    if not file.exists() and request.config.getoption("--write-gate"):
        same(found, wanted)
        file.write_text(json.dumps(rounded(found), indent=1) + "\n")
    assert file.exists(), f"no gate for vLLM {__version__}: pytest tests/vllm --write-gate"
    gate = json.loads(file.read_text())
    same(found, gate)
    assert found["bytes"] == gate["bytes"]


def same(found: Any, wanted: Any) -> None:
    """Tokens exactly, log-probabilities within 1e-4."""
    for ours, theirs in zip(found["outputs"], wanted["outputs"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)


def rounded(found: Any) -> Any:
    """With six decimals."""
    outputs = [
        {"tokens": one["tokens"], "logprobs": [round(value, 6) for value in one["logprobs"]]}
        for one in found["outputs"]
    ]
    return {"outputs": outputs, "bytes": found["bytes"]}
