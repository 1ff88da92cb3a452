"""The benchmark scripts run, and work out what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from armor.errors import ArmorError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_solver_compares_both_on_a_trained_model(shared: Path, tmp_path: Path) -> None:
    options = ["--models-dir", str(shared / "models"), "--models", "stories-260k"]
    options += ["--matrices", "2", "--block", "16", "--samples", "4", "--seq-len", "64"]
    options += ["--iterations", "5", "--adam-iterations", "20"]
    done = run("solver.py", *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "solver.json").read_text())
    assert result["machine"]["threads"] == 1
    assert result["summary"]["matrices"] == len(result["rows"]) == 2
    for row in result["rows"]:
        assert row["final_exact"] < row["final_adam"] < row["start"]
        assert row["iterations_adam"] == 20
        assert row["ratio_exact"] == pytest.approx(row["seconds_adam"] / row["seconds_exact"])
        assert row["iterations_calm"] == 5
        assert row["trace_calm"][0] == [0.0, row["start"]]
    assert (tmp_path / "solver.png").stat().st_size > 5000


def test_solver_gpu_runs_small_without_a_gpu(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--small", "--models", "Llama-2-7B", "--objectives", "diag"]
    done = run(
        "solver_gpu.py", *options, "--long", "15", "--adam-iterations", "20", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "solver_gpu.json").read_text())
    assert result["whole_models"]["diag"]["Llama-2-7B"]["matrices"] == 224
    assert [row["shape"] for row in result["rows"]] == [[4096, 4096], [11008, 4096], [4096, 11008]]
    for row in result["rows"]:
        out, width = row["measured_shape"]
        # About a dozen block products, 2 * out * in * b each, and the sweep.
        products = row["flop_per_iteration"] / (2 * out * width * row["block"])
        assert 8 < products < 24
        assert max(row["converged"], row["loss_default"]) < 0.7 * row["start"]


def test_solver_gpu_refuses_in_one_line_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("solver_gpu.py")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--device cpu --small" in done.stderr


def test_figures_of_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from solver import Run, compare, spread, thinned

    slow = Run([(0.0, 1.0), (10.0, 0.505), (20.0, 0.5), (21.0, 0.5)], 0.5, 22.0)
    fast = Run([(0.0, 1.0), (0.1, 0.504), (0.2, 0.49), (0.3, 0.4)], 0.4, 0.4)
    short = Run(fast.trace[:3], 0.49, 0.25)
    row = compare({"exact": fast, "short": short, "adam": slow})
    assert row["ratio_short"] == pytest.approx(20.0 / 0.2)
    assert row["lower_exact"] == pytest.approx(0.2)
    assert row["lower_short"] == pytest.approx(0.02)
    assert compare({"exact": slow, "adam": fast})["ratio_exact"] is None
    other_digits = Run(slow.trace, 0.49999, 22.0)  # no loss of the trace is as low
    assert compare({"exact": fast, "adam": other_digits})["seconds_adam"] == 20.0
    assert spread(list(range(10)), 3) == [0, 3, 6]
    assert spread([1, 2], None) == [1, 2]
    trace = [(0.0, 2.0)] + [(0.001 * step, 1 / step) for step in range(1, 20001)]
    points = thinned(trace)
    assert 100 < len(points) < 200
    assert points[0] == [0.0, 2.0]
    assert points[-1] == [20.0, 1 / 20000]


@pytest.mark.slow
def test_ablation_runs_in_pieces_and_draws(shared: Path, tmp_path: Path) -> None:
    options = [
        "--shared",
        str(shared),
        "--cases",
        "1",
        "--groups",
        "methods",
        "--max-chars",
        "3000",
    ]
    options += ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--images", str(tmp_path)]
    stopped = run("ablation.py", *options, "--minutes", "0")
    assert stopped.returncode == 1
    assert "3 runs left" in stopped.stderr
    done = run("ablation.py", *options)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "ablation.json").read_text())
    names = [key.partition(": ")[2] for key in data["runs"]]
    assert names == ["dense", "sparsegpt", "wanda"]
    rows = list(data["runs"].values())
    assert rows[0]["perplexity"]["wiki"] < rows[1]["perplexity"]["wiki"]
    assert "| sparsegpt | " in (tmp_path / "ablation.md").read_text()
    for name in ("size", "shrinkage", "target-damping"):
        assert (tmp_path / f"ablation-{name}.png").stat().st_size > 5000


def test_budget_compares_at_equal_bytes_and_draws(
    monkeypatch: pytest.MonkeyPatch, shared: Path, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from budget import CASES, draw, key, table, uniform

    rules, size = uniform(shared / "models" / "babyllama-1m", 16)
    assert {rule["block"] for rule in rules.values()} == {16}
    assert size == pytest.approx(0.734, abs=1e-3)
    runs = {
        key(case, block, 0, kind): {
            "model": case.model,
            "domain": case.domain,
            "block": block,
            "kind": kind,
            "seed": 0,
            "seconds": 1.0,
            "size": 1 - block / 100,
            "perplexity": {"stories": 2.0 + block, "wiki": 30.0},
            "kl": {"stories": block / 100, "wiki": 0.5},
            "same_top1": {"stories": 1 - block / 200, "wiki": 0.7},
        }
        for case in CASES
        for block in (0, *case.blocks)
        for kind in (("uniform", "size") if block else ("dense",))
    }
    text = table(runs, {"machine": {"cpu": "one", "threads": 1}, "max_chars": 100})
    figures = "18.0000 | 0.16000 | 92.00% | 30.0000 | 0.50000 | 70.00%"
    assert f"| babyllama-1m, stories | chosen | 0.8400 | {figures} | 1 | 1 |" in text
    draw(runs, tmp_path / "budget.png")
    assert (tmp_path / "budget.png").stat().st_size > 5000


def test_the_real_model_is_where_the_script_puts_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from common import smollm2_folder

    monkeypatch.setenv("ARMOR_SMOLLM2", str(tmp_path))
    with pytest.raises(ArmorError, match="make smollm2, or set ARMOR_SMOLLM2"):
        smollm2_folder()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert smollm2_folder() == tmp_path


def real_row(label: str, perplexity: float, size: int, **more: object) -> dict[str, object]:
    """A row of real_model.json; KL is a tenth of the perplexity on "one", a half on "two"."""
    row: dict[str, object] = {
        "label": label,
        "perplexity": {"one": perplexity, "two": 2 * perplexity},
        "kl": {"one": perplexity / 10, "two": perplexity / 2},
        "linear_bytes": size,
        "dense_linear_bytes": 20_000_000,
        "seconds": 12.5,
        "gap_left": {"one": 0.25},
        "rival": False,
        "stored_dense": False,
        "peak_memory_bytes": 1.5e9,
        "resumed_layers": 0,
        "generalisation": 1.25,
    }
    return {**row, **more}


def test_the_page_of_a_real_model_hides_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from real_model_page import page

    unknown = {"kl": None, "gap_left": None, "peak_memory_bytes": None, "generalisation": None}
    dense = real_row("dense", 10, 20_000_000, seconds=0, **unknown)
    armor = real_row("armor", 12, 12_000_000, resumed_layers=3)
    larger = real_row("larger", 11, 12_100_000)
    split = real_row("split", 1, 12_050_000) | {"perplexity": {"one": 11.9, "two": None}}
    rounded = real_row("int4", 11, 5_000_000, rival=True, stored_dense=True, generalisation=None)
    about = {
        "date": "2026-11-26",
        "revision": "abc",
        "bos": "never",
        "calibration": "c.txt",
        "machine": {"cpu": "one", "threads": 2},
        "versions": {"torch": "2", "transformers": "5"},
        "options": {"model": "some", "samples": 8, "seq_len": 512, "max_chars": 60_000},
        "texts": {name: {"windows": 3, "tokens": 1533} for name in ("one", "two")},
        "tasks": {},
    }
    first = page({**about, "rows": [dense]})
    assert "windows of 512 tokens without BOS" in first
    assert "calibrated on 4,096 tokens (8 windows) of c.txt" in first
    assert "the first 60,000 characters" in first
    assert "Lower" not in first
    assert "###" in first
    assert "buy otherwise" not in first
    tasks = {
        "dense": [
            {"task": "a", "n": 200, "acc": 0.5, "acc_stderr": 0.035}
            | {"acc_norm": 0.25, "acc_norm_stderr": 0.031},
            {"task": "b", "n": 200, "acc": 0.125, "acc_stderr": 0.0234},
        ],
        "armor": [{"task": "a", "n": 200, "acc": 0.25, "acc_stderr": None}],
    }
    rows = [dense, armor, larger, split, rounded]
    text = page({**about, "rows": rows, "tasks": tasks})
    figures = "12.000 | 1.2000 | 24.000 | 6.0000 | 25.0% | 12.0 | 0.600 | > 12.5 | 1.50 | 1.25"
    assert text.count(f"| armor | {figures} |") == 2
    assert "| dense | 10.000 | - | 20.000 | - | - | 20.0 | 1.000 | - | - | - |" in text
    assert "| split | 11.900 | 0.1000 | inf | " in text
    assert "| 25.0% | 5.0\\* | 0.250 | 12.5 | 1.50 | - |" in text
    said = "armor at no more bytes (to 0.5 %): split on one"
    assert f"Lower perplexity than {said}; int4 on one and two." in text
    assert f"Lower KL than {said} and two; int4 on one and two." in text
    assert "| method | a acc | a acc_norm | b acc |" in text
    assert "| dense | 50.0 ± 3.5 | 25.0 ± 3.1 | 12.5 ± 2.3 |" in text
    assert "| armor | 25.0 ± - | ... | ... |" in text
    alone = page({**about, "rows": [dense, armor, larger]})
    assert "Lower perplexity than armor at no more bytes (to 0.5 %): none." in alone


def test_a_real_model_is_compared_in_the_order_of_importance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("ARMOR_SHARED", str(tmp_path))
    from real_model import parse, settings_of

    monkeypatch.setattr(sys, "argv", ["real_model.py"])
    settings = settings_of(parse())
    own = ["armor", "sparsegpt", "wanda", "armor-paper"]
    rivals = ["sparsegpt-same-bytes", "wanda-same-bytes", "sparsegpt-lowrank", "int8", "int4"]
    assert list(settings) == own + rivals
    for label in rivals[:3]:  # not the bytes of the last row with wrappers
        assert settings[label].label == "armor"
    config = settings["armor"]
    assert (config.samples, config.seq_len, config.bos) == (128, 512, "never")
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--no-rivals"])
    assert list(settings_of(parse())) == own


def test_prune_time_takes_the_real_model_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("ARMOR_SMOLLM2", str(tmp_path / "smollm2"))
    monkeypatch.setenv("ARMOR_SHARED", str(tmp_path))
    from prune_time import WIKITEXT2, parse, places

    (tmp_path / "smollm2").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "smollm2" / name).touch()

    def given(*options: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["prune_time.py", *options])
        args = parse()
        assert (args.samples, args.seq_len, args.block_size) == ("128", "256", "16")
        return places(args)

    assert given("m", "c.txt") == ("m", "c.txt")
    assert given("--model", "m", "c.txt") == ("m", "c.txt")
    real = (str(tmp_path / "smollm2"), str(tmp_path / WIKITEXT2))
    assert given("--model", "smollm2") == given("smollm2") == real
    for refused in ([], ["m", "c", "more"], ["--calibration", "c"]):
        with pytest.raises(SystemExit):
            given(*refused)


def test_ablation_names_a_run_by_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from ablation import CASES, PRESETS, Store, sweep

    key = Store.key
    assert key(CASES[0], {}) == key(CASES[0], {"shrinkage": 0.5, "samples": 128})
    assert key(CASES[0], {}) != key(CASES[1], {})
    keys = {key(CASES[0], changes) for rows in sweep().values() for changes in rows}
    assert {key(CASES[0], {}), key(CASES[0], PRESETS["paper"])} <= keys


def test_runtime_patterns_counts_memory_and_names_backends(tmp_path: Path) -> None:
    options = ["--shape", "64x128", "--block", "16", "--batches", "1,3", "--repeats", "1"]
    done = run("runtime_patterns.py", *options, "--patterns", "4:8,50%", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "runtime_patterns.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["backend"] == "cpu"
        assert min(row["dense"], row["armor"], row["reference"]) > 0
        if row["pattern"] == "4:8":
            bits = 16 if row["dtype"] == "bfloat16" else 32
            wrappers = (64 + 128) * 16 / (64 * 128)
            assert row["weight_share"] == pytest.approx(0.5 + 7 / 8 / bits + wrappers)


def test_the_page_of_generalisation_has_a_row_for_each_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from generalisation import STUDIES, page

    figures = {"fitted": 0.1, "held_out": 0.2, "ratio": 2.0, "last_fitted": 0.3}
    rows = [
        {"settings": one, **figures, "last_held_out": 0.45, "kl": 0.06, "seconds": 7.4}
        for one in STUDIES["damping of the target"]
    ]
    made = page({"damping of the target": rows}, "about")
    assert (
        "| samples 32, target_damping 0.3 | 0.1000 | 0.2000 | 2.00 | 0.3000 | 0.4500 | 0.0600 | 7 |"
        in made
    )
    assert made.count("| samples 32") == len(rows)


def test_generalisation_runs_on_a_small_model(shared: Path, tmp_path: Path) -> None:
    options = ["--model", str(shared / "models" / "babyllama-1m"), "--blocks", "1"]
    options += ["--calibration", str(shared / "data/tinystories/tinystories_valid_sample.txt")]
    options += ["--studies", "seed", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    done = run("generalisation.py", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "generalisation.json").read_text())["studies"]["seed"]
    assert [row["settings"]["seed"] for row in rows] == [0, 1, 2]
    assert all(row["fitted"] > 0 and row["held_out"] > 0 and row["kl"] > 0 for row in rows)
    assert len({row["held_out"] for row in rows}) == 3


def test_quantised_speed_times_every_form_of_a_layer(tmp_path: Path) -> None:
    options = ["--shape", "64x128", "--block", "16", "--batches", "1,3", "--repeats", "1"]
    done = run("quantised_speed.py", *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "quantised_speed.json").read_text())
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    assert result["rows"][0]["seconds"].keys() == result["bytes"].keys()
    assert result["bytes"]["int8"] == 64 * 64 + 64 * 32 // 2 + 64 * 2 + 192 * 16 + 192 * 2
    assert result["bytes"]["int4"] == result["bytes"]["int8"] - 64 * 32


def test_quantised_rounds_a_finished_layer_and_writes_its_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import torch
    from quantised import page, rounded_afterwards

    from armor.factorize.rounding import Storage
    from armor.sparse.factors import Factors
    from armor.sparse.layer import PackedLayer
    from armor.sparse.masks import nm_mask

    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight.abs())
    eye = torch.eye(16).repeat(4, 1, 1)
    plain = Factors(weight * mask, mask)
    for factors in (plain, Factors(plain.core, mask, eye[:1], eye)):
        layer = PackedLayer.from_factors(factors)
        found = rounded_afterwards(layer, Storage("int4", "int8", torch.float32))
        assert found.core == "int4"
        assert (found.left_scales is None) == (factors.left is None)
        assert torch.equal(found.core_indices, layer.core_indices)
        error = (found.dense() - layer.dense()).norm() / layer.dense().norm()
        assert 0.02 < error < 0.15
    row = {"label": "int8", "size": 0.2, "perplexity": {"a": 2.5, "b": 3.0}}
    data = {
        "model": "m",
        "date": "today",
        "machine": {"cpu": "c"},
        "revision": "r",
        "pruned": "",
        "rows": [
            row | {"label": "dense", "size": 1.0, "kl": None},
            row | {"kl": {"a": 0.1, "b": 0.2}},
        ],
    }
    assert page(data).splitlines()[-2:] == [
        "| dense | 1.000 | 2.500 | - | 3.000 | - |",
        "| int8 | 0.200 | 2.500 | 0.1000 | 3.000 | 0.2000 |",
    ]
