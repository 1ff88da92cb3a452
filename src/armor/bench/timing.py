"""Timing contenders side by side: in turns, so that a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Run = Callable[[], object]

_SAMPLE = 0.002  # seconds: shorter work is repeated inside one sample


def interleaved(
    runs: Mapping[str, Run], device: torch.device, repeats: int, graphs: bool = True
) -> dict[str, float]:
    """Median seconds of each run.

    Args:
        runs: by name, each measured once a round, after two rounds that do not count.
        repeats: rounds.
        graphs: on CUDA, record each run as a CUDA graph and time its replay, as servers do.
    """
    with torch.inference_mode():
        prepared = {
            name: _recorded(run) if graphs and device.type == "cuda" else run
            for name, run in runs.items()
        }
        inner = {}
        for name, run in prepared.items():
            run()
            inner[name] = max(1, int(_SAMPLE / max(_seconds(run, 1, device), 1e-7)))
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        for _ in range(repeats):
            for name, run in prepared.items():
                samples[name].append(_seconds(run, inner[name], device))
    return {name: statistics.median(times) for name, times in samples.items()}


def _seconds(run: Run, count: int, device: torch.device) -> float:
    """Mean seconds of `count` runs in a row."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / count
    began = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - began) / count


def _recorded(run: Run) -> Run:
    """A replay of `run` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles kernels, searches algorithms
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
