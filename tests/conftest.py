"""Fixtures for every test: where the shared models and texts lie, and which devices there are."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import runpy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from armor.idle import let_idle_threads_sleep

# Before torch and transformers load: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Idle OpenMP threads that spin slow down every other process of the test run.
let_idle_threads_sleep(os.environ)
# The kernel is not chosen by a measurement, which could differ from run to run.
os.environ.setdefault("ARMOR_CPU_KERNEL", "columns")
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(_THREADS)
if not torch.cuda.is_available():
    # Before triton loads: without a GPU its kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

#: Packages whose signatures are checked while tests run, and only then.
_CHECKED = ("factorize", "calibrate", "baselines", "sparse", "runtime")
#: torch.compile traces through these, and cannot trace a check.
_TRACED = ("armor.sparse.layer", "armor.runtime.api", "armor.runtime.backend")
_SHAPES = re.compile(r"^from jaxtyping import", re.MULTILINE)
_KERNELS = re.compile(r"^\s*(import|from) (numba|triton|llvmlite)\b", re.MULTILINE)


def _checked_modules() -> list[str]:
    """The modules of `_CHECKED` that give shapes, without those that a check would break."""
    spec = importlib.util.find_spec("armor")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    modules = []
    for file in (file for name in _CHECKED for file in sorted((root / name).rglob("*.py"))):
        text = file.read_text(encoding="utf-8")
        if file.name != "__init__.py" and _SHAPES.search(text) and not _KERNELS.search(text):
            modules.append(".".join(("armor", *file.relative_to(root).with_suffix("").parts)))
    return [name for name in modules if name not in _TRACED]


install_import_hook(_checked_modules(), "beartype.beartype")

# Wall-clock deadlines fail on busy machines; a fixed seed makes every run the same.
hypothesis.settings.register_profile("armor", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("armor")

_DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of small trained models and texts (``models/``, ``data/``); skips without it.

    Looked for in ``$ARMOR_SHARED``, else in ``../shared`` beside the repository.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("ARMOR_SHARED", beside))
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared models in {folder}; set ARMOR_SHARED")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M, a real model; skips where `make smollm2` has not fetched it."""
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "fetch_smollm2.py"))
    folder: Path = script["default_folder"]()
    if not script["is_there"](folder):
        pytest.skip(f"no SmolLM2-135M in {folder}: make smollm2, or set ARMOR_SMOLLM2")
    return folder


TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: {text}
doc_to_choice: {choices}
doc_to_target: {target}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
WriteTask = Callable[..., Path]


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Any]:
    """Makes a random Llama of two blocks of width 32 with grouped-query attention, or as asked.

    The same settings of `LlamaConfig` give the same weights.
    """

    def make(**settings: Any) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {
            "vocab_size": 257,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **settings})).eval()

    return make


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """One token a byte, and 256 for the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="session")
def tiny_model(
    make_llama: Callable[..., Any], byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two random blocks of width 32 over bytes, context 128."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=256,
    ).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bos_tokenizer(byte_tokenizer: Any) -> Any:
    """`byte_tokenizer` with the end as its BOS token, which it puts before a text by itself."""
    from tokenizers import processors

    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.bos_token = "<end>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 256)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tiny_bos_model(
    tiny_model: Path, bos_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`tiny_model` with `bos_tokenizer`."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bos"
    shutil.copytree(tiny_model, folder)
    bos_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """Writes a multiple-choice task ``NAME.yaml`` and its rows; returns the folder."""
    folder = tmp_path / "tasks"

    def write(
        name: str,
        rows: Sequence[dict[str, Any]],
        text: str = '"{{ctx}}"',
        choices: str = "choices",
        target: str = "gold",
    ) -> Path:
        folder.mkdir(exist_ok=True)
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        task = TASK.format(name=name, file=file, text=text, choices=choices, target=target)
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def sums() -> list[dict[str, Any]]:
    """Rows of a task: what is the sum of two digits?"""
    return [
        {"ctx": f"{a} + {b} =", "choices": [str(a + b), str(a * b + 3), "none"], "gold": a % 2}
        for a in range(1, 5)
        for b in range(1, 4)
    ]
