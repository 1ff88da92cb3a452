"""What is wrong with a folder is said in one line, in the user's process, before any worker."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armor.errors import ArmorError

Q = "model.layers.0.self_attn.q_proj"
Spoil = Callable[[Path], None]


def metadata(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Changes the ``quantization_config``."""
    return config(lambda data: change(data["quantization_config"]))


def config(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Changes config.json."""

    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    """Changes the weights."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = load_file(file)
        change(data)
        save_file(data, file, {"format": "pt"})

    return spoil


def cut_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def link_out(folder: Path) -> None:
    file = folder / "model.safetensors"
    elsewhere = folder.parent / "elsewhere.safetensors"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def index_a_missing_file(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def forget_q(data: dict[str, Any]) -> None:
    del data["layers"][Q]


def to_half(data: dict[str, torch.Tensor]) -> None:
    data[f"{Q}.left"] = data[f"{Q}.left"].half()


def swap(name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    return tensors(lambda data: data.__setitem__(name, to(data[name])))


NORM = "model.layers.1.input_layernorm.weight"
#: What is done to a sound folder, and what the line must say.
CASES: dict[str, tuple[Spoil, str]] = {
    "newer format": (metadata(lambda d: d.update(format=2)), "upgrade armor"),
    "no format": (metadata(lambda d: d.pop("format")), "is not a positive whole number"),
    "newer setting": (metadata(lambda d: d.update(rotation="hadamard")), "upgrade armor"),
    "newer setting of a layer": (metadata(lambda d: d["layers"][Q].update(bits=4)), "upgrade"),
    "newer pattern": (metadata(lambda d: d.update(pattern="3:16")), "upgrade armor"),
    "no layers": (metadata(lambda d: d.update(layers={})), "lists no layers"),
    "another method's": (metadata(lambda d: d.update(quant_method="gptq")), "not an armor"),
    "forgotten layer": (metadata(forget_q), "does not fit the metadata"),
    "false shape": (metadata(lambda d: d["layers"][Q].update(shape=[64, 128])), "has shape"),
    "false block": (metadata(lambda d: d["layers"][Q].update(block=32)), "has shape"),
    "layer of no model": (
        metadata(lambda d: d["layers"].update({"model.layers.7.q": d["layers"].pop(Q)})),
        "is missing",
    ),
    "truncated": (cut_file, "cannot read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model"),
    "missing shard": (index_a_missing_file, "is missing, which"),
    "link out": (link_out, "link out of its folder"),
    "missing packed tensor": (tensors(lambda d: d.pop(f"{Q}.core_values")), "is missing"),
    "surplus packed tensor": (
        tensors(lambda d: d.update({"model.norm.core_values": torch.ones(2)})),
        "does not fit the metadata",
    ),
    "missing norm": (tensors(lambda d: d.pop(NORM)), f"lacks the tensor {NORM}"),
    "misshapen norm": (swap(NORM, lambda norm: norm[:-1].clone()), NORM),
    "missing embeddings": (tensors(lambda d: d.pop("model.embed_tokens.weight")), "lacks"),
    "scales beside a weight": (
        tensors(lambda d: d.update({"model.embed_tokens.scale": torch.ones(1)})),
        "the model would ignore",
    ),
    "mixed dtypes": (tensors(to_half), "mixed dtypes"),
    "indices of another dtype": (swap(f"{Q}.core_indices", lambda i: i.to(torch.int16)), "not U8"),
    "wider model": (config(lambda d: d.update(hidden_size=256)), "copy or download"),
    "deeper model": (config(lambda d: d.update(num_hidden_layers=3)), "lacks the tensor"),
    "shallower model": (config(lambda d: d.update(num_hidden_layers=1)), "has no layer"),
    "another family": (config(lambda d: d.update(model_type="gpt2")), "has no layer"),
}


@pytest.fixture
def sound(pruned: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a sound checkpoint."""
    folder = tmp_path / "model"
    shutil.copytree(pruned("Llama", {}), folder)
    return folder


def front_end(folder: Path) -> None:
    """What vLLM does with a quantization config before it starts a worker."""
    from armor.vllm.config import ArmorQuantization

    data = json.loads((folder / "config.json").read_text())["quantization_config"]
    ArmorQuantization.from_config(data).maybe_update_config(str(folder))


def test_a_sound_folder_passes(sound: Path) -> None:
    front_end(sound)


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, sound: Path) -> None:
    spoil, said = CASES[case]
    spoil(sound)
    with pytest.raises(ArmorError) as caught:
        front_end(sound)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 600


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    from armor.vllm.preflight import open_checkpoint

    with pytest.raises(ArmorError, match="nobody/nothing"):
        open_checkpoint("nobody/nothing", None)


def test_the_user_sees_it(
    pruned: Callable[..., Path], tmp_path: Path, engines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """``LLM(FOLDER)`` raises it; what only a worker can see is in the log."""
    indices, norm, tied = (tmp_path / name for name in ("indices", "norm", "tied"))
    for folder in (indices, norm):
        shutil.copytree(pruned("Llama", {}), folder)
    shutil.copytree(pruned("Llama", {}, lm_head=True), tied)
    swap(f"{Q}.core_indices", torch.zeros_like)(indices)
    CASES["missing norm"][0](norm)
    config(lambda data: data.update(tie_word_embeddings=True))(tied)
    jobs = [{"folder": folder, "prompts": [[1, 2, 3]]} for folder in (norm, indices, tied)]
    results = engines.vllm(jobs)
    said = capsys.readouterr().out
    last = results[0]["error"].splitlines()[-1]
    assert last.startswith("armor.errors.ArmorError: ")
    assert CASES["missing norm"][1] in last
    assert all("error" in result for result in results)
    assert f"ArmorError: layer '{Q}' has indices that do not name 2 of every 4" in said
    assert "ArmorError: lm_head is pruned, but config.json ties it to the embeddings" in said
