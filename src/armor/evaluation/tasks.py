"""Which tasks to run and what came out: names, presets, results. The running is harness.py's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError


@dataclass(frozen=True)
class TaskSpec:
    """A task of lm-evaluation-harness.

    Attributes:
        name: a task or group.
        shots: examples in the prompt; None takes the task's own number.
        limit: documents of each task (its first ones); None takes all.
    """

    name: str
    shots: int | None = None
    limit: int | None = None


#: "paper": the tasks and shots of the ARMOR paper's Table 1, all documents.
PRESETS: dict[str, tuple[TaskSpec, ...]] = {
    "paper": (
        TaskSpec("mmlu", 5),
        TaskSpec("gsm8k", 8),
        TaskSpec("bbh", 3),
        TaskSpec("gpqa_main_n_shot", 5),
        TaskSpec("arc_challenge", 25),
        TaskSpec("winogrande", 5),
        TaskSpec("hellaswag", 0),
    ),
    "quick": tuple(
        TaskSpec(name, 0, 200) for name in ("arc_easy", "hellaswag", "piqa", "winogrande")
    ),
}


def parse_tasks(text: str, limit: int | None = None) -> list[TaskSpec]:
    """``paper``, ``quick`` or ``NAME[:SHOTS]``, any of them separated by commas.

    Args:
        limit: documents of each task, in place of a preset's.

    Raises:
        ArmorError: no name, a number of shots that is none, or a task named twice.
    """
    specs: list[TaskSpec] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word in PRESETS:
            specs += PRESETS[word]
            continue
        name, colon, shots = word.partition(":")
        if colon and not shots.isdecimal():
            raise ArmorError(f"--tasks {word}: {shots!r} is no number of shots; write NAME:SHOTS")
        specs.append(TaskSpec(name, int(shots) if colon else None))
    if not specs:
        raise ArmorError(f"--tasks names no task; give names or a preset: {', '.join(PRESETS)}")
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ArmorError(f"--tasks names {min(twice)} twice")
    if limit is None:
        return specs
    return [dataclasses.replace(spec, limit=limit) for spec in specs]


@dataclass(frozen=True)
class TaskResult:
    """One task or group.

    Attributes:
        task: its name. shots: examples in the prompt. limit: see `TaskSpec`.
        metric, value: the headline figure: plain accuracy, else exact match, else the task's first.
        stderr: standard error of `value`; None where the harness gives none.
        samples: documents read, over all subtasks.
        metrics: all figures, as ``metric`` or ``metric,filter``.
        subtasks: `value` of each task of a group.
        version: the task's own, if it states one. seconds: wall time.
    """

    task: str
    shots: int
    limit: int | None
    metric: str
    value: float
    stderr: float | None
    samples: int
    metrics: dict[str, float]
    subtasks: dict[str, float]
    version: str | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self)


def read_result(
    name: str, found: Mapping[str, Any], limit: int | None, seconds: float
) -> TaskResult:
    """`TaskResult` of the task or group `name` out of what ``lm_eval.evaluator.evaluate`` gives."""
    children = _leaves(name, found["group_subtasks"])
    metrics = _metrics(found["results"][name])
    metric = headline(metrics)
    version = found["versions"].get(name)
    stderr = found["results"][name].get(_stderr_key(metric))
    # A group's shots are its tasks' (they all have the same, as the group sets them).
    return TaskResult(
        task=name,
        shots=int(max(found["n-shot"].get(leaf, 0) for leaf in children)),
        limit=limit,
        metric=metric,
        value=metrics[metric],
        stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
        samples=sum(found["n-samples"][leaf]["effective"] for leaf in children),
        metrics=metrics,
        subtasks={
            leaf: values[headline(values)]
            for leaf in children
            if leaf != name
            for values in [_metrics(found["results"][leaf])]
        },
        version=None if version in (None, "Yaml", "N/A") else str(version),
        seconds=seconds,
    )


def headline(metrics: Mapping[str, float]) -> str:
    """The metric a table shows. Raises `ArmorError` where there is none."""
    for wanted in ("acc", "exact_match"):
        for name in metrics:
            if name.partition(",")[0] == wanted:
                return name
    if not metrics:
        raise ArmorError("the harness gave no figure for a task; it has no metric")
    return next(iter(metrics))


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures without their errors; the filter "none" is left out of their names."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if "," in name and "_stderr," not in name and isinstance(value, (int, float))
    }


def _stderr_key(metric: str) -> str:
    name, _, chosen = metric.partition(",")
    return f"{name}_stderr,{chosen or 'none'}"


def _leaves(name: str, children: Mapping[str, list[str]]) -> list[str]:
    """The tasks below `name`; itself if it is one."""
    below = children.get(name) or []
    return [leaf for child in below for leaf in _leaves(child, children)] if below else [name]
