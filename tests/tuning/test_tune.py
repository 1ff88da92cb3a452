"""Tuning on a tiny model: certified, resumable, of the same form; bad input is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.checkpoint.reader import Checkpoint
from armor.cli import app
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.evaluation.perplexity import evaluate
from armor.models.folder import ModelFolder
from armor.models.load import load_model, load_tokenizer
from armor.tuning import plan as module
from armor.tuning.config import TuneConfig
from armor.tuning.plan import Plan
from armor.tuning.prune import prune_and_tune
from armor.tuning.student import Student
from armor.tuning.tune import TuneProgress, TuneResult, tune

Tuning = Callable[..., TuneConfig]
Settings = Callable[..., PruneConfig]


def contents(folder: Path) -> dict[str, bytes]:
    """All of a checkpoint that must not depend on how the run went."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "armor_run.json"
    }


def test_the_divergence_falls_and_the_form_stays(
    tiny_model: Path, pruned: Path, tuning: Tuning, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    result = tune(pruned, tiny_model, tuning(), out)
    curve = result.curve
    assert curve.after < 0.9 * curve.before
    assert set(curve.held_out) == {0, *range(2, 21, 2)}
    before, after = Checkpoint.open(pruned), Checkpoint.open(out)
    assert before.layers == after.layers
    for name, stored in before.tensors.items():
        same = b"".join(stored.chunks()) == b"".join(after.tensors[name].chunks())
        trained = name.endswith((".core_values", ".left", ".right", "norm.weight"))
        assert same != trained, name
    record = json.loads((out / "armor_run.json").read_text())["tuning"]
    assert record["before"] == curve.before
    assert record["after"] == curve.after == record["curve"]["held_out"][str(curve.best)]
    # As the evaluation, which knows nothing of tuning, sees it on text that neither saw.
    fresh = "\n".join(f"row {i}: the cube of {i} is {i**3}." for i in range(60))
    dense, tokenizer = load_model(tiny_model), load_tokenizer(ModelFolder.open(tiny_model))
    found = [
        evaluate(armor.load(folder), tokenizer, [fresh], seq_len=32, reference=dense).divergence
        for folder in (pruned, out)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1].kl < found[0].kl


def test_what_makes_it_worse_is_not_kept(
    tiny_model: Path, pruned: Path, tuning: Tuning, tmp_path: Path
) -> None:
    result = tune(pruned, tiny_model, tuning(step_size=10.0), tmp_path / "tuned")
    assert result.curve.best == 0
    assert result.curve.after == result.curve.before
    assert contents(tmp_path / "tuned") == contents(pruned)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tiny_model: Path, pruned: Path, tuning: Tuning, tmp_path: Path
) -> None:
    whole = tune(pruned, tiny_model, tuning(), tmp_path / "whole")

    def stop(done: int, *_: Any) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(pruned, tiny_model, tuning(), tmp_path / "out", progress=TuneProgress(stepped=stop))
    assert not (tmp_path / "out").exists()
    result = tune(pruned, tiny_model, tuning(), tmp_path / "out")
    assert result.resumed == 6  # the judgement before
    assert result.curve == whole.curve
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not unfinished_folder(tmp_path / "out").exists()
    assert tune(pruned, tiny_model, tuning(), tmp_path / "out").found


