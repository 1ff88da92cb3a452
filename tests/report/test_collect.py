"""What is read from folders, the settings' tables, the command, and the PNG files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.jsonfile import write_json
from armor.checkpoint.records import LayerRecord
from armor.checkpoint.stored_size import StoredSize
from armor.cli import app
from armor.errors import ArmorError
from armor.report import collect, write_report
from armor.report.charts.curves import solves_by_kind
from armor.report.charts.layers import bars_by_kind, highest
from armor.report.data import Layer
from armor.report.settings import settings_tables


def layer(name: str, **facts: object) -> Layer:
    record = LayerRecord.read({"loss": 0.02, "nowag_loss": 0.1, "sparsegpt_loss": None} | facts)
    size = StoredSize("F32", values=4, indices=4, wrappers=2, dense=20)
    return Layer(name, LayerSpec((8, 8), 4), size, record)


def test_a_checkpoint(checkpoint: Path) -> None:
    report = collect(checkpoint)
    (run,) = report.runs.values()
    assert (report.title, run.label, run.method) == ("pruned", "pruned", "armor")
    # float32: 3 blocks of 32 x 32 and 32 x 64, half of the values kept.
    assert run.sizes.values == 3 * (1024 + 2048) // 2 * 4
    assert run.sizes.indices == 3 * (1024 + 2048) // 8
    assert run.sizes.wrappers == 3 * (8 + 12) * 64 * 4
    assert run.sizes.rest == 4000
    assert run.sizes.dense == 3 * (1024 + 2048) * 4
    assert run.certified == (6, 6)
    assert list(report.evals) == ["eval-stories.json"]
    assert list(report.benches) == ["bench.json"]


def test_a_baseline_claims_no_certificate(comparison: Path) -> None:
    runs = collect(comparison).runs
    assert runs["armor-paper"].certified == (6, 6)
    assert runs["wanda"].certified == (0, 0)


def test_layers_without_a_loss_are_left_out() -> None:
    layers = [layer("m.0.q_proj"), layer("m.0.o_proj", nowag_loss=0.0), layer("m.1.x", loss=None)]
    kinds = bars_by_kind(layers)
    assert list(kinds) == ["q_proj"]
    assert highest(kinds) == 1.0


def test_experts_share_a_bar() -> None:
    layers = [layer(f"m.layers.3.mlp.experts.{e}.up_proj", loss=0.02 * 4**e) for e in range(2)]
    ((kind, (bar,)),) = bars_by_kind(layers).items()
    assert (kind, bar.depth, bar.name) == ("experts.up_proj", 3, "2 layers of block 3")
    assert bar.ratio == pytest.approx(0.4)


def test_settings_are_split() -> None:
    common = {"calibration": "c.txt", "include": [], "solver": "exact", "block_size": None}
    shared, differing = settings_tables(
        {
            "wanda": {"method": "wanda", "objective": "full", **common},
            "armor-paper": {"method": "armor", "objective": "diag", **common},
            "armor": {"method": "armor", "objective": "full", **common},
        }
    )
    assert shared == {
        "calibration": "c.txt",
        "solver (armor)": "exact",
        "block size (armor)": "auto",
    }
    assert differing["objective"] == {"armor-paper": "diag", "armor": "full"}
    assert differing["method"]["wanda"] == "wanda"
    assert settings_tables({"old": {"bos": "no"}, "new": {"bos": "never"}}) == (
        {"bos": "never"},
        {},
    )


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({}, "no BOS"),
        *(({"bos": name}, "no BOS") for name in ("never", "no")),
        *(({"bos": name}, "with BOS") for name in ("always", "yes")),
    ],
)
def test_a_comparison_says_whether_windows_begin_with_bos(
    make: Callable[..., Path], tmp_path: Path, known: dict[str, str], words: str
) -> None:
    """By its names of today, those of earlier versions, or from before there was a choice."""
    file = make(tmp_path / "cmp") / "results.json"
    write_json(file, json.loads(file.read_text()) | known)
    report = collect(file.parent)
    assert report.notes["evaluation window"] == f"256 tokens, {words}"
    write_report(report, tmp_path / "page.html")
    assert f"in windows of 256 tokens, {words}." in (tmp_path / "page.html").read_text()


def test_the_command_writes_page_and_plots(checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(checkpoint), "--out", str(page), "--png"])
    assert result.exit_code == 0, result.output
    plots = sorted((tmp_path / "page-plots").iterdir())
    assert [path.stem for path in plots] == [
        "error-layers-pruned",
        "error-map-pruned",
        "loss-pruned",
        "loss-time-pruned",
        "overhead-pruned",
        "size",
        "speed-bench",
    ]
    assert f"{len(plots)} plots" in result.output
    for path in plots:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels[..., 0])) > 20
    result = CliRunner().invoke(app, ["report", str(checkpoint)])
    assert result.exit_code == 0, result.output
    assert (checkpoint / "report.html").is_file()
    assert not (checkpoint / "report-plots").exists()


def test_files_are_found_by_name_or_given(
    make: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    folder = make(tmp_path / "cmp")
    assert not collect(folder).benches
    assert collect(folder, benches=[checkpoint / "bench.json"]).benches
    (folder / "evaluation-notes.json").write_text('{"mine": 1}')
    assert not collect(folder).evals
    with pytest.raises(ArmorError, match="was not written by armor eval --json"):
        collect(folder, evals=[checkpoint / "bench.json"])
    write_json(tmp_path / "bad.json", {"layers": [{"layer": "x"}]})
    with pytest.raises(ArmorError, match="was not written by armor bench --json"):
        collect(folder, benches=[tmp_path / "bad.json"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "not a JSON object"),
        ('{"rows": []}', "damaged"),
        ('{"model": "m", "rows": []}', "no rows"),
        ('{"model": "m", "rows": [{"label": "dense"}]}', "damaged"),
        ('{"model": "m", "rows": [3]}', "damaged"),
    ],
)
def test_a_damaged_comparison(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ArmorError, match=says):
        collect(tmp_path)


def test_other_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    for folder, says in ((tmp_path / "absent", "is not a folder"), (tmp_path, "holds neither")):
        result = CliRunner().invoke(app, ["report", str(folder)])
        assert isinstance(result.exception, ArmorError)
        assert says in str(result.exception)
    (tmp_path / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "not an armor checkpoint" in str(result.exception)


@pytest.mark.parametrize("run", [{}, {"layers": [1]}, {"config": 3, "layers": {"x": 1}}])
def test_a_record_that_tells_nothing(
    make: Callable[..., Path], tmp_path: Path, run: object
) -> None:
    folder = make(tmp_path / "cmp") / "armor"
    (folder / "armor_run.json").write_text(json.dumps(run))
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "6 layers pruned to 2:4" in page
    assert "certified" not in page


def test_png_files_need_matplotlib_and_the_page_does_not(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["report", str(checkpoint), "--out", str(tmp_path / "page.html")]
    result = CliRunner().invoke(app, [*arguments, "--png"])
    assert "pip install 'armor-prune[plots]'" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_of_losses_known_at_once_the_last_is_drawn() -> None:
    """A GPU tells of ten iterations at a time; before that none of their losses was reached."""
    times, losses = [0.1, 0.4, 0.4, 0.4, 0.9], [0.08, 0.06, 0.05, 0.04, 0.02]
    kinds, _ = solves_by_kind([layer("model.layers.0.q_proj", times=times, losses=losses)])
    ((solve,),) = kinds.values()
    assert solve.steps == (0.1, 0.4, 0.9)
    assert solve.ratios == pytest.approx((0.8, 0.4, 0.2))
