"""What memory a device has left, asked before anything large is allocated (the design's rule 4)."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ensemble.errors import MemoryLimitError

# Kept free for activations and everything else in the process.
_RESERVE = 0.1
_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
# Dtype and shape of a weight.
_Kind = tuple[torch.dtype, Sequence[int]]


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
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        limits.append(1024 * _read(_SYSTEM)["MemAvailable:"])
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        limits.append(int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
        # Files that were read and are not in use are counted there, and make way, as MemAvailable takes it.
        limits[-1] += _read(_GROUP / "memory.stat")["inactive_file"]
    return min(limits, default=None)


def _read(path: Path) -> dict[str, int]:
    """Numbers by the word before them, a line each."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def require(own: Iterable[_Kind], members: int, device: torch.device, *, factors: str = "") -> None:
    """Refuse members that will not fit.

    Args:
        own: dtype and shape of each weight that one member has of its own.
        members: how many.
        device: where.
        factors: what would give such members two thin factors in place of a whole weight; empty if nothing would.

    Raises:
        MemoryLimitError: with what would fit.
    """
    free, own = available(device), list(own)
    each = _nbytes(own)
    need = each * members
    if free is None or need <= free * (1 - _RESERVE):
        return
    ways = [(each, ""), (_nbytes(map(_halved, own)), " with weights in bfloat16")]
    if factors:
        ways.append((_nbytes(map(_factored, own)), f" with factors in place of whole weights ({factors})"))
    found, most = [], 0
    for nbytes, how in ways:
        fitting = min(members, int(free * (1 - _RESERVE) // max(1, nbytes)))
        if fitting > most:
            found.append(f"{fitting} member{'s' if fitting > 1 else ''}{how}")
            most = fitting
    found.append("a recipe that perturbs fewer weights (include=, exclude=)")
    raise MemoryLimitError(
        f"{members} members of {human(each)} each need {human(need)} on {device}, of which {human(free)} is free. "
        f"What would fit: {', or '.join(found)}."
    )


def _nbytes(own: Iterable[_Kind]) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in own)


def _halved(kind: _Kind) -> _Kind:
    dtype, shape = kind
    return (torch.bfloat16 if dtype.is_floating_point and dtype.itemsize > 2 else dtype), shape


def _factored(kind: _Kind) -> _Kind:
    dtype, shape = kind
    return dtype, (shape[0] + math.prod(shape[1:]),) if len(shape) > 1 else shape


def human(nbytes: float) -> str:
    """A size for people: '1.5 GiB'."""
    unit = min(4, int(math.log(max(nbytes, 1), 1024)))
    return f"{nbytes / 1024**unit:.3g} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}"
