"""lm-evaluation-harness on a model in hand: tasks by name, from its own list or local files."""

from __future__ import annotations

import difflib
import io
import logging
import random
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armor.errors import ArmorError
from armor.evaluation.record import task_files_id
from armor.evaluation.tasks import TaskResult, TaskSpec, read_result

_SEED, _OTHER_SEED = 0, 1234  # the harness's defaults
_BOOTSTRAPS = 1000  # for the error of metrics that are no mean; accuracies have a closed form


class TaskList:
    """The tasks that can be run: those of a local folder, and the harness's own thousands.

    Attributes:
        specs: what to run, every one found. files_id: digest of the local folder's definitions.
    """

    def __init__(self, specs: Sequence[TaskSpec], task_dir: Path | None = None) -> None:
        """Find every task of `specs`; a tag becomes the tasks that bear it.

        The harness's own list takes seconds to read, so it is left out where `task_dir`, a folder
        of its YAML files, defines all of them.

        Raises:
            ArmorError: the harness is not installed, no such folder, or an unknown task.
        """
        _require()
        if task_dir is not None and not task_dir.is_dir():
            raise ArmorError(f"--task-dir {task_dir} is not a folder")
        from lm_eval.tasks import TaskManager

        with _quiet():
            manager = TaskManager(include_path=task_dir, include_defaults=False)
            local = manager.all_tasks
            if not {spec.name for spec in specs} <= set(local):
                manager = TaskManager(include_path=task_dir)
        self.manager = manager
        self.files_id = task_files_id(task_dir)
        self.specs: list[TaskSpec] = []
        for spec in specs:
            if spec.name not in manager.all_tasks:
                raise ArmorError(_unknown(spec.name, manager.all_tasks, local, task_dir))
            is_tag = spec.name in manager.all_tags
            names = sorted(manager.task_index[spec.name].tags) if is_tag else [spec.name]
            self.specs += [replace(spec, name=name) for name in names]


def run_task(
    tasks: TaskList, spec: TaskSpec, model: Any, tokenizer: Any, batch_size: int = 8
) -> TaskResult:
    """Run one task or group on `model`, a `transformers.PreTrainedModel`, as it is.

    Seeds the global generators as the harness's own command does: some tasks shuffle with them.

    Raises:
        ArmorError: its data cannot be read (no network, a gated or missing data set, a damaged
            file), or its prompts do not fit the model's context.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    begin = time.perf_counter()
    with _quiet():
        loaded = _load(tasks, spec)
        try:
            found = evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                loaded,
                limit=spec.limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=False,
            )
        except AssertionError as error:
            if "max_length" not in str(error):
                raise
            raise ArmorError(
                f"task {spec.name} does not fit the model's context ({_reason(error)})"
            ) from error
    assert found is not None  # given on the first of several processes; there is one
    return read_result(spec.name, found, spec.limit, time.perf_counter() - begin)


def _load(tasks: TaskList, spec: TaskSpec) -> Any:
    """The task or group with its data and shots, as ``lm_eval.evaluator.evaluate`` takes it."""
    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)  # noqa: NPY002 - the generator the harness's tasks use
    torch.manual_seed(_OTHER_SEED)
    try:
        loaded = tasks.manager.load([spec.name])
    except Exception as error:
        # The libraries below raise a dozen types: no network, no such file, a gated data set, ...
        raise ArmorError(
            f"cannot load task {spec.name} ({_reason(error)}); check the network and the access to "
            "its data set, or give --task-dir with tasks on local files"
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        # A task that says 0 cannot take examples.
        if own != 0:
            task.set_config("num_fewshot", own or 0 if spec.shots is None else spec.shots)
        task.set_fewshot_seed(_OTHER_SEED)
    return loaded


def _require() -> None:
    try:
        with _quiet():
            import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise ArmorError(
            f"tasks need lm-evaluation-harness ({error}): pip install 'armor-prune[eval]'"
        ) from None


def _unknown(name: str, known: Sequence[str], local: Sequence[str], folder: Path | None) -> str:
    close = difflib.get_close_matches(name, known, 3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    if folder is not None:
        hint += f"; {folder} defines: {', '.join(local) or 'nothing'}"
    return f"unknown task {name!r}{hint}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's log off; its progress bars only where somebody watches."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.CRITICAL)
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(shown):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
