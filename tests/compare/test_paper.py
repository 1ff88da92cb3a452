"""The published figures, and the sheet that shows them beside one's own."""

from __future__ import annotations

from math import inf

import pytest

from armor.compare.paper import models, published, same_model, sources
from armor.compare.row import Row
from armor.compare.sheet import Sheet
from armor.errors import ArmorError
from armor.evaluation.tasks import PRESETS, TaskSpec


def test_figures_by_label_and_task() -> None:
    found = published("Qwen2.5-7B")
    assert found["dense"]["mmlu"] == pytest.approx(0.7419)
    assert found["armor-paper"]["hellaswag"] == pytest.approx(0.5167)
    assert set(found["nowag"]) == {spec.name for spec in PRESETS["paper"]}
    llama = published("Llama-3-8B")
    assert llama["armor-paper"] == {"wikitext2": 10.10}
    assert llama["sparsegpt"] == {"wikitext2": 14.18}
    for model in models():
        better = "mmlu" if "Qwen" in model else "wikitext2"
        figures = {label: values[better] for label, values in published(model).items()}
        order = sorted(figures, key=figures.__getitem__, reverse=better == "mmlu")
        assert order[:2] == ["dense", "armor-paper"]
    assert all("2510.05528" in source for source in sources().values())
    with pytest.raises(ArmorError, match=r"no figures of 'GPT-2'; it has: Qwen2\.5-7B, "):
        published("GPT-2")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        ("/data/qwen2.5-14b/", "Qwen2.5-14B"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7B"),
        ("meta-llama/Meta-Llama-3-8B", "Llama-3-8B"),
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("Qwen/Qwen2.5-0.5B", None),
    ],
)
def test_models_by_name(name: str, model: str | None) -> None:
    assert same_model(name) == model


def test_the_sheet_grows() -> None:
    sheet = Sheet(
        "A page",
        {"model": "m"},
        ["dense", "wanda"],
        ["wikitext2", "c4"],
        [TaskSpec("mmlu", 5), TaskSpec("gsm8k")],
        {"dense": {"wikitext2": 5.12, "mmlu": 0.7419}, "wanda": {"wikitext2": 11.35}},
        ["A note."],
    )
    lines = sheet.markdown().splitlines()
    assert lines[:3] == ["# A page", "", "- model: m"]
    assert "| wanda | ... / 11.35 | ... / - | ... | ... | ... |" in lines
    assert "| method | mmlu (5) | gsm8k (own) |" in lines
    assert lines[-1] == "A note."
    sheet.rows = [
        Row("dense", "dense", {"wikitext2": 5.1234, "c4": 7.0}, 100, 100, 0),
        Row("wanda", "wanda", {"wikitext2": inf, "c4": 9.0}, 56, 100, 12.4, {"c4": 1.5}),
    ]
    mmlu = {"value": 0.75, "shots": 5, "metric": "acc"}
    gsm8k = {"value": 0.5, "shots": 8, "metric": "exact_match,strict-match"}
    sheet.tasks = {"dense": {"mmlu": mmlu, "gsm8k": gsm8k}}
    lines = sheet.markdown().splitlines()
    assert "| dense | 5.123 / 5.12 | 7.000 / - | - | 1.000 | - |" in lines
    assert "| wanda | inf / 11.35 | 9.000 / - | 150.0% | 0.560 | 12 |" in lines
    assert "| method | mmlu (5) | gsm8k (8) exact_match strict-match |" in lines
    assert "| dense | 75.00 / 74.19 | 50.00 / - |" in lines
    assert "| wanda | ... / - | ... / - |" in lines
    assert sheet.to_dict()["tasks"] == {"dense": [mmlu, gsm8k]}
