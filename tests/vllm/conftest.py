"""Models in vLLM and in transformers with armor, each in a process of its own.

These tests need the environment of ``make vllm``. Waits are generous: a start imports a gigabyte.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import armor
from armor.config import PruneConfig
from armor.demo.text import calibration_text

HERE = Path(__file__).parent
SECONDS = 1800  # for one engine, from its start to its end
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # the workers are asked with a function
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other processes use the cores, too
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # only workers are processes of their own
    "VLLM_NO_USAGE_STATS": "1",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-gate", action="store_true", help="see tests/vllm/test_gate.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # vLLM's and its libraries' own
            item.add_marker(pytest.mark.filterwarnings("ignore"))
    if importlib.util.find_spec("vllm") is not None:
        return
    skip = pytest.mark.skip(reason="vLLM is not installed here: make vllm")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@dataclass(frozen=True)
class Finished:
    """A process that ended: its exit code, and what it printed."""

    code: int
    output: str


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of every process with vLLM in it."""
    cache = os.environ.get("VLLM_CACHE_ROOT") or str(tmp_path_factory.mktemp("vllm-cache"))
    return {**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": cache}


@pytest.fixture(scope="session")
def run_python(environment: dict[str, str]) -> Callable[..., Finished]:
    """Runs this Python, with arguments."""

    def run(*arguments: str | Path) -> Finished:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Finished(done.returncode, done.stdout)

    return run


@dataclass(frozen=True)
class Engines:
    """Runs jobs, see engine.py, all in one process."""

    run: Callable[..., Finished]
    folder: Path

    def vllm(self, jobs: list[dict[str, Any]]) -> list[Any]:
        """The result of each job; what vLLM printed goes to the test's output."""
        return self._start("engine.py", jobs)

    def transformers(self, jobs: list[dict[str, Any]]) -> list[Any]:
        """The result of each job in transformers with armor."""
        return self._start("reference.py", jobs)

    def _start(self, script: str, jobs: list[dict[str, Any]]) -> list[Any]:
        file, result = self.folder / "jobs.json", self.folder / "results.json"
        filled = [{"options": {}, "tokens": 24, **job} for job in jobs]
        file.write_text(json.dumps(filled, default=str))
        result.unlink(missing_ok=True)
        done = self.run(HERE / script, file, result)
        sys.stdout.write(done.output)
        assert done.code == 0, done.output[-6000:]
        return json.loads(result.read_text())


@pytest.fixture(scope="session")
def engines(
    run_python: Callable[..., Finished], tmp_path_factory: pytest.TempPathFactory
) -> Engines:
    """See `Engines`."""
    return Engines(run_python, tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Four prompts of different lengths, of bytes."""
    texts = ("Once upon a time", "The", "She said: I do not know what", "1, 2, 3, 4, 5, 6, 7, 8")
    return [list(text.encode()) for text in texts]


#: Sizes that vLLM's attention on CPUs takes; 224 and 257 are no multiples of 64.
SIZES = {
    "vocab_size": 257,
    "hidden_size": 128,
    "intermediate_size": 224,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,  # logits far apart: greedy generation has no ties
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def pruned(
    random_model: Callable[..., Any],
    byte_tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Prunes a random model of a family of transformers; the same call gives the same folder."""
    made: dict[str, Path] = {}

    def prune(family: str, overrides: dict[str, Any], lm_head: bool = False, **sizes: Any) -> Path:
        key = json.dumps([family, overrides, lm_head, sizes])
        if key not in made:
            home = tmp_path_factory.mktemp(family.lower())
            random_model(family, **sizes).save_pretrained(home / "dense")
            byte_tokenizer.save_pretrained(home / "dense")
            config = PruneConfig(
                calibration=(calibration_text()[:20_000],),
                samples=4,
                seq_len=64,
                iterations=2,
                block_size=16,
                overrides=overrides,
                lm_head=lm_head,
            )
            armor.prune(home / "dense", config, home / "pruned")
            made[key] = home / "pruned"
        return made[key]

    return prune


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """Makes a random model of a family, its biases and norms random, too."""

    def make(family: str, **sizes: Any) -> Any:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**{**SIZES, **sizes})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("_bias"):
                parameter.data += 0.1 * torch.randn(parameter.shape)
        return model.eval()

    return make
