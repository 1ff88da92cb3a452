"""What loading and running a packed model takes, measured from outside: resident memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from armor.bench.layers import random_layer
from armor.bench.shapes import Shape
from armor.checkpoint.format import LayerSpec, to_metadata

BLOCK = 16


def checkpoint(model: Any, folder: Path) -> int:
    """A Llama with random packed layers on disk; returns the dense bytes of the largest."""
    specs = {}
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            shape = Shape(name, linear.out_features, linear.in_features, BLOCK)
            parent, _, child = name.rpartition(".")
            layer = random_layer(shape, torch.bfloat16, torch.device("cpu"))
            setattr(model.get_submodule(parent), child, layer)
            specs[name] = LayerSpec((shape.out_features, shape.in_features), BLOCK)
    model.save_pretrained(folder)
    path = folder / "config.json"
    metadata = {"quantization_config": to_metadata(specs)}
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    return 2 * max(spec.shape[0] * spec.shape[1] for spec in specs.values())


_MEASURE = """
import sys, threading, time
import torch
torch.set_num_threads(1)
import armor

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

@torch.inference_mode()
def run(model):
    for length in (1, 5):
        model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    return model

run(armor.load(sys.argv[1], dtype="auto"))  # imports and compiles
before = peak = resident()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
model = armor.load(sys.argv[2], dtype="auto")
loaded = resident()
run(model)
done = True
watcher.join()
print(peak - before, loaded - before, sum(tensor.nbytes for tensor in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_and_running_takes_the_packed_model_and_at_most_one_layer(
    make_llama: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 3}
    checkpoint(make_llama().bfloat16(), tmp_path / "small")
    layer = checkpoint(make_llama(**sizes).bfloat16(), tmp_path / "large")
    folders = [str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURE, *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, loaded, packed = map(int, done.stdout.split())
    dense = 2 * 3 * (2 * 1024 * 1024 + 2 * 512 * 1024 + 3 * 1024 * 2816)
    assert packed < 0.62 * dense
    noise = 2 * 2**20  # of the allocator and of the interpreter
    assert loaded <= peak <= packed + layer + noise
    assert peak >= 0.9 * packed  # else the weights were not there to be measured
