"""``import armor`` is cheap and registers with transformers in either order, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import armor

pytestmark = pytest.mark.transformers_compat


def run(code: str) -> str:
    """The output of `code` in a fresh interpreter with warnings as errors."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(armor.__file__).parents[1])},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "newly initialized" not in result.stderr
    assert "Unknown quantization" not in result.stderr
    return result.stdout


def test_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "typer")
    code = f"import sys, armor; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import armor; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import armor",
    ],
)
def test_either_order_works(make: Callable[..., Any], imports: str) -> None:
    code = f"""
{imports}
model = AutoModelForCausalLM.from_pretrained({str(make().folder)!r})
print(type(model.model.layers[0].mlp.up_proj).__name__)
"""
    assert run(code) == "ArmorLinear\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import transformers.quantizers.auto, armor",
        "import armor, importlib; importlib.reload(armor); import transformers.quantizers.auto",
    ],
)
def test_registers_once(imports: str) -> None:
    code = f"""
{imports}
print(transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING["armor"].__name__)
"""
    assert run(code) == "ArmorQuantizer\n"


def test_the_import_system_is_left_as_it_was() -> None:
    code = """
import sys
import armor
import transformers.quantizers.auto as auto
ours = [finder for finder in sys.meta_path if type(finder).__module__.startswith("armor")]
print(ours, type(auto.__spec__.loader).__name__, type(auto.__loader__).__name__)
"""
    assert run(code) == "[] SourceFileLoader SourceFileLoader\n"


def test_public_names() -> None:
    assert set(armor.__all__) <= set(dir(armor))
    for name in armor.__all__:
        assert getattr(armor, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        armor.nonsense  # noqa: B018


@pytest.mark.parametrize("first", ["", "import armor.compare.compare; "])
def test_evaluate_is_the_function_whatever_was_imported(first: str) -> None:
    code = f"{first}from armor import evaluate; import armor; print(evaluate is armor.evaluate)"
    assert run(f"{code}; print(evaluate.__name__)") == "True\nevaluate\n"
