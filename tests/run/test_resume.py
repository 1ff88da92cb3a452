"""An interrupted run goes on, with the same bytes; what does not belong to it is refused."""

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

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.checkpoint.lock import Lock
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import Progress
from armor.run.unfinished import LOCK

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]
#: One layer after the other of another pattern or method.
MIXED: dict[str, dict[str, Any]] = {
    "*.gate_proj": {"pattern": "4:8", "block": 8},
    "*.down_proj": {"pattern": "50%"},
    "*.0.*.v_proj": {"pattern": "75%", "method": "sparsegpt"},
    "*.up_proj": {"method": "wanda"},
}


class Seen:
    """What a run reported, and an interruption after some layers."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.finished: list[str] = []
        self.resumed: list[str] = []
        self.damaged: list[str] = []

    def progress(self) -> Progress:
        def finished(name: str, _record: Any) -> None:
            self.finished.append(name)
            if len(self.finished) == self.stop_after:
                raise KeyboardInterrupt

        def resumed(records: dict[str, Any], damaged: list[str]) -> None:
            self.resumed, self.damaged = list(records), damaged

        return Progress(finished=finished, resumed=resumed)


@pytest.fixture
def interrupted(tiny_model: Path, settings: Settings, tmp_path: Path) -> Callable[..., Seen]:
    """Run until some layers are finished."""

    def run(after: int, **changes: object) -> Seen:
        seen = Seen(after)
        with pytest.raises(KeyboardInterrupt):
            armor.prune(tiny_model, settings(**changes), tmp_path / "out", progress=seen.progress())
        return seen

    return run


@pytest.mark.parametrize(
    "changes",
    [{}, {"target": "dense"}, {"method": "wanda"}, {"overrides": MIXED}],
    ids=["compensated", "dense", "wanda", "mixed"],
)
@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_goes_on_with_the_same_bytes(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    interrupted: Callable[..., Seen],
    changes: dict[str, object],
    after: int,
) -> None:
    armor.prune(tiny_model, settings(**changes), tmp_path / "straight")
    first = interrupted(after, **changes)
    assert not (tmp_path / "out").exists()
    seen = Seen()
    result = armor.prune(
        tiny_model, settings(**changes), tmp_path / "out", progress=seen.progress()
    )
    assert sorted(seen.resumed) == sorted(first.finished)
    assert len(seen.finished) == 14 - after
    assert result.resumed == after
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")
    assert not unfinished_folder(tmp_path / "out").exists()


def test_activations_spare_the_way_from_the_start(
    tiny_model: Path,
    settings: Settings,
    tmp_path: Path,
    interrupted: Callable[..., Seen],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted(9)
    from armor.models.streamed import StreamedModel
    from armor.run import prune as prune_module

    loaded: list[int] = []
    block = StreamedModel.block

    def noting(self: StreamedModel, index: int, device: str = "cpu") -> Any:
        loaded.append(index)
        return block(self, index, device)

    monkeypatch.setattr(StreamedModel, "block", noting)
    # (The check of the model's own forward reads every block, a few windows long.)
    monkeypatch.setattr(prune_module, "check_own_forward", lambda *_: None)
    armor.prune(tiny_model, settings(), tmp_path / "out")
    assert loaded == [1]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "flip header", "truncate", "empty", "swap"])
def test_damaged_files_are_done_again(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    interrupted: Callable[..., Seen],
    damage: str,
) -> None:
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    interrupted(9)
    files = sorted((unfinished_folder(tmp_path / "out") / "layers").iterdir())
    victim = files[0]
    if damage == "flip":
        flip(victim, -3)
    elif damage == "flip header":
        flip(victim, 40)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-10])
    elif damage == "empty":
        victim.write_bytes(b"")
    else:
        shutil.copy(files[1], victim)
    seen = Seen()
    armor.prune(tiny_model, settings(), tmp_path / "out", progress=seen.progress())
    assert seen.damaged == [victim.stem]
    assert victim.stem in seen.finished
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_damaged_activations_are_made_again(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    interrupted: Callable[..., Seen],
) -> None:
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    interrupted(9)
    file = next((unfinished_folder(tmp_path / "out") / "activations").rglob("pruned-0.safetensors"))
    flip(file, -1)
    armor.prune(tiny_model, settings(), tmp_path / "out")
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"samples": 16}, "samples was 24 and is 16"),
        ({"block_size": 8}, "block_size was 4 and is 8"),
        ({"exclude": ("*k_proj",)}, "exclude was"),
    ],
)
def test_other_settings_are_refused_by_name(
    tiny_model: Path,
    settings: Settings,
    tmp_path: Path,
    interrupted: Callable[..., Seen],
    changes: dict[str, object],
    says: str,
) -> None:
    interrupted(2)
    with pytest.raises(ArmorError, match=says) as caught:
        armor.prune(tiny_model, settings(**changes), tmp_path / "out")
    assert "--fresh" in str(caught.value)
    armor.prune(tiny_model, settings(**changes), tmp_path / "out", fresh=True)


def test_a_recipe_in_another_order_is_refused(
    tiny_model: Path, settings: Settings, tmp_path: Path, interrupted: Callable[..., Seen]
) -> None:
    rules: dict[str, Any] = {"*": {"pattern": "50%"}, "*.q_proj": {"pattern": "75%"}}
    interrupted(2, overrides=rules)
    other = settings(overrides=dict(reversed(rules.items())))
    with pytest.raises(ArmorError, match="order of the recipe was"):
        armor.prune(tiny_model, other, tmp_path / "out")


def test_another_text_or_model_is_refused(
    tiny_model: Path,
    text: Path,
    settings: Settings,
    tmp_path: Path,
    interrupted: Callable[..., Seen],
) -> None:
    interrupted(2)
    other = tmp_path / "other.txt"
    other.write_text("0123456789 " * 2000)
    with pytest.raises(ArmorError, match="calibration changed"):
        armor.prune(tiny_model, settings(calibration=str(other)), tmp_path / "out")
    copied = shutil.copytree(tiny_model, tmp_path / "model")
    moved = tmp_path / "moved.txt"
    shutil.copy(text, moved)
    tensors = load_file(copied / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 1
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArmorError, match=f"weights {name} changed"):
        armor.prune(copied, settings(calibration=str(moved)), tmp_path / "out")
    seen = Seen()
    shutil.copytree(tiny_model, copied, dirs_exist_ok=True)
    armor.prune(
        copied, settings(calibration=str(moved)), tmp_path / "out", progress=seen.progress()
    )
    assert len(seen.resumed) == 2  # the names of the files do not matter


def test_two_runs_do_not_share_a_folder(
    tiny_model: Path, settings: Settings, tmp_path: Path
) -> None:
    folder = unfinished_folder(tmp_path / "out")
    folder.mkdir()
    kept = folder / "scratch" / "0.safetensors"
    kept.parent.mkdir()
    kept.write_text("of the first run")
    holder = rf"another run is working in .* \(process {os.getpid()} on"
    with Lock(folder / LOCK, "", ""), pytest.raises(ArmorError, match=holder):
        armor.prune(tiny_model, settings(), tmp_path / "out")
    assert kept.exists()
    armor.prune(tiny_model, settings(), tmp_path / "out")


def test_an_end_that_was_cut_short(
    tiny_model: Path, settings: Settings, weights: Weights, tmp_path: Path
) -> None:
    """Killed between the checkpoint's appearance and the removal of its store."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    stop = Seen(14)
    with pytest.raises(KeyboardInterrupt):
        armor.prune(tiny_model, settings(), out, progress=stop.progress())
    shutil.copytree(unfinished_folder(out), kept)
    armor.prune(tiny_model, settings(), out)
    before = weights(out)
    shutil.copytree(kept, unfinished_folder(out))
    armor.prune(tiny_model, settings(), out)
    assert weights(out) == before
    assert not unfinished_folder(out).exists()
    shutil.copytree(kept, unfinished_folder(out))
    run = json.loads((out / "armor_run.json").read_text())
    (out / "armor_run.json").write_text(json.dumps(run | {"run": "another"}))
    with pytest.raises(ArmorError, match="exists already"):
        armor.prune(tiny_model, settings(), out)


def test_moments_that_differ_are_noticed(
    tiny_model: Path, settings: Settings, tmp_path: Path, interrupted: Callable[..., Seen]
) -> None:
    """q is finished, k and v of its stage are not: their moments are made again, and compared."""
    from armor.run.store import Store

    interrupted(1)
    real = Store.lacks

    def lacks(self: Store, name: str, moments: str | None = None) -> bool:
        return real(self, name, "f" * 64 if moments else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "lacks", lacks)
        seen = Seen()
        armor.prune(tiny_model, settings(), tmp_path / "out", progress=seen.progress())
    assert len(seen.resumed) == 1
    assert len(seen.finished) == 14


def test_activations_beyond_the_budget_lie_in_files(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from armor.engines import in_process

    written: list[Path] = []
    write = in_process.write_file

    def noting(path: Path, tensors: dict[str, torch.Tensor], **options: Any) -> None:
        written.append(path)
        write(path, tensors, **options)

    monkeypatch.setattr(in_process, "write_file", noting)
    armor.prune(tiny_model, settings(), tmp_path / "roomy")
    assert not written
    armor.prune(tiny_model, settings(), tmp_path / "tight", memory_budget=0)
    assert written
    assert weights(tmp_path / "roomy") == weights(tmp_path / "tight")
