"""Reports of files that lie: a page, or one line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from armor.errors import ArmorError
from armor.report import collect, write_report

CASES = 60
ROW = {"linear_bytes": 60, "dense_linear_bytes": 100, "seconds": 3.0, "gap_left": {"text": 0.1}}
FILES: dict[str, Any] = {
    "results.json": {
        "model": "m",
        "seq_len": 64,
        "max_chars": None,
        "rows": [
            {"label": "dense", "method": "dense", "perplexity": {"text": 10.0}}
            | ROW
            | {"gap_left": None},
            {"label": "armor", "method": "armor", "perplexity": {"text": 11.0}} | ROW,
        ],
    },
    "eval.json": {
        "model": "m",
        "perplexity": [
            {"source": "text", "perplexity": 11.0, "ci95": [10.0, 12.0]}
            | {"bits_per_byte": 1.0, "seq_len": 64, "tokens": 1000}
        ],
        "tasks": [
            {"task": "piqa", "shots": 0, "metric": "acc"}
            | {"value": 0.5, "stderr": 0.1, "samples": 100}
        ],
    },
    "bench.json": {
        "machine": {"name": "cpu", "threads": 2},
        "layers": [
            {"layer": "8x8", "batch": 1, "contender": name, "seconds": 1e-3}
            for name in ("dense", "2:4", "ARMOR")
        ],
        "model": [
            {"contender": name, "prefill": 1.0, "decode": 1.0, "bytes": 10}
            for name in ("dense", "ARMOR")
        ],
    },
}


@pytest.mark.parametrize("file", FILES)
def test_a_page_or_one_line(folder: Path, tmp_path: Path, mutator: Any, file: str) -> None:
    for name, data in FILES.items():
        if name != "results.json" or name == file:
            (folder / name).write_text(json.dumps(data))
    write_report(collect(folder), tmp_path / "sound.html", None)
    outcomes: Counter[str] = Counter()
    for _ in range(CASES):
        (folder / file).write_text(mutator.json(FILES[file]))
        try:
            write_report(collect(folder), tmp_path / "page.html", None)
        except ArmorError as error:
            message = str(error)
            outcomes[
                message if len(message) > 600 or not message.isprintable() else "one line"
            ] += 1
        else:
            outcomes["a page"] += 1
    assert outcomes.keys() <= {"a page", "one line"}
    assert outcomes["a page"] > CASES // 10


@pytest.mark.parametrize("label", ["../packed", "/", "..", "a/b", ""])
def test_labels_that_lead_out_of_the_comparison(folder: Path, tmp_path: Path, label: str) -> None:
    (tmp_path / "comparison").mkdir()
    shutil.copytree(folder, tmp_path / "comparison" / "armor")
    data = json.loads(json.dumps(FILES["results.json"]))
    (tmp_path / "comparison" / "results.json").write_text(json.dumps(data))
    assert set(collect(tmp_path / "comparison").runs) == {"armor"}
    data["rows"][1]["label"] = label
    (tmp_path / "comparison" / "results.json").write_text(json.dumps(data))
    with pytest.raises(ArmorError, match="is damaged"):
        collect(tmp_path / "comparison")
