"""Five zero-shot tasks of lm-evaluation-harness on local files, for benchmarks/real_model.py.

The definitions are the YAML files in benchmarks/tasks. The data lies elsewhere on every machine, so
each has ``{data}`` in place of its folder, and is written out with the folder filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from armor.checkpoint.jsonfile import write_text
from armor.errors import ArmorError

DEFINITIONS = Path(__file__).resolve().parent / "tasks"
#: In the order of the tables.
TASKS = ("arc_easy", "piqa", "hellaswag", "winogrande", "lambada")


def write_definitions(folder: Path, data: Path) -> Path:
    """Write the definitions into `folder`, for the rows in `data`. Returns `folder`.

    Raises:
        ArmorError: a file of rows is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        text = (DEFINITIONS / f"{name}.yaml").read_text(encoding="utf-8")
        text = text.replace("{data}", data.resolve().as_posix())
        rows = Path(text.partition('test: "')[2].partition('"')[0])
        if not rows.is_file():
            raise ArmorError(f"task {name} needs {rows}: set ARMOR_SHARED, or --tasks-limit 0")
        write_text(folder / f"{name}.yaml", text)
    return folder


def accuracies(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a row of `Measurement.task`: ``n``, and accuracies with their standard errors.

    The harness's row has the error of plain accuracy alone. Both are means of zeros and ones, whose
    error follows from the mean.
    """
    count = result["samples"]
    found: dict[str, Any] = {"task": result["task"], "n": count}
    for metric in ("acc", "acc_norm"):
        if (value := result["metrics"].get(metric)) is not None:
            error = sqrt(value * (1 - value) / (count - 1)) if count > 1 else None
            found |= {metric: value, f"{metric}_stderr": error}
    return {**found, "seconds": result["seconds"]}
