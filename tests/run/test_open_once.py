"""A run reads the headers and the config of its model once, and builds the model three
times: to prune it, to see that the result could be loaded, and for its own forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import armor
from armor.checkpoint import sidecar, weights
from armor.config import PruneConfig


def test_the_model_is_opened_once(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str, relevant: Callable[..., bool] = lambda *args: True) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += relevant(*args)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(weights, "read_file", lambda path: path.parent == tiny_model)
    count(sidecar, "read_json", lambda path: path.parent == tiny_model)
    count(AutoConfig, "from_pretrained")
    count(AutoModelForCausalLM, "from_config")
    armor.prune(tiny_model, settings(), tmp_path / "out", workers=1)
    once = dict.fromkeys(("read_file", "read_json", "from_pretrained"), 1)
    # For the run, and without weights to see that the result could be loaded.
    assert calls == once | {"from_config": 2}
