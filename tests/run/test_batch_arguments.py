"""Models whose blocks are called differently in every batch, or hand keys and values on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.load import load_model, load_tokenizer
from armor.run.plain import prune_plainly
from armor.run.prune import Progress
from armor.text.windows import token_windows

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]

if not hasattr(transformers, "Gemma4ForCausalLM"):
    pytest.skip("this version of transformers has no Gemma 4", allow_module_level=True)

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "vocab_size_per_layer_input": 300,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "max_position_embeddings": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
GEMMA3N = {
    "intermediate_size": [44] * 4,
    "altup_num_inputs": 4,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.0] * 4,
}


def _model(family: str, shared: int) -> Any:
    torch.manual_seed(0)
    if family == "gemma4":
        config = transformers.Gemma4TextConfig(
            **SIZES, intermediate_size=44, global_head_dim=8, num_kv_shared_layers=shared
        )
        return transformers.Gemma4ForCausalLM(config)
    config = transformers.Gemma3nTextConfig(**SIZES, **GEMMA3N, num_kv_shared_layers=shared)
    return transformers.Gemma3nForCausalLM(config)


@pytest.fixture(scope="module", params=["gemma4", "gemma4 shared", "gemma3n", "gemma3n shared"])
def model(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    family, *shared = request.param.split()
    folder = tmp_path_factory.mktemp("models") / family
    shutil.copytree(tiny_model, folder)
    made = _model(family, 2 if shared else 0)
    made.generation_config = transformers.GenerationConfig()
    made.eval().save_pretrained(folder)
    return folder


def _energies(folder: Path, windows: Tensor, names: set[str]) -> dict[str, float]:
    """E|W x|^2 of linears, by the model in memory, window by window."""
    model, sums = load_model(folder, torch.float32), dict.fromkeys(names, 0.0)

    def watch(name: str) -> Callable[..., None]:
        def note(module: nn.Linear, args: tuple[Tensor], _output: Tensor) -> None:
            tokens = args[0].flatten(0, -2)
            energy = (tokens @ module.weight.T).double().square().sum() / len(tokens)
            sums[name] += energy.item() / len(windows)

        return note

    for name in names:
        model.get_submodule(name).register_forward_hook(watch(name))
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None], use_cache=False)
    return sums


def test_every_batch_gets_its_own_arguments(
    model: Path, settings: Settings, tmp_path: Path
) -> None:
    """Three batches, the last one as large as the first; the dense model's statistics."""
    config = settings(method="nowag", samples=20)
    armor.prune(model, config, tmp_path / "out", workers=1)
    record = json.loads((tmp_path / "out" / "armor_run.json").read_text())["layers"]
    windows = token_windows(config.calibration, load_tokenizer(model), 20, 16, config.seed)
    for name, energy in _energies(model, windows, set(record)).items():
        assert record[name]["output_energy"] == pytest.approx(energy, rel=1e-4), name


def test_all_engines_write_the_bytes_of_the_plain_run(
    model: Path, settings: Settings, weights: Weights, tmp_path: Path
) -> None:
    """Both streams; more windows than one batch has; files, workers, an interruption."""
    prune_plainly(model, settings(), tmp_path / "plain")
    armor.prune(model, settings(), tmp_path / "files", workers=1, memory_budget=0)
    assert weights(tmp_path / "files") == weights(tmp_path / "plain")
    left = [15]

    def stop(_name: str, _record: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        armor.prune(
            model,
            settings(),
            tmp_path / "out",
            workers=2,
            progress=Progress(finished=stop),
        )
    armor.prune(model, settings(), tmp_path / "out", workers=2)
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


def test_a_size(model: Path, settings: Settings, tmp_path: Path) -> None:
    result = armor.prune(
        model,
        settings(block_size=None, size=0.99, samples=12),
        tmp_path / "out",
        workers=1,
    )
    assert result.records


def test_a_linear_that_is_called_twice_is_refused(
    settings: Settings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(mlp: Any, x: Tensor) -> Tensor:
        gated: Tensor = mlp.down_proj(mlp.gate_proj(x) * mlp.gate_proj(2 * x) * mlp.up_proj(x))
        return gated

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    with pytest.raises(ArmorError, match="gate_proj is called more than once"):
        armor.prune(tiny_model, settings(method="wanda"), tmp_path / "out", workers=1)
