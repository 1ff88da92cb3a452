"""Every engine writes the bytes of the plain run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import armor
from armor.config import PruneConfig
from armor.run.plain import prune_plainly
from armor.run.prune import Progress

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]

CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "dense targets": {"target": "dense"},
    "diagonal": {"objective": "diag", "target": "dense"},
    "pruned statistics": {"method": "wanda"},
    "dense statistics": {"method": "nowag"},
    "rounded": {"core": "int4", "wrappers": "int8", "objective": "diag"},
    "rounded by a recipe": {
        "core": "int8",
        "overrides": {
            "*.k_proj": {"core": "dense"},
            "*.q_proj": {"method": "sparsegpt"},
            "*.up_proj": {"core": "int4", "wrappers": "int8"},
        },
    },
    "recipe": {
        "overrides": {
            "*.k_proj": {"skip": True},
            "*.q_proj": {"skip": True},
            "*.down_proj": {"method": "sparsegpt"},
            "*.up_proj": {"pattern": "4:8", "block": 8},
        }
    },
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_one_worker_and_activations_in_files(
    tiny_model: Path, settings: Settings, weights: Weights, tmp_path: Path, changes: dict[str, Any]
) -> None:
    records = prune_plainly(tiny_model, settings(**changes), tmp_path / "plain")
    result = armor.prune(tiny_model, settings(**changes), tmp_path / "one", workers=1)
    assert weights(tmp_path / "one") == weights(tmp_path / "plain")
    assert list(result.records) == list(records)
    assert [one.loss for one in result.records.values()] == [one.loss for one in records.values()]
    files = tmp_path / "files"
    armor.prune(tiny_model, settings(**changes), files, workers=1, memory_budget=0)
    assert weights(files) == weights(tmp_path / "plain")


def test_two_workers_and_an_interrupted_run(
    tiny_model: Path, settings: Settings, weights: Weights, tmp_path: Path
) -> None:
    prune_plainly(tiny_model, settings(), tmp_path / "plain")
    left = [5]

    def stop(_name: str, _record: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        armor.prune(
            tiny_model, settings(), tmp_path / "out", workers=2, progress=Progress(finished=stop)
        )
    armor.prune(tiny_model, settings(), tmp_path / "out", workers=2)
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ray(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="the Ray engine is an extra")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prune_plainly(tiny_model, settings(), tmp_path / "plain")
    armor.prune(tiny_model, settings(), tmp_path / "ray", engine="ray", workers=2)
    assert weights(tmp_path / "ray") == weights(tmp_path / "plain")
