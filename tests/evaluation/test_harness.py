"""lm-evaluation-harness on local task files: against an independent computation, and refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.evaluation.harness import TaskList, run_task
from armor.evaluation.tasks import TaskSpec, parse_tasks
from armor.models.load import load_model, load_tokenizer

pytest.importorskip("lm_eval")

WriteTask = Callable[..., Path]
Rows = list[dict[str, Any]]


def score(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Log-likelihood of `continuation`, with nothing but transformers."""
    start = len(tokenizer.encode(context))
    ids = torch.tensor(tokenizer.encode(context + continuation))
    with torch.no_grad():
        log_p = model(ids[None]).logits[0].log_softmax(-1)
    return float(log_p[start - 1 : -1].gather(1, ids[start:, None]).sum())


@pytest.mark.parametrize("shots", [0, 2])
def test_accuracy_equals_an_independent_computation(
    tiny_model: Path, write_task: WriteTask, sums: Rows, shots: int
) -> None:
    tasks = TaskList([TaskSpec("sums", shots)], write_task("sums", sums))
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    result = run_task(tasks, tasks.specs[0], model, tokenizer)
    assert (result.task, result.shots, result.samples) == ("sums", shots, len(sums))
    assert (result.metric, result.version) == ("acc", "1.0")
    again = run_task(tasks, tasks.specs[0], model, tokenizer, batch_size=3)
    assert again.value == result.value
    if shots:  # the examples are the harness's to draw
        return
    right = 0
    for row in sums:
        scores = [score(model, tokenizer, row["ctx"], f" {choice}") for choice in row["choices"]]
        right += scores.index(max(scores)) == row["gold"]
    assert 0 < right < len(sums)
    assert result.value == pytest.approx(right / len(sums))
    assert result.stderr is not None
    limited = run_task(tasks, TaskSpec("sums", None, 5), model, tokenizer)
    assert (limited.samples, limited.limit) == (5, 5)


def test_a_group_and_a_tag(tiny_model: Path, write_task: WriteTask, sums: Rows) -> None:
    write_task("low", sums[:4])
    folder = write_task("high", sums[4:])
    group = "group: both\ntask: [low, high]\naggregate_metric_list:\n  - metric: acc\n"
    (folder / "both.yaml").write_text(group + "    weight_by_size: true\n")
    high = folder / "high.yaml"
    high.write_text(high.read_text() + "tag: hard\n")
    tasks = TaskList(parse_tasks("both:1,hard"), folder)
    assert tasks.specs == [TaskSpec("both", 1), TaskSpec("high")]
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    result = run_task(tasks, tasks.specs[0], model, tokenizer)
    assert (result.shots, result.samples) == (1, len(sums))
    assert set(result.subtasks) == {"low", "high"}
    weighted = (4 * result.subtasks["low"] + (len(sums) - 4) * result.subtasks["high"]) / len(sums)
    assert result.value == pytest.approx(weighted)


@pytest.mark.parametrize("name", ["arc_easy_test", "winogrande_dev"])
def test_an_armor_folder_scores_as_its_dense_export(
    shared: Path, tmp_path: Path, write_task: WriteTask, name: str
) -> None:
    rows = (shared / f"data/tasks/{name}.400.jsonl").read_text(encoding="utf-8").splitlines()
    columns = {"text": "gold", "choices": "ctxs", "target": "continuation"}
    arguments = columns if name == "winogrande_dev" else {}
    folder = write_task("local", [json.loads(row) for row in rows[:24]], **arguments)
    tasks = TaskList([TaskSpec("local")], folder)
    text = shared / "data/tinystories/tinystories_valid_sample.txt"
    config = PruneConfig(calibration=str(text), samples=4, seq_len=64, method="wanda")
    armor.prune(shared / "models/stories-260k", config, tmp_path / "pruned")
    armor.export_dense(tmp_path / "pruned", tmp_path / "dense")
    values = {}
    for kind in ("pruned", "dense"):
        model, tokenizer = load_model(str(tmp_path / kind)), load_tokenizer(str(tmp_path / kind))
        result = run_task(tasks, tasks.specs[0], model, tokenizer)
        values[kind] = result.value, result.samples
    assert values["pruned"] == values["dense"]
    assert values["pruned"][1] == 24


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_unknown_names_and_folders(tmp_path: Path, write_task: WriteTask, sums: Rows) -> None:
    folder = write_task("sums", sums)
    with pytest.raises(ArmorError) as caught:
        TaskList([TaskSpec("summs")], folder)
    assert "unknown task 'summs'; did you mean sums" in one_line(caught.value)
    assert "defines: sums" in str(caught.value)
    with pytest.raises(ArmorError, match="is not a folder"):
        TaskList([TaskSpec("sums")], tmp_path / "absent")


def test_data_out_of_reach(tiny_model: Path, write_task: WriteTask, sums: Rows) -> None:
    folder = write_task("sums", sums)
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    task = folder / "sums.yaml"
    hub = task.read_text().replace("dataset_path: json", "dataset_path: nobody/no-such-set")
    (folder / "hub.yaml").write_text(hub.replace("task: sums", "task: hub"))
    (folder / "sums.jsonl").unlink()
    for name in ("hub", "sums"):
        tasks = TaskList([TaskSpec(name)], folder)
        with pytest.raises(ArmorError, match=f"cannot load task {name} ") as caught:
            run_task(tasks, tasks.specs[0], model, tokenizer)
        assert "--task-dir" in one_line(caught.value)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ArmorError, match=r"pip install 'armor-prune\[eval\]'"):
        TaskList([TaskSpec("piqa")])
