"""How many processors this process may use, and how many of them compute."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup/cpu.max")
# From so many on, one is left to the event loop; below, it would be too large a part of what computes.
_ENOUGH_FOR_ALL = 4


def available() -> int:
    """Processors that this process may use: those that it is bound to, or fewer where its control group says so."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _GROUP.read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def default_threads() -> int:
    """Threads of one operation where nobody says how many."""
    count = available()
    return count - 1 if count >= _ENOUGH_FOR_ALL else count
