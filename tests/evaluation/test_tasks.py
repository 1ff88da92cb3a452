"""Task names, presets, and results out of what the harness gives."""

from __future__ import annotations

from typing import Any

import pytest

from armor.errors import ArmorError
from armor.evaluation.tasks import PRESETS, TaskSpec, headline, parse_tasks, read_result


def test_names_shots_and_presets() -> None:
    assert parse_tasks("piqa, arc_challenge:25") == [
        TaskSpec("piqa"),
        TaskSpec("arc_challenge", 25),
    ]
    paper = {spec.name: spec.shots for spec in parse_tasks("paper")}
    assert paper == {
        "mmlu": 5,
        "gsm8k": 8,
        "bbh": 3,
        "gpqa_main_n_shot": 5,
        "arc_challenge": 25,
        "winogrande": 5,
        "hellaswag": 0,
    }
    assert parse_tasks("paper,piqa", 10)[-1] == TaskSpec("piqa", None, 10)
    assert {spec.limit for spec in parse_tasks("quick")} == {200}
    assert {spec.limit for spec in parse_tasks("quick", 7)} == {7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" , ", "names no task; give names or a preset: paper, quick"),
        ("piqa:", "no number of shots"),
        ("piqa:few", "'few' is no number of shots; write NAME:SHOTS"),
        ("piqa,piqa:3", "names piqa twice"),
        ("quick,piqa", "names piqa twice"),
    ],
)
def test_bad_names(text: str, message: str) -> None:
    with pytest.raises(ArmorError, match=message):
        parse_tasks(text)


def test_headline_is_plain_accuracy() -> None:
    assert headline({"acc_norm": 1.0, "acc": 0.5}) == "acc"
    assert headline({"f1": 1.0, "exact_match,strict-match": 0.5}) == "exact_match,strict-match"
    assert headline({"perplexity": 9.0}) == "perplexity"


def found() -> dict[str, Any]:
    """A group of a task and a group of two."""
    leaves = {"one": (0.5, 10), "two": (0.25, 20), "three": (1.0, 30)}
    return {
        "results": {
            "all": {"alias": "all", "acc,none": 0.6, "acc_stderr,none": 0.1},
            "pair": {"alias": "pair", "acc,none": 0.7, "acc_stderr,none": "N/A"},
            **{name: {"acc,none": value} for name, (value, _) in leaves.items()},
        },
        "group_subtasks": {"all": ["one", "pair"], "pair": ["two", "three"]},
        "n-shot": dict.fromkeys(leaves, 5),
        "n-samples": {
            name: {"original": 99, "effective": count} for name, (_, count) in leaves.items()
        },
        "versions": {"all": 2, "one": "Yaml"},
    }


def test_a_group_with_its_subtasks() -> None:
    result = read_result("all", found(), 30, 1.5)
    assert (result.task, result.shots, result.limit, result.metric) == ("all", 5, 30, "acc")
    assert (result.value, result.stderr, result.samples) == (0.6, 0.1, 60)
    assert result.subtasks == {"one": 0.5, "two": 0.25, "three": 1.0}
    assert result.metrics == {"acc": 0.6}
    assert result.version == "2"
    assert read_result("pair", found(), None, 0.0).stderr is None


def test_a_single_task() -> None:
    result = read_result("one", found(), None, 0.0)
    assert (result.value, result.samples, result.subtasks) == (0.5, 10, {})
    assert (result.stderr, result.version) == (None, None)


def test_presets_name_each_task_once() -> None:
    for specs in PRESETS.values():
        assert len({spec.name for spec in specs}) == len(specs)