def test_other_settings_do_not_go_on(
    tiny_model: Path, pruned: Path, tuning: Tuning, tmp_path: Path
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(pruned, tiny_model, tuning(), tmp_path / "out", progress=TuneProgress(stepped=stop))
    with pytest.raises(ArmorError, match="steps was 20 and is 30"):
        tune(pruned, tiny_model, tuning(steps=30), tmp_path / "out")
    tune(pruned, tiny_model, tuning(steps=2), tmp_path / "out", fresh=True)
    with pytest.raises(ArmorError, match="of another run: steps was 2 and is 20"):
        tune(pruned, tiny_model, tuning(), tmp_path / "out")


def test_texts_given_in_memory_are_not_written_down(
    tiny_model: Path, pruned: Path, tuning: Tuning, tmp_path: Path
) -> None:
    secret = tuple(f"a secret text, number {i}, that nobody is to read" for i in range(80))
    config = tuning(calibration=secret, samples=16, steps=1)
    tune(pruned, tiny_model, config, tmp_path / "out")
    assert "secret" not in (tmp_path / "out" / "armor_run.json").read_text()
    assert tune(pruned, tiny_model, config, tmp_path / "out").found


def test_prune_and_tune_is_both(
    tiny_model: Path,
    pruned: Path,
    settings: Settings,
    tuning: Tuning,
    tmp_path: Path,
) -> None:
    tune(pruned, tiny_model, tuning(), tmp_path / "apart")

    def stop(done: int, *_: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def run(**changes: Any) -> TuneResult:
        found = prune_and_tune(tiny_model, settings(), tuning(), tmp_path / "out", **changes)
        return found[1]

    with pytest.raises(KeyboardInterrupt):
        run(tuning_progress=TuneProgress(stepped=stop))
    assert run().resumed == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "apart")
    assert not unfinished_folder(tmp_path / "out").exists()
    assert run().found
    with pytest.raises(ArmorError, match="it is tuned"):
        armor.prune(tiny_model, settings(), tmp_path / "out")
    with pytest.raises(ArmorError, match="steps was 20 and is 5"):
        prune_and_tune(tiny_model, settings(), tuning(steps=5), tmp_path / "out")
    armor.prune(tiny_model, settings(), tmp_path / "plain")
    with pytest.raises(ArmorError, match="it is not tuned"):
        prune_and_tune(tiny_model, settings(), tuning(), tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"calibration": "absent.txt"}, "absent.txt"),
        ({"samples": 100_000}, "give a longer text"),
        ({"seq_len": 4096}, "longer than the model's context"),
        ({"calibration": ("short",)}, "give a longer text"),
    ],
)
def test_bad_input_is_one_line(
    tiny_model: Path,
    pruned: Path,
    tuning: Tuning,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(ArmorError, match=says):
        tune(pruned, tiny_model, tuning(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not unfinished_folder(tmp_path / "out").exists()


def test_computing_blocks_twice_gives_the_same(
    tiny_model: Path,
    pruned: Path,
    tuning: Tuning,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[Plan] = []
    progress = TuneProgress(planned=plans.append)
    tune(pruned, tiny_model, tuning(steps=4), tmp_path / "plain", progress=progress)
    (plain,) = plans
    assert not plain.checkpointed
    assert plain.trained == sum(p.numel() for p in trained(pruned).values())
    monkeypatch.setattr(module, "available_memory", lambda: plain.needed - 1)
    tune(pruned, tiny_model, tuning(steps=4), tmp_path / "twice", progress=progress)
    assert plans[1].checkpointed
    assert contents(tmp_path / "twice") == contents(tmp_path / "plain")
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    with pytest.raises(ArmorError, match="of memory"):
        tune(pruned, tiny_model, tuning(steps=4), tmp_path / "no")


def trained(folder: Path) -> dict[str, nn.Parameter]:
    """What is trained of a checkpoint."""
    return Student.of(load_model(folder, torch.float32), Checkpoint.open(folder)).trained


def test_another_model_is_refused(
    make_llama: Callable[..., Any],
    byte_tokenizer: Any,
    pruned: Path,
    tuning: Tuning,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    make_llama(hidden_size=64).save_pretrained(other)
    byte_tokenizer.save_pretrained(other)
    with pytest.raises(ArmorError, match="hidden_size is 64, not 32"):
        tune(pruned, other, tuning(), tmp_path / "out")


def test_the_reference_must_be_the_dense_model(
    pruned: Path, tuning: Tuning, tmp_path: Path
) -> None:
    with pytest.raises(ArmorError, match="dense"):
        tune(pruned, pruned, tuning(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"mode": "off"}, {"step_size": 0.0}, {"bos": "maybe"}, {"samples": 0}]
)
def test_impossible_settings(tuning: Tuning, changes: dict[str, Any]) -> None:
    with pytest.raises(ArmorError):
        tuning(**changes)


def test_the_commands(tiny_model: Path, pruned: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    arguments = ["tune", str(pruned), "--reference", str(tiny_model), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--steps", "3", "--samples", "16"])
    assert result.exit_code == 0, result.output
    assert "divergence from the dense model on held-out windows" in result.output
    events = [
        json.loads(line) for line in (tmp_path / "tuned.events.jsonl").read_text().splitlines()
    ]
    assert [event["number"] for event in events if event["kind"] == "step_taken"] == [1, 2, 3]
    shown = CliRunner().invoke(app, ["inspect", str(out)])
    assert "tuned" in shown.output
    both = tmp_path / "both"
    arguments = ["prune", str(tiny_model), "--calibration", str(text), "--out", str(both)]
    arguments += ["--samples", "16", "--seq-len", "32", "--iterations", "1", "--tune"]
    assert CliRunner().invoke(app, [*arguments, "halfway"]).exception is not None
    assert not both.exists()
    result = CliRunner().invoke(app, [*arguments, "block"])
    assert result.exit_code == 0, result.output
    assert f"wrote {both}" in " ".join(result.output.split())
    assert "divergence from the dense model on held-out windows" in " ".join(result.output.split())
    again = CliRunner().invoke(app, [*arguments, "block"])
    assert "is complete: this command made it" in " ".join(again.output.split())
    assert torch.is_tensor(armor.load(out)(torch.tensor([[1, 2]])).logits)
