"""Memory that is freed: kept for what comes next, or given back."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from armor.memory import free_on_device, give_freed_memory, keep_freed_memory

BYTES = 2**28


def new_pages() -> int:
    """What the system must hand out for a large tensor that is made, filled and dropped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES, dtype=torch.uint8, device="cpu")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_was_freed_is_used_again() -> None:
    some = BYTES // resource.getpagesize() // 2
    try:
        new_pages()
        assert new_pages() > some
        keep_freed_memory()
        # Where the first ones lie is not yet where the next ones do.
        assert min(new_pages() for _ in range(8)) < some
    finally:
        give_freed_memory()
    new_pages()
    assert new_pages() > some


def test_what_torch_holds_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 50)
    assert free_on_device("cuda:0") == 750
    assert free_on_device("cpu") == 0
