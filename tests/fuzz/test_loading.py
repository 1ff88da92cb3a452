"""Configs and tokenizers that lie, through transformers: a model, or one line."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armor.errors import ArmorError
from armor.models.load import load_model, load_tokenizer

pytestmark = pytest.mark.transformers_compat
CASES = 120


def outcome(load: Callable[[str], Any], folder: Path) -> str:
    try:
        load(str(folder))
    except ArmorError as error:
        check_message(str(error))
        return "refused"
    return "loaded"


def check_message(message: str) -> None:
    assert message.isprintable()
    assert 10 < len(message) < 800


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.mark.parametrize("kind", ["dense", "pruned"])
def test_configs(loadable: Any, mutator: Any, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(getattr(loadable, kind), tmp_path / "model")
    data = json.loads((folder / "config.json").read_bytes())
    load_model(str(folder))
    before = peak_bytes()
    outcomes: Counter[str] = Counter()
    for _ in range(CASES):
        (folder / "config.json").write_text(mutator.json(data))
        outcomes[outcome(load_model, folder)] += 1
    assert min(outcomes["loaded"], outcomes["refused"]) > CASES // 20
    assert peak_bytes() - before < 300 << 20


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(loadable: Any, mutator: Any, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(loadable.dense, tmp_path / "model")
    original = (folder / file).read_bytes()
    data = json.loads(original)
    outcomes: Counter[str] = Counter()
    for number in range(CASES):
        spoiled = (
            mutator.bytes(original, len(original)) if number % 2 else mutator.json(data).encode()
        )
        (folder / file).write_bytes(spoiled)
        outcomes[outcome(load_tokenizer, folder)] += 1
    assert min(outcomes["loaded"], outcomes["refused"]) > 0
