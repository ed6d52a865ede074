"""The vmapped call recorded as a CUDA graph: for small models a GPU waits for Python otherwise, not Python for it.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble.backends.chunks import with_their_weights
from ensemble.backends.job import Job
from ensemble.backends.tracing import trace
from ensemble.members import Members

# Recorded where it runs, so there is nothing to keep.
DEVICE = "cuda"
PRECISIONS = ("float32",)
QUICK = False
chunks = with_their_weights
SUFFIXES: tuple[str, ...] = ()
_WARM_UPS = 3


def missing(device: torch.device) -> str:
    """Why it cannot be used here; empty if it can."""
    return "" if device.type == "cuda" else "CUDA graphs are for GPUs"


def build(job: Job, target: Path) -> None:
    """Nothing: see ``SUFFIXES``."""


class Compiled:
    """A recording for each chunk of members; inputs are copied to where it reads them."""

    def __init__(self, job: Job, target: Path, members: Members, precision: str) -> None:
        traced, _ = trace(job)
        device = next(iter(members.stacked.values())).device
        self._chunk = job.chunk
        self._lock = threading.Lock()
        self._inputs = [spec.empty(device).zero_() for spec in job.inputs]
        self._recordings: list[tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = []
        shared = [members.shared[spec.name] for spec in job.shared]
        pool: Any = None
        for start in range(0, members.count, job.chunk):
            own = [members.stacked[spec.name][start : start + job.chunk] for spec in job.own]
            recording, outputs = _record(traced, [*shared, *own, *self._inputs], device, pool)
            pool = recording.pool()
            self._recordings.append((recording, outputs))

    def __call__(self, start: int, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of members [start, start + chunk)."""
        with self._lock:
            for place, tensor in zip(self._inputs, inputs, strict=True):
                place.copy_(tensor)
            recording, outputs = self._recordings[start // self._chunk]
            recording.replay()
            return tuple(output.clone() for output in outputs)


def _record(
    traced: Any, tensors: list[Tensor], device: torch.device, pool: Any
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    with torch.no_grad():
        # Libraries choose kernels and allocate in their first calls, which must not be recorded.
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                traced(*tensors)
        torch.cuda.current_stream(device).wait_stream(beside)
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording, pool=pool):
            outputs = tuple(traced(*tensors))
    return recording, outputs
