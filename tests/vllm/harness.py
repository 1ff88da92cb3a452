"""A task of lm-eval: ``python harness.py vllm|hf FOLDER TASKS NAME RESULT.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    kind, folder, tasks, name, result = sys.argv[1:]
    import lm_eval
    from lm_eval.tasks import TaskManager

    import armor  # noqa: F401 (for "hf": teaches transformers the format)

    options = {"pretrained": folder, "dtype": "float32"}
    if kind == "vllm":
        options |= {"enforce_eager": True, "gpu_memory_utilization": 0.1, "max_model_len": 128}
    else:
        options |= {"device": "cpu"}
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=options,
        tasks=[name],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        batch_size=4,
        log_samples=True,
    )
    scores = [[answer[0][0] for answer in s["resps"]] for s in found["samples"][name]]
    accuracy = found["results"][name]["acc,none"]
    Path(result).write_text(json.dumps({"accuracy": accuracy, "scores": scores}, default=float))


if __name__ == "__main__":
    main()
