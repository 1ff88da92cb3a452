"""What each sink makes of the events, and what it does where it cannot write."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint.records import LayerRecord
from armor.cli.verbosity import set_verbosity
from armor.errors import ArmorError
from armor.events import JsonLines, Logger, Recorder, combine_progress
from armor.events.logger import describe
from armor.run.plan import LayerPlan
from armor.run.prune import Progress

PLANS = [LayerPlan("a", (4, 8), 4), LayerPlan("b", (4, 4), dense=True, note="excluded")]
RECORD = LayerRecord((4, 8), 4, 0.02, 0.1, None, True, [0.1, 0.02], 1.5, "", [0.5, 1.25])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def work(recorder: Recorder) -> None:
    with recorder.run("prune", model="m", out="o"):
        progress = recorder.progress()
        progress.planned(PLANS)
        progress.started("a")
        progress.finished("a", RECORD)


def test_events_are_lines_that_are_added(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    for _ in range(2):
        work(Recorder([JsonLines(file)]))
    found = lines(file)
    kinds = ["run_started", "run_planned", "layer_started", "layer_finished", "run_finished"]
    assert [event["kind"] for event in found] == kinds * 2
    assert len({event["run"] for event in found}) == 2
    assert all(event["time"].endswith("+00:00") for event in found)
    assert found[0]["schema"] == 1
    assert found[1]["weights"] == 32
    assert found[1]["dense_layers"] == {"b": "excluded"}
    layer = found[3]
    assert (layer["number"], layer["layers"], layer["loss"], layer["seconds"]) == (1, 1, 0.02, 1.5)
    assert layer["times"] == [0.5, 1.25]


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyboardInterrupt, "run_interrupted"), (ValueError, "run_failed")]
)
def test_a_run_that_ends_badly_says_so(
    tmp_path: Path, error: type[BaseException], kind: str
) -> None:
    file = tmp_path / "log.jsonl"
    with pytest.raises(error), Recorder([JsonLines(file)]).run("prune"):
        raise error("why\nso")
    last = lines(file)[-1]
    assert last["kind"] == kind
    assert kind == "run_interrupted" or (last["type"], last["error"]) == ("ValueError", "why so")


def test_a_log_that_waits_is_not_there_before_its_time(tmp_path: Path) -> None:
    file = tmp_path / "new" / "log.jsonl"
    with pytest.raises(ValueError, match="bad"), _waiting(file).run("prune"):
        raise ValueError("bad path")
    assert not file.parent.exists()
    work(_waiting(file))
    assert [event["kind"] for event in lines(file)][:2] == ["run_started", "run_planned"]


def _waiting(file: Path) -> Recorder:
    return Recorder([JsonLines(file, wait_for=("run_planned",))])


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "log.jsonl")
    sink.write({"kind": "measured", "perplexity": float("inf")})
    sink.close()
    assert lines(tmp_path / "log.jsonl") == [{"kind": "measured", "perplexity": None}]


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="cannot write the log"):
        JsonLines(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_the_log_not_the_run(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_verbosity(0)
    work(Recorder([JsonLines(Path("/dev/full"))]))
    warning = "armor: no more events go to /dev/full: No space left on device\n"
    assert capsys.readouterr().err == warning


def test_both_are_called_in_order() -> None:
    called: list[str] = []
    one = Progress(started=lambda name: called.append(f"one {name}"))
    two = Progress(started=lambda name: called.append(f"two {name}"))
    together = combine_progress(one, two)
    together.started("x")
    together.planned(PLANS)
    assert called == ["one x", "two x"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("armor")
    before = found.level, found.handlers[:], found.propagate
    yield found
    found.level, found.handlers[:], found.propagate = before


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 4), (2, 5), (5, 5)])
def test_verbosity(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], count: int, expected: int
) -> None:
    set_verbosity(2)
    set_verbosity(count)
    work(Recorder([Logger()]))
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == expected
    if expected:
        assert "1/1 a: loss 0.02, 0.200 of NoWag-P's, 1 iterations, 1.50 s" in err


def test_lines_go_to_the_stderr_of_the_moment(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_verbosity(0)
    monkeypatch.setattr(sys, "stderr", sys.stdout)  # as a live progress bar does
    logger.warning("careful")
    assert capsys.readouterr().out == "armor: careful\n"


def test_a_run_that_goes_on_counts_what_was_done(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    recorder = Recorder([JsonLines(file)])
    with recorder.run("prune"):
        progress = recorder.progress()
        progress.planned([LayerPlan(name, (4, 8), 4) for name in "abc"])
        progress.resumed({"b": RECORD}, ["c"])
        progress.finished("a", RECORD)
    resumed, layer = lines(file)[2:4]
    assert (resumed["kind"], resumed["finished"], resumed["damaged"]) == (
        "run_resumed",
        ["b"],
        ["c"],
    )
    assert (layer["layer"], layer["number"], layer["layers"]) == ("a", 2, 3)
    assert describe(resumed) == "1 layers were finished before, 1 are damaged and done again"


def test_every_kind_has_its_line() -> None:
    assert describe({"kind": "method_started", "label": "armor"}) == "armor: method started"
    failed = {"kind": "run_failed", "seconds": 2.0, "error": "no memory"}
    assert describe(failed) == "failed after 2.0 s: no memory"
    measured = {"kind": "measured", "label": "armor", "text": "t", "perplexity": 2.5}
    assert describe(measured) == "armor: perplexity 2.5000 on t"
