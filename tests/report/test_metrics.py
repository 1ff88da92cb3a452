"""Figures of texts: divergence beside perplexity, what they were measured on, a metric more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint.jsonfile import read_json, write_json
from armor.errors import ArmorError
from armor.report import collect, write_report
from armor.report.metrics import METRICS, Metric
from armor.report.texts import FIT, OTHER, measured_on

DIVERGENCE = {
    "kl": 0.01234,
    "kl_ci95": [0.012, 0.013],
    "same_top1": 0.956,
    "reference": "hub/dense",
}


@pytest.fixture
def page(checkpoint: Path, tmp_path: Path) -> Callable[..., str]:
    """The page with further fields in the row of a text."""

    def write(**further: Any) -> str:
        data = read_json(checkpoint / "eval-stories.json")
        data["perplexity"][0] |= further
        write_json(tmp_path / "more.json", data)
        report = collect(checkpoint, evals=[tmp_path / "more.json"])
        del report.evals["eval-stories.json"]  # type: ignore[attr-defined]
        write_report(report, tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    return write


def test_divergence_is_shown_where_it_was_measured(page: Callable[..., str]) -> None:
    without, shown = page(), page(**DIVERGENCE)
    for text in ("KL, nats/token", "same top token", "KL divergence, stories"):
        assert text not in without
        assert text in shown
    for text in ("0.0123", "0.0005", "95.6 %", "from those of hub/dense"):
        assert text in shown
    assert "∞" in page(**DIVERGENCE | {"kl": None, "kl_ci95": None})


def test_figures_that_are_none_are_refused(page: Callable[..., str]) -> None:
    for damaged in (
        {"kl": "low"},
        {"kl_ci95": [1]},
        {"reference": 3},
        {"perplexity": "low"},
        {"bos": "yes"},
    ):
        with pytest.raises(ArmorError, match="was not written by armor eval --json"):
            page(**DIVERGENCE | damaged)


def test_it_says_which_text_a_figure_is_from(
    page: Callable[..., str], make: Callable[..., Path], tmp_path: Path
) -> None:
    assert f">{OTHER}</span>" in page()
    fit = page(source="c.txt")  # what make_checkpoint's record names
    assert f">{FIT}</span>" in fit
    assert f"windows of 256 tokens, no BOS, {FIT}" in fit
    assert "windows of 256 tokens, with BOS, " in page(bos=True)
    assert "<td>256 with BOS</td>" in page(bos=True)
    unknown = page(source="elsewhere/c.txt")
    assert FIT not in unknown
    assert OTHER not in unknown
    folder = make(tmp_path / "cmp")
    results = read_json(folder / "results.json")
    for text, says in (("c.txt", FIT), ("other.txt", OTHER)):
        write_json(folder / "results.json", results | {"texts": {"stories": text}})
        write_report(collect(folder), tmp_path / "cmp.html")
        assert f"Measured on: {says}." in (tmp_path / "cmp.html").read_text()


@pytest.mark.parametrize(
    ("calibration", "text", "expected"),
    [
        ("c.txt", "./c.txt", FIT),
        ("c.txt", "d.txt", OTHER),
        ("a/c.txt", "b/c.txt", None),
        ("c.jsonl:one", "c.jsonl:two", OTHER),
        ("hf:some/set", "hf:some/set", None),
        ("hf:some/set", "wikitext2", OTHER),
        ({"texts": 1, "sha256": "a"}, {"texts": 1, "sha256": "a"}, FIT),
        ({"texts": 1, "sha256": "a"}, {"texts": 1, "sha256": "b"}, OTHER),
        ({"texts": 1, "sha256": "a"}, "1 given text", None),
        (None, "c.txt", None),
        (["c.txt"], 3, None),
        ("", "", None),
    ],
)
def test_measured_on(calibration: Any, text: Any, expected: str | None) -> None:
    assert measured_on(calibration, text) == expected


def test_a_metric_more(page: Callable[..., str]) -> None:
    """As docs/report.md says: what `armor eval` writes is shown by one line."""
    brier = Metric("brier", "Brier score", lambda value: f"{value:.1f} points", headline="Brier")
    METRICS.append(brier)
    try:
        shown = page(brier=3.25)
        assert '<th scope="col">Brier score</th>' in shown
        assert shown.count("3.2 points") == 2
        with pytest.raises(ArmorError):
            page(brier="none")
    finally:
        METRICS.remove(brier)
