"""What the pipeline asks of a GPU for one decoder block: held here, as no GPU is at hand to time it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import armor
from armor.bench.counting import Counting, Counts
from armor.calibrate.call import BlockCall
from armor.config import PruneConfig
from armor.engines import local
from armor.factorize.kernels import triton
from armor.run import prune as prune_module
from armor.run import worker
from armor.run.placement import Placement
from armor.run.prune import Progress

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LAST = "model.layers.{}.mlp.down_proj"


@pytest.fixture
def counted(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Counts:
    """From the last layer of the first block to that of the second: all that there is to a block."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_model import as_on_gpu

    where = classmethod(lambda *_: Placement("local", 1, "meta", None))
    monkeypatch.setattr(prune_module.Placement, "parse", where)
    monkeypatch.setattr(prune_module, "check_own_forward", lambda *_: None)
    monkeypatch.setattr(BlockCall, "precision", lambda *_: nullcontext())
    for module in (local, worker):
        monkeypatch.setattr(module, "free_on_device", lambda _: 2**40)
    counting = Counting()
    found: list[Counts] = []

    def finished(name: str, _record: Any) -> None:
        if name == LAST.format(len(found)):
            found.append(deepcopy(counting.counts))
        if len(found) == 2:
            raise KeyboardInterrupt

    with as_on_gpu(counting), counting, pytest.raises(KeyboardInterrupt):
        armor.prune(tiny_model, settings(), tmp_path / "out", progress=Progress(finished=finished))
    return found[1].less(found[0])


@pytest.mark.skipif(not triton.is_available(), reason="triton is not installed")
def test_a_block_stays_within_its_budget(counted: Counts, tiny_model: Path) -> None:
    """Three batches of windows, seven layers, two iterations."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    block = model.model.layers[0]
    weights = sum(parameter.nbytes for parameter in block.parameters())
    print(counted, weights)
    assert 0
