"""A call that a backend compiled, for a plan to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor

# Evaluates members [start, start + chunk) on flat inputs: outputs (chunk, rows, ...).
Call = Callable[[int, Sequence[Tensor]], tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled call, not yet checked.

    Attributes:
        kind: the backend.
        rows, chunk: what it takes.
        call: runs it.
        precision: in which it computes.
    """

    kind: str
    rows: int
    chunk: int
    call: Call
    precision: str = "float32"

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What tells it from others."""
        return self.kind, self.rows, self.chunk, self.precision
