"""lm-eval's own ``--model vllm`` gives what its ``--model hf`` gives."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: make vllm"
)
def test_same_scores(
    pruned: Callable[..., Path],
    write_task: Callable[..., Path],
    sums: list[dict[str, Any]],
    run_python: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder, tasks = pruned("Llama", {}), write_task("sums", sums)
    results = []
    for kind in ("hf", "vllm"):
        file = tmp_path / f"{kind}.json"
        done = run_python(HERE / "harness.py", kind, folder, tasks, "sums", file)
        assert done.code == 0, done.output[-6000:]
        results.append(json.loads(file.read_text()))
    theirs, ours = results
    assert ours["accuracy"] == theirs["accuracy"]
    for row, other in zip(ours["scores"], theirs["scores"], strict=True):
        assert list(map(float, row)) == pytest.approx(list(map(float, other)), abs=1e-3)
