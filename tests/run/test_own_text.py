"""``self``: windows that the model writes itself are its own, and the same whenever it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.run import own_text
from armor.run.own_text import draw_windows
from armor.run.prune import Progress

Settings = Callable[..., PruneConfig]


@pytest.fixture
def folder(tiny_bos_model: Path) -> ModelFolder:
    return ModelFolder.open(tiny_bos_model)


def test_the_windows_are_sampled_from_the_model(folder: ModelFolder) -> None:
    windows = draw_windows("self", folder, 40, 24, 0, "always")
    assert windows.shape == (40, 24)
    assert bool((windows[:, 0] == 256).all())
    assert len({tuple(row) for row in windows.tolist()}) == 40
    # What the model finds likely is there more often: in nats, well below a uniform choice.
    with torch.no_grad():
        logits = load_model(folder, torch.float32)(windows).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
    assert abs(float(losses - entropy)) < 0.15
    # A smaller draw begins a larger one; another seed gives another.
    assert torch.equal(draw_windows("self", folder, 3, 24, 0, "always"), windows[:3])
    assert not torch.equal(draw_windows("self", folder, 3, 24, 1, "always"), windows[:3])
    without = draw_windows("self", folder, 3, 24, 0, "never")
    assert torch.equal(without[:, :-1], windows[:3, 1:])


def test_prompts_begin_the_windows(folder: ModelFolder, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello there\n\nno\n")
    windows = draw_windows(f"self:{prompts}", folder, 4, 24, 0, "always")
    for row, prompt in zip(windows.tolist(), ["hello there", "no"] * 2, strict=True):
        assert row[: 1 + len(prompt)] == [256, *_ids(folder, prompt)]


def _ids(folder: ModelFolder, text: str) -> list[int]:
    from armor.models.load import load_tokenizer
    from armor.text.windows import tokenize

    found: list[int] = tokenize(load_tokenizer(folder), text).tolist()
    return found


def test_a_run_that_goes_on_has_kept_them(
    tiny_bos_model: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(calibration="self")
    armor.prune(tiny_bos_model, config, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        armor.prune(tiny_bos_model, config, tmp_path / "out", progress=Progress(finished=stop))
    monkeypatch.setattr(own_text, "_write", None)
    armor.prune(tiny_bos_model, config, tmp_path / "out")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not unfinished_folder(tmp_path / "out").exists()
    record = json.loads((tmp_path / "out" / "armor_run.json").read_text())
    assert record["config"]["calibration"] == "self"


@pytest.mark.parametrize("has_gpu", [True, False])
def test_it_is_written_where_the_run_computes(
    tiny_bos_model: Path,
    folder: ModelFolder,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_gpu: bool,
) -> None:
    seen: list[str] = []

    def write(_folder: object, _tokenizer: object, *given: object) -> torch.Tensor:
        samples, seq_len, *_, device = given
        seen.append(str(device))
        return torch.zeros(samples, seq_len, dtype=torch.int64)  # type: ignore[call-overload]

    monkeypatch.setattr(own_text, "_write", write)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    draw_windows("self", folder, 2, 8, 0, "never", device="cuda:1")
    armor.prune(tiny_bos_model, settings(calibration="self"), tmp_path / "out", device="cpu")
    assert seen == ["cuda:1" if has_gpu else "cpu", "cpu"]


def test_a_model_that_is_too_large(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(own_text, "_write", write)
    with pytest.raises(ArmorError, match=r"no room on cpu .* 32 windows of 8 tokens; give a text"):
        draw_windows("self", folder, 2, 8, 0, "never")


def test_it_is_no_text_to_evaluate_on(tiny_bos_model: Path, folder: ModelFolder) -> None:
    from armor.text.sources import read_text

    with pytest.raises(ArmorError, match="for --calibration of armor prune"):
        read_text("self")
    with pytest.raises(ArmorError, match=r"absent\.txt"):
        draw_windows("self:absent.txt", folder, 2, 8, 0, "never")
