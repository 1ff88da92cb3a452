"""What vLLM calls in every process: found by its entry point, light, and the same at each call."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_SCRIPT = """
import sys
from armor.vllm.plugin import register
from armor.vllm.preflight import check

register()
register()
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

assert QUANTIZATION_METHODS.count("armor") == 1
assert get_quantization_config("armor").__name__ == "ArmorQuantization"
check(sys.argv[1], None)
# vLLM's worker for CPUs dies if these are there before it.
assert not {"numba", "llvmlite"} & sys.modules.keys()
"""


def test_entry_point() -> None:
    (point,) = (
        point for point in entry_points(group="vllm.general_plugins") if point.name == "armor"
    )
    assert point.value == "armor.vllm.plugin:register"


def test_register(pruned: Callable[..., Path], run_python: Callable[..., Any]) -> None:
    done = run_python("-c", _SCRIPT, pruned("Llama", {}))
    assert done.code == 0, done.output
