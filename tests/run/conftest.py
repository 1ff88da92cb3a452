"""A tiny random Llama folder with a tokenizer and a calibration text."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from armor.config import PruneConfig
from armor.run.prune import Progress


@pytest.fixture(scope="session")
def tiny_model(make_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of width 32, MLP 44 (no block divides it), grouped-query attention."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(
        vocab_size=300,
        intermediate_size=44,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["a text"],
        trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 9,000 tokens of text."""
    file = tmp_path_factory.mktemp("texts") / "calibration.txt"
    file.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(300)))
    return file


@pytest.fixture
def settings(text: Path) -> Callable[..., PruneConfig]:
    """A quick run: three batches of windows, two iterations; with changes on top."""

    def make(**changes: object) -> PruneConfig:
        quick = {"samples": 24, "seq_len": 16, "iterations": 2, "block_size": 4}
        return PruneConfig(**{"calibration": str(text), **quick, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def weights() -> Callable[[Path], dict[str, bytes]]:
    """Of a checkpoint, all that must not depend on how the run went."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.name != "armor_run.json"
        }

    return read


@pytest.fixture
def workers() -> Callable[..., list[int]]:
    """The processes below this one with an argument that begins with one of some texts."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds worker processes in /proc")

    def find(*command: str) -> list[int]:
        parents: dict[int, int] = {}
        matching = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text()
                arguments = (folder / "cmdline").read_text().split("\0")
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            parents[int(folder.name)] = int(parent)
            if state != "Z" and any(each.startswith(command) for each in arguments):
                matching.append(int(folder.name))

        def ours(process: int) -> bool:
            while process and process != os.getpid():
                process = parents.get(process, 0)
            return process != 0

        return sorted(filter(ours, matching))

    return find


class Killer:
    """Kills a worker each time a layer is begun, so many times."""

    def __init__(
        self, workers: Callable[..., list[int]], command: tuple[str, ...], times: int
    ) -> None:
        self.left = times
        self._find = lambda: workers(*command)

    def progress(self) -> Progress:
        """What starts it."""
        return Progress(started=self._started)

    def _started(self, _name: str) -> None:
        if self.left and (found := self._find()):
            self.left -= 1
            os.kill(found[0], signal.SIGKILL)


@pytest.fixture
def killer(workers: Callable[..., list[int]]) -> Callable[..., Killer]:
    """Makes a `Killer` of the workers that `workers` finds."""
    return lambda times, *command: Killer(workers, command, times)
