"""The same command on a finished output says so; another is refused, and the model is safe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.cli import app
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import Progress

Settings = Callable[..., PruneConfig]


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PruneConfig]:
    out = tmp_path_factory.mktemp("finished") / "out"
    config = PruneConfig(calibration=str(text), samples=4, seq_len=16, method="wanda")
    armor.prune(tiny_model, config, out)
    return out, config


def test_the_same_call_does_nothing(finished: tuple[Path, PruneConfig], tiny_model: Path) -> None:
    out, config = finished
    before = {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]}
    begun: list[object] = []
    progress = Progress(planned=begun.append, started=begun.append)
    result = armor.prune(tiny_model, config, out, progress=progress)
    assert result.found
    assert len(result.records) == 14
    assert begun == []
    assert before == {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]}
    assert not unfinished_folder(out).exists()


def test_the_same_command_succeeds(
    finished: tuple[Path, PruneConfig], tiny_model: Path, text: Path
) -> None:
    out, _ = finished
    command = ["prune", tiny_model, "--calibration", text, "--out", out, "--method", "wanda"]
    more = ["--samples", "4", "--seq-len", "16"]
    result = CliRunner().invoke(app, [*map(str, command), *more])
    assert result.exit_code == 0, result.output
    assert "is complete" in result.output
    assert not out.with_name("out.events.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 5}, "samples was 4 and is 5"),
        ({"method": "magnitude"}, "method was wanda and is magnitude"),
        ({"samples": 5, "seed": 1}, r"samples was 4 and is 5 \(and 1 more\)"),
    ],
)
def test_other_settings_are_refused_by_name(
    finished: tuple[Path, PruneConfig],
    tiny_model: Path,
    settings: Settings,
    changes: dict[str, object],
    says: str,
) -> None:
    out, config = finished
    same = {"samples": 4, "seq_len": 16, "method": "wanda"}
    other = PruneConfig(**{"calibration": config.calibration, **same, **changes})  # type: ignore[arg-type]
    with pytest.raises(ArmorError, match=f"exists already and is of another run: {says}.*--fresh"):
        armor.prune(tiny_model, other, out)


def test_another_model_or_version_is_refused(
    finished: tuple[Path, PruneConfig], tiny_model: Path, tmp_path: Path
) -> None:
    out, config = finished
    copied = shutil.copytree(out, tmp_path / "out")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | {"rms_norm_eps": 1e-3}))
    with pytest.raises(ArmorError, match="the model, the calibration text or armor itself changed"):
        armor.prune(model, config, copied)
    run = json.loads((copied / "armor_run.json").read_text())
    older = run | {"run": "another", "versions": run["versions"] | {"torch": "1.0"}}
    (copied / "armor_run.json").write_text(json.dumps(older))
    with pytest.raises(ArmorError, match=r"version of torch was 1\.0 and is"):
        armor.prune(tiny_model, config, copied)
    (copied / "armor_run.json").write_text("{}")
    with pytest.raises(ArmorError, match="its record is damaged; --fresh"):
        armor.prune(tiny_model, config, copied)


@pytest.mark.parametrize("named", [{"bos": "no"}, {}])
def test_bos_as_earlier_versions_wrote_it_is_no_difference(
    finished: tuple[Path, PruneConfig], tiny_model: Path, tmp_path: Path, named: dict[str, str]
) -> None:
    """By its former name, or not at all, which was never."""
    out, config = finished
    copied = shutil.copytree(out, tmp_path / "out")
    run = json.loads((copied / "armor_run.json").read_text())
    assert run["config"].pop("bos") == "never"
    run["config"] |= named
    (copied / "armor_run.json").write_text(json.dumps(run))
    assert armor.prune(tiny_model, config, copied).found
    with pytest.raises(ArmorError, match="another run: seed was 0 and is 1; --fresh"):
        armor.prune(tiny_model, replace(config, seed=1), copied)


def test_a_damaged_output_is_not_complete(
    finished: tuple[Path, PruneConfig], tiny_model: Path, tmp_path: Path
) -> None:
    out, config = finished
    copied = shutil.copytree(out, tmp_path / "out")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ArmorError, match="--fresh starts over"):
        armor.prune(tiny_model, config, copied)


@pytest.mark.parametrize("inside", ["", "pruned", "a/b"])
@pytest.mark.parametrize("fresh", [False, True])
def test_an_output_inside_the_model_is_refused(
    tiny_model: Path, settings: Settings, inside: str, fresh: bool
) -> None:
    before = sorted(tiny_model.rglob("*"))
    with pytest.raises(
        ArmorError, match=r"lies inside .*choose an output folder outside"
    ) as caught:
        armor.prune(tiny_model, settings(), tiny_model / inside, fresh)
    assert "delete" not in str(caught.value)
    assert sorted(tiny_model.rglob("*")) == before


def test_fresh_spares_a_model_inside_the_output(
    finished: tuple[Path, PruneConfig], tiny_model: Path, tmp_path: Path
) -> None:
    out, config = finished
    copied = shutil.copytree(out, tmp_path / "out")
    model = shutil.copytree(tiny_model, copied / "dense")
    with pytest.raises(ArmorError, match="--fresh would delete"):
        armor.prune(model, config, copied, fresh=True)
    assert model.is_dir()
