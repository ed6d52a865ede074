"""What a figure was measured on, and how: without that it says nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def describe(packages: Sequence[str] = ()) -> str:
    """Processor, threads, and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("torch", *packages)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{name}, {cores} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        + ", ".join(versions)
    )


def timed(calls: dict[str, Callable[[], object]], seconds: float = 2.0, least: int = 5) -> dict[str, list[float]]:
    """Time several calls in turn, so that a machine that slows down slows all of them.

    Args:
        calls: by name; each is run once before it counts.
        seconds: about how long to go on for each call.
        least: rounds at least.

    Returns:
        Seconds of each run.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while len(next(iter(found.values()))) < least or time.perf_counter() - begun < seconds * len(calls):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
        if len(next(iter(found.values()))) >= 200:
            break
    return found


def spread(times: Sequence[float]) -> str:
    """Median and range in milliseconds."""
    low, middle, high = min(times), statistics.median(times), max(times)
    return f"{1000 * middle:.3g} ({1000 * low:.3g}–{1000 * high:.3g})"
