"""How much memory there is, and has been used."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

from armor.errors import ArmorError

#: glibc's names (malloc.h), and what it begins with.
_M_MMAP_MAX, _MAPPED = -4, 65536
_M_TRIM_THRESHOLD, _TRIMMED = -1, 128 * 1024
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(text: str) -> int:
    """``"16GB"``, ``"500 MB"`` or a number of bytes. Raises `ArmorError` on anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", text.upper())
    if found is None:
        raise ArmorError(f"--memory-budget {text!r} is not a size, such as 16GB")
    return int(float(found[1]) * _UNITS[found[2]])


def available_memory() -> int:
    """Bytes that can be used without swapping, as far as the system tells."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if sys.platform.startswith("linux"):
        found += [1024 * int(line.split()[1]) for line in _lines("/proc/meminfo", "MemAvailable")]
        limit = _lines("/sys/fs/cgroup/memory.max", "")  # a container's
        found += [int(line) for line in limit if line.isdigit()]
    return min(found)


def free_on_device(device: str) -> int:
    """Bytes that this process can use on a GPU; 0 for "cpu", whose memory is not a device's own.

    Among them those that torch holds for later, from tensors that are gone.
    """
    import torch

    where = torch.device(device)
    if where.type != "cuda":
        return 0
    held = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
    return torch.cuda.mem_get_info(where)[0] + held


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def trim_memory() -> None:
    """Give back to the system what was freed but is kept for later (glibc; else nothing)."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """From now on memory that is freed is kept for what comes next (glibc; else nothing).

    Large tensors otherwise come from the system each time, page by page and filled with zeros; a
    step of tuning makes gigabytes of them.
    """
    _allocator(0, -1)


def give_freed_memory() -> None:
    """Undo `keep_freed_memory`, and give back what was kept."""
    _allocator(_MAPPED, _TRIMMED)
    trim_memory()


def _allocator(mapped: int, trimmed: int) -> None:
    """Set glibc's largest number of blocks that are mapped one by one, and the bytes at the end of
    the heap from which on they are given back (-1: never)."""
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, mapped)
        library.mallopt(_M_TRIM_THRESHOLD, trimmed)


def _lines(path: str, start: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text().splitlines() if line.startswith(start)]
    except OSError:
        return []
