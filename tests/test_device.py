"""The device that the user asks for."""

from __future__ import annotations

import pytest
import torch

from armor.device import resolve_device
from armor.errors import ArmorError


@pytest.mark.parametrize(
    ("name", "gpu", "remote", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "cpu"),
        ("cpu", True, False, "cpu"),
        ("cuda", True, False, "cuda"),
        ("cuda", False, True, "cuda"),
    ],
)
def test_devices(
    name: str, gpu: bool, remote: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_device(name, remote=remote) == expected


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArmorError, match="no CUDA device is available; use --device cpu"):
        resolve_device("cuda")
    with pytest.raises(ArmorError, match="unknown device 'tpu'; valid: auto, cpu, cuda"):
        resolve_device("tpu")
