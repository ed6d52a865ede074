"""What is kept of a run: a record for each way in each cell, and what the cell takes at least."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any


@dataclasses.dataclass
class Record:
    """One way in one cell (model, members, rows).

    Args:
        model, members, rows, way: the cell, and the way's key.
        seconds: of each run; empty where ``reason`` says why there is none.
        loop: median seconds of the loop that ran in turns with it, or at another time if both did not fit; None
            where the loop did not run.
        error: largest difference from the loop over members, relative to the largest magnitude.
        checked: members that were compared.
        prepared: seconds until the first answer of this batch size, compiling included.
        note: how it runs.
        reason: why there is no time.
    """

    model: str
    members: int
    rows: int
    way: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    loop: float | None = None
    error: float | None = None
    checked: int = 0
    prepared: float | None = None
    note: str = ""
    reason: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def speedup(self) -> float | None:
        """How many times faster than the loop."""
        return self.loop / statistics.median(self.seconds) if self.seconds and self.loop else None


@dataclasses.dataclass
class Bound:
    """What one recipe takes at least in one cell, with the limits of the machine measured in the same run."""

    model: str
    members: int
    rows: int
    recipe: str
    nbytes: float
    flops: float
    seconds: float


@dataclasses.dataclass
class Results:
    """A whole run.

    Args:
        machine: what it ran on.
        command: how it was started.
        limits: bandwidth in bytes/s and peaks in flop/s.
        names: of the models, for people.
        missing: models that could not be had, and why.
    """

    machine: str
    command: str
    limits: dict[str, Any] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    records: list[Record] = dataclasses.field(default_factory=list)
    bounds: list[Bound] = dataclasses.field(default_factory=list)

    def record(self, model: str, members: int, rows: int, way: str) -> Record | None:
        cell = (model, members, rows, way)
        return next((r for r in self.records if (r.model, r.members, r.rows, r.way) == cell), None)

    def bound(self, model: str, members: int, rows: int, recipe: str) -> Bound | None:
        cell = (model, members, rows, recipe)
        return next((b for b in self.bounds if (b.model, b.members, b.rows, b.recipe) == cell), None)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found = dataclasses.asdict(self)
        for record, kept in zip(found["records"], self.records, strict=True):
            record |= {"median": kept.median, "speedup": kept.speedup}
        return found


def quartiles(seconds: list[float]) -> tuple[float, float, float, float]:
    """Least, first quartile, median, third quartile."""
    if len(seconds) < 2:
        return (seconds[0],) * 4
    first, middle, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return min(seconds), first, middle, third
