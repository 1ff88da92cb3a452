"""Fixtures for every test: where the shared models and texts lie, and which devices there are."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch and transformers load: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Idle OpenMP threads that spin slow down every other process of the test run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))

import hypothesis
import pytest
import torch

torch.set_num_threads(_THREADS)
if not torch.cuda.is_available():
    # Before triton loads: without a GPU its kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
