"""What was measured is kept, and measured again only when something changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from armor.evaluation.record import Record, key_of, model_id, task_files_id


def test_rows_survive_and_come_first_when_asked_for(tmp_path: Path) -> None:
    path, about = tmp_path / "r.json", {"model_id": "m", "dtype": "float32"}
    record = Record(path, about)
    record.add("tasks", "a", {"value": 1})
    record.add("tasks", "b", {"value": 2})
    record.add("perplexity", "c", {"value": 3})
    again = Record(path, {"model_id": "m", "dtype": None})
    assert again.about == about
    assert again.known("b") == {"value": 2, "key": "b"}
    assert again.known("d") is None
    again.add("tasks", "d", {"value": 4})
    data = json.loads(path.read_text())
    assert [row["key"] for row in data["tasks"]] == ["d", "a", "b"]
    assert [row["key"] for row in data["perplexity"]] == ["c"]


def test_another_model_fresh_and_damaged_files_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Record(path, {"model_id": "m"}).add("tasks", "a", {"value": 1})
    assert Record(path, {"model_id": "m"}, fresh=True).known("a") is None
    assert Record(path, {"model_id": "other"}).known("a") is None
    path.write_text("{cut off")
    assert Record(path, {"model_id": "m"}).known("a") is None


def test_identities_follow_the_contents(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = model_id(folder)
    assert model_id(folder) == before
    (folder / "eval.json").write_text("{}")  # what was measured does not change the model
    assert model_id(folder) == before
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    assert model_id(folder) != before
    (folder / "t.yaml").write_text("task: a")
    tasks = task_files_id(folder)
    (folder / "t.yaml").write_text("task: b")
    assert task_files_id(folder) != tasks
    assert key_of(1, "a") != key_of(1, "b")
