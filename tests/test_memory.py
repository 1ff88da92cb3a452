"""Memory that is freed: kept for what comes next, or given back."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from armor.memory import give_freed_memory, keep_freed_memory

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
