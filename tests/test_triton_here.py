"""Where Triton cannot run, that is said in words, and something else computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from armor.baselines import obs_triton
from armor.factorize.sweep import choose_backend
from armor.runtime.registry import load
from armor.sparse.pattern import TWO_OF_FOUR
from armor.triton import here, why_no_triton


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that uses a GPU, and a Triton that compiles for it."""
    pytest.importorskip("triton")
    if here.is_older_than(*here.OLDEST):
        pytest.skip("this Triton is too old")
    monkeypatch.setattr(here, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tried = here._why_no_kernel
    tried.cache_clear()
    yield
    tried.cache_clear()


@pytest.fixture
def another() -> Iterator[None]:
    """Another Triton than the one that is installed: what is known of that is forgotten."""
    for known in (here._why_not_this, here.is_older_than):
        known.cache_clear()
    yield
    for known in (here._why_not_this, here.is_older_than):
        known.cache_clear()


@pytest.mark.usefixtures("another")
def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in why_no_triton()
    assert "pip install triton" in load("triton").is_available().reason


@pytest.mark.usefixtures("another")
def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.6 brings it: without tuples of arguments and without gather."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert why_no_triton() == "triton 3.2.0 is older than 3.3"
    assert not load("triton").is_available()
    found = choose_backend(TWO_OF_FOUR, torch.float32, torch.device("cuda"))
    assert found.name == "torch"
    assert not obs_triton.runs(Weight(), 2, 4)


class Weight:
    """What is asked of a weight on a GPU."""

    device = torch.device("cuda")
    shape = (128, 4096)


@pytest.mark.usefixtures("with_gpu")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from armor.triton import probe

    tried: list[object] = []

    def fill(target: object) -> None:
        tried.append(target)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC\n")

    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(probe, "fill", fill)
    for _ in range(2):
        reason = why_no_triton()
        assert "RuntimeError: Please specify via CC" in reason
        assert "C compiler" in reason
        assert not load("triton").is_available()
    assert len(tried) == 1


@pytest.mark.usefixtures("with_gpu")
def test_nothing_is_tried_before_the_gpu_is_in_use_or_while_a_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(here, "_why_no_kernel", lambda: "tried")
    assert why_no_triton() == "tried"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert why_no_triton() == ""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert why_no_triton() == ""


def test_the_smallest_kernel() -> None:
    pytest.importorskip("triton")
    from armor.triton.probe import fill

    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert fill(torch.zeros(1, dtype=torch.int32, device=device)).tolist() == [1]
