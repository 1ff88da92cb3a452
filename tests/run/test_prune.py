"""armor prune end to end on a tiny model, and what it does with bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.methods import packed_methods


def config(text: Path, **changes: object) -> PruneConfig:
    settings = {"calibration": str(text), "samples": 8, "seq_len": 32, "iterations": 3}
    return PruneConfig(**{"block_size": 4, **settings, **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("method", packed_methods())
def test_every_method_gives_a_checkpoint_that_loads(
    tiny_model: Path, text: Path, tmp_path: Path, method: str
) -> None:
    result = armor.prune(tiny_model, config(text, method=method), tmp_path / "out")
    model = armor.load(tmp_path / "out")
    assert torch.isfinite(model(torch.arange(20)[None]).logits).all()
    found = armor.inspect(tmp_path / "out")
    assert found["totals"]["layers"] == len(result.records) == 14
    if method == "armor":
        assert all(record.certificate for record in result.records.values())
        assert all(record.loss < record.nowag_loss for record in result.records.values())


@pytest.mark.parametrize("objective", ["full", "diag"])
@pytest.mark.parametrize("target", ["compensated", "dense"])
def test_objectives_and_targets(
    tiny_model: Path, text: Path, tmp_path: Path, objective: str, target: str
) -> None:
    settings = config(text, objective=objective, target=target)
    result = armor.prune(tiny_model, settings, tmp_path / "out")
    assert all(record.certificate for record in result.records.values())


def test_reloaded_model_equals_its_dense_export(
    tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    armor.prune(tiny_model, config(text), tmp_path / "out")
    armor.export_dense(tmp_path / "out", tmp_path / "dense")
    ids = torch.arange(40)[None]
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    logits = [model(ids).logits for model in (armor.load(tmp_path / "out"), dense)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    untouched = load_file(tiny_model / "model.safetensors")
    written = load_file(tmp_path / "dense" / "model.safetensors")
    assert untouched.keys() == written.keys()
    for name, tensor in untouched.items():
        assert torch.equal(tensor, written[name]) != ("_proj" in name)


def test_the_same_seed_gives_the_same_bytes(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    folders = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        armor.prune(tiny_model, config(text, seed=seed), tmp_path / name)
        folders.append((tmp_path / name / "model.safetensors").read_bytes())
    assert folders[0] == folders[1]
    assert folders[0] != folders[2]


def test_bfloat16_weights_stay_bfloat16(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    shutil.copytree(tiny_model, tmp_path / "bf16")
    model.save_pretrained(tmp_path / "bf16")
    result = armor.prune(tmp_path / "bf16", config(text), tmp_path / "out")
    assert all(record.certificate for record in result.records.values())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {tensor.dtype for name, tensor in tensors.items() if "core_indices" not in name}
    assert kinds == {torch.bfloat16}


def test_fresh_replaces_only_what_armor_wrote(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    armor.prune(tiny_model, config(text), out)
    with pytest.raises(ArmorError, match="exists already"):
        armor.prune(tiny_model, config(text, seed=3), out)
    armor.prune(tiny_model, config(text, seed=3), out, fresh=True)
    assert json.loads((out / "armor_run.json").read_text())["config"]["seed"] == 3
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("years of work")
    with pytest.raises(ArmorError, match="exists already"):
        armor.prune(tiny_model, config(text), stranger, fresh=True)
    assert files(stranger) == {"thesis.txt": b"years of work"}


def run_cli(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "armor", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def damaged(tiny_model: Path, folder: Path, value: float) -> Path:
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def bad_inputs(tiny_model: Path, text: Path, tmp: Path) -> dict[str, tuple[list[object], str]]:
    """Name -> (arguments besides --out, what the one line must say)."""
    (tmp / "empty.txt").write_text("")
    (tmp / "binary.txt").write_bytes(b"\x00\xff\xfe" * 50)
    (tmp / "short.txt").write_text("too short")
    BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).save_pretrained(tmp / "bert")
    armor.prune(tiny_model, config(text, method="magnitude"), tmp / "pruned")
    nan = damaged(tiny_model, tmp / "nan", float("nan"))
    inf = damaged(tiny_model, tmp / "inf", float("inf"))
    good = ["--calibration", text, "--samples", 8, "--seq-len", 32, "--block-size", 4]
    ask = ["--samples", 8, "--seq-len", 32, "--block-size", 4, "--calibration"]
    return {
        "no folder": ([tmp / "absent", *good], "no such folder"),
        "no model": ([text.parent, *good], "config.json"),
        "encoder": ([tmp / "bert", *good], "not a causal language model"),
        "no calibration": ([tiny_model], "--calibration"),
        "empty": ([tiny_model, *ask, tmp / "empty.txt"], "empty"),
        "binary": ([tiny_model, *ask, tmp / "binary.txt"], "binary.txt"),
        "short": ([tiny_model, *ask, tmp / "short.txt"], "256"),
        "missing text": ([tiny_model, *ask, tmp / "absent.txt"], "absent.txt"),
        "nan": ([nan, *good], "model.layers.1.mlp.up_proj.weight"),
        "inf": ([inf, *good], "model.layers.1.mlp.up_proj.weight"),
        "method": ([tiny_model, *good, "--method", "hope"], "magnitude"),
        "pattern": ([tiny_model, *good, "--pattern", "5:1"], "2:4"),
        "preset": ([tiny_model, *good, "--preset", "best"], "default, fast, paper"),
        "pruned already": ([tmp / "pruned", *good], "already"),
        "block": ([tiny_model, *good, "--block-size", 6], "multiple of 4"),
        "block word": ([tiny_model, *good, "--block-size", "big"], "auto"),
        "device": ([tiny_model, *good, "--device", "tpu"], "auto, cpu, cuda"),
        "window": ([tiny_model, *good, "--seq-len", 999], "context"),
    }


def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from armor.cli import app

    for name, (args, says) in bad_inputs(tiny_model, text, tmp_path).items():
        target = tmp_path / "target"
        call = ["prune", *map(str, args), "--out", str(target)]
        result = CliRunner().invoke(app, call)
        assert isinstance(result.exception, ArmorError), name
        message = str(result.exception)
        assert says in message, (name, message)
        assert "\n" not in message, (name, message)
        assert not target.exists(), name
        assert not list(tmp_path.glob(".target*")), name


def test_the_command_line_exits_with_2_and_one_line(tiny_model: Path, tmp_path: Path) -> None:
    done = run_cli("prune", tmp_path / "absent", "--out", tmp_path / "out", "--calibration", "x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("armor: error: ")
