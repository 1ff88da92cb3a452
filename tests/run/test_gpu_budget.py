"""What the pipeline asks of a GPU for a decoder block: held here, as none is at hand to time it."""

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
from armor.run import pipeline, worker
from armor.run import prune as prune_module
from armor.run.placement import Placement
from armor.run.prune import Progress
from armor.run.saving import later

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LAST = "model.layers.{}.mlp.down_proj"


@pytest.fixture
def counted(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Counts:
    """From the last layer of the first block to that of the second: all there is to a block."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_model import as_on_gpu

    where = classmethod(lambda *_: Placement("local", 1, "meta", None))
    monkeypatch.setattr(prune_module.Placement, "parse", where)
    monkeypatch.setattr(prune_module, "check_own_forward", lambda *_: None)
    monkeypatch.setattr(BlockCall, "precision", lambda *_: nullcontext())
    for module in (local, worker):
        monkeypatch.setattr(module, "free_on_device", lambda _: 2**40)
    # Where it is counted, too: in this thread.
    monkeypatch.setattr(pipeline, "later", lambda work, beside: later(work, beside=False))
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
    """Three batches of windows, seven layers, two iterations, blocks of 4."""
    block = AutoModelForCausalLM.from_pretrained(tiny_model).model.layers[0]
    weights = sum(parameter.nbytes for parameter in block.parameters())
    batches, layers = 3, 7
    # A batch passes whole through the dense block, up to each of four stages, and through the
    # pruned block; attention comes after the first stage, the activation before the last.
    assert counted.launches["_safe_softmax"] <= 5 * batches
    assert counted.launches["silu"] <= 3 * batches
    # All else by far is the solver's, for blocks of 4 in 8 or 11 columns.
    assert sum(counted.launches.values()) <= 1500 * layers, counted.launches
    # The dampings of the target, two questions each, and the losses of the certificate.
    assert counted.waits["_local_scalar_dense"] <= 32 * layers
    assert counted.waits["tolist"] <= 2 * layers  # the losses of a solve
    assert counted.waits["equal"] <= 9 * batches  # what is the residual stream
    # The block's weights, those of each layer once more, packed layers, and of each pass of a batch
    # the rotary tables and the mask.
    assert counted.waits["to the device"] <= 110
    assert counted.copied["to the device"] <= 5.2 * weights
    # Packed layers; moments with samples of tokens, to be hashed; both streams, to be kept.
    assert counted.waits["to the host"] <= 88
    assert counted.copied["to the host"] <= 9.9 * weights
