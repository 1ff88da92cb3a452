"""kill -9 at random moments, then the same command: the bytes are those of an undisturbed run.

ARMOR_CHAOS_KILLS sets how many moments (25).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

import armor
from armor.config import PruneConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs it kills"),
]

KILLS = int(os.environ.get("ARMOR_CHAOS_KILLS", "25"))
#: Imports once, then forks a run for each line it gets; answers with its process, then its status.
NURSERY = """
import json, os, sys
import armor, armor.run.prune, armor.engines.local
import armor.run.pipeline, armor.run.store
import transformers.models.llama.modeling_llama
model, settings, out, workers, in_thread = json.loads(sys.argv[1])
if in_thread:
    armor.run.store.is_on_gpu = armor.run.pipeline.is_on_gpu = lambda tensors: True
for _ in sys.stdin:
    child = os.fork()
    if not child:
        try:
            armor.prune(model, armor.PruneConfig.from_dict(settings), out, workers=workers)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Runs of one pruning, to be killed."""

    def __init__(
        self, model: Path, config: PruneConfig, out: Path, workers: int, in_thread: bool
    ) -> None:
        about = json.dumps([str(model), config.to_dict(), str(out), workers, in_thread])
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, about],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ask: IO[str] = self.process.stdin
        self.answers: IO[str] = self.process.stdout

    def run(self, seconds: float | None) -> bool:
        """Run it, kill it after `seconds`; whether it came to its end before."""
        print(file=self.ask, flush=True)
        child = int(self.answers.readline())
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        status = int(self.answers.readline())
        assert status in (0, signal.SIGKILL), status
        return status == 0


@pytest.fixture
def nursery(
    tiny_model: Path, settings: Callable[..., PruneConfig], tmp_path: Path
) -> Iterator[Callable[[int, bool], Nursery]]:
    """Starts a `Nursery` with so many workers, with threads as on a GPU or not."""
    started: list[Nursery] = []

    def start(workers: int, in_thread: bool) -> Nursery:
        started.append(Nursery(tiny_model, settings(), tmp_path / "out", workers, in_thread))
        return started[-1]

    yield start
    for each in started:
        each.ask.close()
        each.process.wait()
        each.answers.close()


@pytest.mark.parametrize(
    ("workers", "in_thread", "kills"), [(1, False, KILLS), (1, True, KILLS // 2), (2, False, 3)]
)
def test_killed_anywhere(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    weights: Callable[[Path], dict[str, bytes]],
    nursery: Callable[[int, bool], Nursery],
    tmp_path: Path,
    workers: int,
    in_thread: bool,
    kills: int,
) -> None:
    out = tmp_path / "out"
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    expected = weights(tmp_path / "straight")
    runs = nursery(workers, in_thread)
    assert runs.run(None)  # the first one pays for the imports
    out.rename(tmp_path / "complete 0")
    begin = time.perf_counter()
    assert runs.run(None)
    whole = time.perf_counter() - begin
    assert weights(out) == expected
    moments = random.Random(workers)
    complete = 1
    for _ in range(kills):
        if out.exists() and not (tmp_path / ".out.run").exists():
            complete += 1
            assert weights(out) == expected
            out.rename(tmp_path / f"complete {complete}")
        runs.run(moments.uniform(0, whole))
    if not (out.exists() and not (tmp_path / ".out.run").exists()):
        assert runs.run(None)
    assert weights(out) == expected
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == set()
