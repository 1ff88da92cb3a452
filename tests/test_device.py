"""The device that the user asks for."""

from __future__ import annotations

import pytest
import torch

from armor.device import kind_of_device, resolve_device
from armor.errors import ArmorError


@pytest.mark.parametrize(
    ("name", "gpu", "remote", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "cpu"),
        ("cpu", True, False, "cpu"),
        ("cuda", True, False, "cuda"),
        ("cuda", False, True, "cuda"),
        ("cuda:1", True, False, "cuda:1"),
    ],
)
def test_devices(
    name: str, gpu: bool, remote: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name, remote=remote) == expected


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArmorError, match="no CUDA device is available; use --device cpu"):
        resolve_device("cuda")
    with pytest.raises(ArmorError, match="unknown device 'tpu'; valid: auto, cpu, cuda, cuda:N"):
        resolve_device("tpu")
    with pytest.raises(ArmorError, match="no CUDA device is available"):
        resolve_device("cuda:0")
    with pytest.raises(ArmorError, match="a GPU of a cluster has no number"):
        resolve_device("cuda:0", remote=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArmorError, match=r"there is no cuda:2: this machine has 2 GPU\(s\)"):
        resolve_device("cuda:2")


def test_the_kind_of_a_device_decides_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kind_of_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    assert kind_of_device("cuda:1") == kind_of_device("cuda") == "cuda (H100)"
