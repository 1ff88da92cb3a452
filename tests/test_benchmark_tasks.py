"""The benchmarks' own task files: what they ask a model, and what they make of its answers."""

from __future__ import annotations

import json
import string
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from armor.errors import ArmorError
from armor.evaluation.harness import TaskList, run_task
from armor.evaluation.tasks import TaskSpec
from armor.models.load import load_model, load_tokenizer

pytest.importorskip("lm_eval")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CHOICES: list[dict[str, Any]] = [
    {"ctx": "Q: 1 + 1\nA:", "choices": ["2", "three", "none"], "gold": 0},
    {"ctx": "Q: 2 + 2\nA:", "choices": ["no", "5", "four"], "gold": 2},
]
SENTENCES: list[dict[str, Any]] = [
    {"ctxs": ["As the cup", "As the can"], "continuation": "was full.", "gold": 1},
    {"ctxs": ["So Ann", "So Bob"], "continuation": "left.", "gold": 0},
]
WORDS = [{"ctx": 'He said "no" to', "continuation": " her"}, {"ctx": "{{a}}", "continuation": " b"}]


@pytest.fixture
def local_tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/local_tasks.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import local_tasks

    return local_tasks


def write(folder: Path, words: list[dict[str, Any]] = WORDS) -> Path:
    """Two rows of every task."""
    folder.mkdir(parents=True, exist_ok=True)
    files = dict.fromkeys(("arc_easy_test", "piqa_valid", "hellaswag_val"), CHOICES)
    for name, rows in {**files, "winogrande_dev": SENTENCES, "lambada_test": words}.items():
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{name}.400.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_the_requests_are_those_of_the_harness_own_tasks(
    local_tasks: ModuleType, tmp_path: Path
) -> None:
    folder = local_tasks.write_definitions(tmp_path / "yaml", write(tmp_path / "rows"))
    tasks = TaskList([TaskSpec(name, 0) for name in local_tasks.TASKS], folder)
    choices = [(row["ctx"], f" {choice}") for row in CHOICES for choice in row["choices"]]
    contexts = [
        (context, f" {row['continuation']}") for row in SENTENCES for context in row["ctxs"]
    ]
    words = [(row["ctx"], row["continuation"]) for row in WORDS]
    wanted = dict.fromkeys(("arc_easy", "piqa", "hellaswag"), choices)
    for spec in tasks.specs:
        task = tasks.manager.load([spec.name])["tasks"][spec.name]
        task.build_all_requests(limit=None, rank=0, world_size=1)
        found = [request.args for request in task.instances]
        assert found == {**wanted, "winogrande": contexts, "lambada": words}[spec.name], spec
        assert {request.request_type for request in task.instances} == {"loglikelihood"}


def test_the_scores_equal_an_independent_computation(
    local_tasks: ModuleType, tiny_model: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))

    def log_p(text: str) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(torch.tensor([tokenizer.encode(text)])).logits[0]
        return logits.log_softmax(-1)

    def score(context: str, continuation: str) -> float:
        start = len(tokenizer.encode(context))
        ids = torch.tensor(tokenizer.encode(context + continuation))
        return float(
            log_p(context + continuation)[start - 1 : -1].gather(1, ids[start:, None]).sum()
        )

    def share(right: list[bool]) -> float:
        return sum(right) / len(right)

    # What the model itself goes on with, where that is a character, and another one.
    texts = (f"{a}{b}" for a in string.ascii_letters for b in string.ascii_letters)
    said = ((text, tokenizer.decode([int(log_p(text)[-1].argmax())])) for text in texts)
    prompt, greedy = next((text, word) for text, word in said if word in string.ascii_letters)
    other = "a" if greedy != "a" else "b"
    words = [{"ctx": prompt, "continuation": word} for word in (greedy, other)]
    folder = local_tasks.write_definitions(tmp_path / "yaml", write(tmp_path / "rows", words))
    tasks = TaskList([TaskSpec(name, 0) for name in local_tasks.TASKS], folder)
    results = [run_task(tasks, spec, model, tokenizer).to_dict() for spec in tasks.specs]
    found = {result["task"]: local_tasks.accuracies(result) for result in results}
    right, by_length = [], []
    for row in CHOICES:
        scores = [score(row["ctx"], f" {choice}") for choice in row["choices"]]
        lengths = [len(choice) for choice in row["choices"]]
        norms = [value / length for value, length in zip(scores, lengths, strict=True)]
        right.append(scores.index(max(scores)) == row["gold"])
        by_length.append(norms.index(max(norms)) == row["gold"])
    for name in ("arc_easy", "piqa", "hellaswag"):
        assert found[name]["acc"] == share(right)
        assert found[name]["acc_norm"] == share(by_length)
    contexts = [
        [score(context, f" {row['continuation']}") for context in row["ctxs"]] for row in SENTENCES
    ]
    right = [s.index(max(s)) == row["gold"] for s, row in zip(contexts, SENTENCES, strict=True)]
    assert found["winogrande"]["acc"] == share(right)
    assert found["lambada"]["acc"] == 0.5
    for result in results:
        own = found[result["task"]]
        assert own["n"] == 2
        assert own["acc_stderr"] == pytest.approx(result["stderr"])


def test_rows_that_are_missing_are_named(local_tasks: ModuleType, tmp_path: Path) -> None:
    (write(tmp_path / "rows") / "piqa_valid.400.jsonl").unlink()
    with pytest.raises(ArmorError, match=r"task piqa needs .*piqa_valid.*: set ARMOR_SHARED"):
        local_tasks.write_definitions(tmp_path / "yaml", tmp_path / "rows")
