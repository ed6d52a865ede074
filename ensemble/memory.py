"""What memory a device has left, asked before anything large is allocated (the design's rule 4)."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path

import torch

from ensemble.errors import MemoryLimitError

# Kept free for activations and everything else in the process.
_RESERVE = 0.1


def available(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device, None if that cannot be known.

    On the CPU the least of what the system reports as available and what the process's control group (a container's
    limit) leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        used = int((group / "memory.current").read_text())
        limits.append(int((group / "memory.max").read_text()) - used)
    return min(limits, default=None)


def require(per_member: int, members: int, device: torch.device) -> None:
    """Refuse members that will not fit.

    Args:
        per_member: bytes that one member has of its own.
        members: how many.
        device: where.

    Raises:
        MemoryLimitError: with what would fit.
    """
    free = available(device)
    need = per_member * members
    if free is None or need <= free * (1 - _RESERVE):
        return
    fits = int(free * (1 - _RESERVE) // per_member)
    raise MemoryLimitError(
        f"{members} members of {human(per_member)} each need {human(need)} on {device}, of which {human(free)} is "
        f"free. What would fit: {fits} members, or weights in bfloat16 (twice as many), or a recipe that perturbs "
        "fewer weights (include=, exclude=)."
    )


def human(nbytes: float) -> str:
    """A size for people: '1.5 GiB'."""
    unit = min(4, int(math.log(max(nbytes, 1), 1024)))
    return f"{nbytes / 1024**unit:.3g} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}"
