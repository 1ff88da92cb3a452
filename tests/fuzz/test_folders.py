"""Ten thousand spoiled checkpoints: each is sound, or refused in one line and little memory."""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint import Checkpoint, inspect, read_layers
from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.jsonfile import plain
from armor.errors import ArmorError

WEIGHTS = "model.safetensors"
CASES = 2_500  # for each of the four files


def outcome(folder: Path, multiply: bool = True) -> str:
    """ "sound" or "refused"; anything but one clean line fails."""
    try:
        found = inspect(folder)
        json.dumps(plain(found), ensure_ascii=False).encode()  # what --json would write
        for _, layer in read_layers(folder) if multiply else ():
            assert layer.dense().shape == layer.shape
    except ArmorError as error:
        check_message(str(error))
        return "refused"
    return "sound"


def check_message(message: str) -> None:
    assert message.isprintable()
    assert 10 < len(message) < 600


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def spoil(path: Path, mutate: Callable[[], bytes]) -> Counter[str]:
    """The outcomes of all cases; the file is as it was afterwards."""
    original = path.read_bytes()
    assert outcome(path.parent) == "sound"
    before = peak_bytes()
    outcomes: Counter[str] = Counter()
    for _ in range(CASES):
        path.write_bytes(mutate())
        outcomes[outcome(path.parent, multiply=path.name != RUN_FILE)] += 1
    path.write_bytes(original)
    assert peak_bytes() - before < 100 << 20
    return outcomes


@pytest.mark.parametrize("file", ["config.json", "armor_run.json"])
def test_configs(folder: Path, mutator: Any, file: str) -> None:
    original = (folder / file).read_bytes()
    data = json.loads(original)

    def mutate() -> bytes:
        if mutator.rng.randrange(2):
            return mutator.bytes(original, len(original))
        return mutator.json(data).encode()

    assert min(spoil(folder / file, mutate).values()) > CASES // 25


def test_headers(folder: Path, mutator: Any) -> None:
    original = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    header = json.loads(original[8:end])

    def mutate() -> bytes:
        if mutator.rng.randrange(2):
            return mutator.bytes(original, end)
        spoiled = mutator.json(header).encode()
        return len(spoiled).to_bytes(8, "little") + spoiled + original[end:]

    assert min(spoil(folder / WEIGHTS, mutate).values()) > CASES // 50


def test_indices(folder: Path, mutator: Any) -> None:
    original = (folder / WEIGHTS).read_bytes()
    header = json.loads(original[8 : 8 + int.from_bytes(original[:8], "little")])
    names = [name for name in header if name != "__metadata__"]
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    data: dict[str, Any] = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors"),
    }
    text = json.dumps(data)
    (folder / f"{WEIGHTS}.index.json").write_text(text)

    def mutate() -> bytes:
        if mutator.rng.randrange(2):
            return mutator.bytes(text.encode(), len(text))
        return mutator.json(data).encode()

    assert min(spoil(folder / f"{WEIGHTS}.index.json", mutate).values()) > CASES // 50


def test_files_that_are_cut_or_longer(folder: Path) -> None:
    path = folder / WEIGHTS
    original = path.read_bytes()
    for length in range(0, len(original), 7):
        path.write_bytes(original[:length])
        assert outcome(folder) == "refused"
    path.write_bytes(original + b"\0")
    assert outcome(folder) == "refused"


def test_flipped_bits_of_the_indices_are_refused_or_another_choice(folder: Path) -> None:
    path = folder / WEIGHTS
    original = path.read_bytes()
    stored = Checkpoint.open(folder).tensors["model.layers.0.up.core_indices"]
    outcomes: Counter[str] = Counter()
    for at in range(stored.offset, stored.offset + stored.nbytes):
        for bit in range(8):
            spoiled = bytearray(original)
            spoiled[at] ^= 1 << bit
            path.write_bytes(spoiled)
            outcomes[outcome(folder)] += 1
    assert outcomes["refused"] > outcomes["sound"] > 0
